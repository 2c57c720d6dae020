"""Collecting outputs, from a folder as host into a folder as object store."""
