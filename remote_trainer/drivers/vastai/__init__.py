"""Vast.ai: a market of rented GPU machines.

api.py       one method for each request we make: typed, paced, no policy
envelope.py  what a reply means: the provider's many ways to say no, as our errors
pace.py      the least time between two requests of a kind, shared by all jobs of a key
rows.py      rows as our values: offers and instances
records.py   rows as our values: the log of requests, bills
choose.py    which offers can serve, and why the others cannot
speeds.py    how fast a training runs on each kind of GPU
market.py    one look at the market for all jobs that come together
access.py    how instances come to let us in, and the ways to them
guards.py    the provider's own scheduler as the outermost dead man's switch
contacts.py  what is remembered of each instance
ends.py      instances that are given back together share a request
farewell.sh  how a machine ends itself
examine.py   what an account and its key lack
options.py   what a profile may say
driver.py    the driver: all of them put together
"""
