"""The command line as a subprocess, killed at any moment."""
