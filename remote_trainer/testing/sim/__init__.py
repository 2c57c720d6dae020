"""A simulated world for whole lives of jobs: virtual time, and a store, a provider and hosts that fail as a seed says.

    loop.py     an event loop whose time jumps from timer to timer
    faults.py   what may go wrong, and how often
    world.py    provider, machines, object store, and the promises that are checked after every change
    store.py    leases, fencing tokens and compare-and-set, in memory
    ports.py    the driver and host one simulated worker process talks to: late, lost and doubted messages

Rules for editing: nothing here knows the worker or the lifecycle's rules, only the ports and the promises of the product. One seed is
one life, to the byte: no wall clock, no unseeded randomness, no threads.
"""
