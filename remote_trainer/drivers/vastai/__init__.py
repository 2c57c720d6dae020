"""Vast.ai: a market of rented GPU machines.

api.py       one method for each request we make: typed, paced, no policy
envelope.py  what a reply means: the provider's many ways to say no, as our errors
pace.py      the least time between two requests of a kind, shared by all jobs of a key
"""
