"""A simulated Vast.ai: its API as it really answers, prices and credit, everything that has gone wrong there, and instances that are hosts.

    with SimVast(machines=LocalMachines(folder)) as sim:     # server.py
        sim.url, sim.key                                     # VAST_URL, VAST_API_KEY
        sim.faults.arm("create-dropped", label="rt-")        # faults.py: the menu

reply.py      what is answered: a status, a body, or no answer at all
clock.py      the simulated time: running, faster, or standing until it is moved
market.py     offers and the search among them · demo.py makes a market
account.py    keys and what they may, credit, SSH keys, limits of requests
instances.py  one rented instance: its states on the clock, its row, its cost
machines.py   what an instance is made of · local.py OpenSSH servers on this machine · doors.py ways in that do not open
faults.py     the menu, and what is armed
schedule.py   the provider's own scheduler
record.py     everything that happened, for tests to check
provider.py   the whole: rents, moves time, bills, gives back
routes.py     the dialect: paths, bodies, refusals · admin.py how tests and people steer it from outside · server.py HTTP

Rules for editing: standard library only, but for the link that other tests use too. Facts come from the provider's documents, its official
client and written-down experience; where they disagree, what was seen on the wire counts. Nothing here knows our driver.
"""
