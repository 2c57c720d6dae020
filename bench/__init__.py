"""Benchmarks: `python -m bench` prints every table of docs/benchmarks.md that this machine can measure."""
