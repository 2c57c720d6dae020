"""What a storm deals out, and when: made from a seed, before anything is started. Pure.

Rules for editing: the same seed, jobs, kills and store give the same schedule; a target is a number between 0 and 1, as only the moment
shows what there is to hit.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from typing import Literal

Store = Literal["sqlite", "mongo"]

#: The lease of a storm's workers, seconds: short, so that much happens within one.
LEASE_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of blow."""

    title: str
    share: float  # blows for each kill of a worker; at least one is dealt
    shortest_s: float = 0.0  # how long it lasts: log-uniform between the two
    longest_s: float = 0.0


#: What the workers' machine suffers, what the hosts suffer, what the store suffers. ``longest_s`` of a cut grows with the storm.
KINDS: dict[str, Kind] = {
    "kill": Kind(title="worker killed with `kill -9`", share=1.0, shortest_s=0.05, longest_s=2 * LEASE_S),
    "freeze": Kind(
        title="worker stopped past its lease, then woken", share=1 / 6, shortest_s=1.2 * LEASE_S, longest_s=3 * LEASE_S
    ),
    "clock": Kind(title="workers' clock an hour off, then right again", share=1 / 6, shortest_s=2.0, longest_s=15.0),
    "disk": Kind(title="disk of the workers full", share=1 / 10, shortest_s=0.3, longest_s=6.0),
    "sessions": Kind(title="sshd sessions of a host killed", share=1 / 3),
    "cut": Kind(title="host cut off the network", share=1 / 3, shortest_s=0.1, longest_s=6.0),
    "host-disk": Kind(title="disk of a host full", share=1 / 8, shortest_s=0.3, longest_s=6.0),
    "supervisor": Kind(title="supervisor of a running step killed", share=1 / 6),
    "step": Kind(title="running step killed", share=1 / 8),
    "both": Kind(title="running step and its supervisor killed", share=1 / 8),
    "store": Kind(title="database server killed, or file locked", share=1 / 6, shortest_s=0.2, longest_s=6.0),
}

_SLOWEST = 4.0
#: The longest cut of a long storm, seconds.
_LONGEST_CUT_S = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Blow:
    """One thing that goes wrong."""

    at_s: float
    kind: str
    target: float  # 0 to 1: which of those that can be hit
    lasts_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """One job that somebody submits."""

    at_s: float
    host: float
    lines: int
    delay_s: float
    kb: int
    flood_kb: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A whole storm."""

    span_s: float
    wishes: tuple[Wish, ...]
    blows: tuple[Blow, ...]


def make(seed: int, *, jobs: int, kills: int) -> Schedule:
    """Return the storm of a seed."""
    dice = random.Random(seed)
    span_s = max(18.0, 3.0 * kills)
    wishes = sorted((_wish(dice, span_s) for _ in range(jobs)), key=lambda wish: wish.at_s)
    blows = [blow for kind in KINDS for blow in _blows(dice, kind, kills, span_s)]
    return Schedule(span_s=span_s, wishes=tuple(wishes), blows=tuple(sorted(blows, key=lambda blow: blow.at_s)))


def stretched(plan: Schedule, slowness: float) -> Schedule:
    """Return the storm for a machine that is so many times as slow: else workers would be killed before they get to anything."""
    factor = max(1.0, min(_SLOWEST, slowness))
    return Schedule(
        span_s=plan.span_s * factor,
        wishes=tuple(replace(wish, at_s=wish.at_s * factor, lines=round(wish.lines * factor)) for wish in plan.wishes),
        blows=tuple(replace(blow, at_s=blow.at_s * factor) for blow in plan.blows),
    )


def _wish(dice: random.Random, span_s: float) -> Wish:
    delay_s = round(dice.uniform(0.1, 0.3), 2)
    length_s = dice.uniform(0.15, 0.5) * min(span_s, 80.0)
    return Wish(
        at_s=round(dice.uniform(0, 0.7 * span_s), 2),
        host=dice.random(),
        lines=max(1, round(length_s / delay_s)),
        delay_s=delay_s,
        kb=dice.randint(1, 1000),
        flood_kb=dice.choice((0, 0, 0, dice.randint(1, 300))),
    )


def _blows(dice: random.Random, kind: str, kills: int, span_s: float) -> list[Blow]:
    what = KINDS[kind]
    longest_s = min(_LONGEST_CUT_S, max(what.longest_s, span_s / 2)) if kind == "cut" else what.longest_s
    count = max(1, round(kills * what.share)) if kills else 0
    return [
        Blow(
            at_s=round(dice.uniform(1.5, span_s), 2),
            kind=kind,
            target=dice.random(),
            lasts_s=round(_log_uniform(dice, what.shortest_s, longest_s), 2),
        )
        for _ in range(count)
    ]


def _log_uniform(dice: random.Random, shortest: float, longest: float) -> float:
    return math.exp(dice.uniform(math.log(shortest), math.log(longest))) if longest else 0.0
