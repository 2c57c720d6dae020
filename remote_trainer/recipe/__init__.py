"""Recipes: the YAML a tool is, checked, rendered and frozen into a plan."""
