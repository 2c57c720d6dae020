"""Many jobs, several workers, and by seed everything that can go wrong with them: `python -m tests.storm --help`."""
