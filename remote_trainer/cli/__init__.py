"""The command line: two programs, thin over the service.

Rules for editing: help and mistyped options must answer fast, so what costs time (pydantic, the service, rich) is imported inside the
command that needs it. Commands ask the service, print through ``out`` and raise; ``guard`` turns what is raised into a message and a code.
"""
