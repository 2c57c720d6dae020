"""The documentation, and what makes the pages of it that are read from the code."""
