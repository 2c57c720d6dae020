"""Whole lives of jobs in a simulated world."""
