"""What may go wrong in a simulated life, and how often.

Rules for editing: probabilities are per event, ``*_s`` are seconds; everything here ends at ``quiet_s``, so that a job must then end.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """One profile of faults."""

    quiet_s: float = 900.0  # no new fault begins after that
    every_s: float = 45.0  # mean time between two blows of ``weights``
    loss: float = 0.05  # of a request, and of a reply
    refusals: float = 0.1  # of the provider's answers: it raises instead
    broken_boots: float = 0.05
    stubborn: float = 0.3  # destroy requests that are accepted and forgotten
    slow_listing: float = 0.15  # listings that take up to half a minute
    lag_s: float = 10.0  # a new instance may be missing from the listing for that long
    late_creates: bool = False  # a paused or dead worker's request may arrive whenever
    dead_hosts: float = 0.1  # lives in which the machine falls silent for good
    exits: float = 0.2  # step runs that end non-zero
    #: How often each kind of blow is dealt, relative to the others.
    weights: tuple[tuple[str, float], ...] = (
        ("kill", 3.0),
        ("pause", 3.0),
        ("store_outage", 1.5),
        ("objects_outage", 1.5),
        ("silence", 3.0),
        ("reboot", 0.5),
        ("vanish", 0.5),
        ("preempt", 0.5),
    )


CALM = Faults(loss=0, refusals=0, broken_boots=0, stubborn=0, slow_listing=0, dead_hosts=0, exits=0, weights=())
#: No net: no create arrives late, so nothing may ever be left behind, and nobody looks after it.
STRICT = Faults()
#: Everything, late creates included; a reaper returns what no live attempt claims.
CHAOS = Faults(late_creates=True, every_s=25.0)
