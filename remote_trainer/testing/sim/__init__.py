"""A simulated world for whole lives of jobs: virtual time, the real worker, and everything around it that fails as a seed says.

    __main__.py   `make sim`: many lives on all cores, what was dealt and checked in them, and the story of one that breaks a promise
    many.py       lives on all cores, counted
    life.py       one life, from submit until every job has ended
    faults.py     what may go wrong, how often, and the profiles
    blows.py      what is dealt from outside, at random times
    promises.py   what must hold, checked whenever something happens
    crew.py       the worker processes: the whole worker as it is shipped
    loop.py       an event loop whose time jumps from timer to timer, and processes that freeze and die
    line.py       a process's messages: late, lost, or its last
    ports.py      store, driver and object store over a line
    host.py       a host over a line
    world.py      the world itself; store.py, provider.py, machine.py, bucket.py its parts

Rules for editing: nothing of the worker is replaced. One seed is one life, to the byte: no wall clock, no unseeded randomness, no
threads. What a life costs decides how many can be lived: quiet times are short, jobs small.
"""
