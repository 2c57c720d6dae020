"""Datasets: a tree of files made into deterministic, hashed chunks."""
