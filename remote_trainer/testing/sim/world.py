"""One simulated world: its time, its dice, what was dealt and checked in it, and the story of it.

Rules for editing: verbs of the parts (provider, machines, bucket, store) take effect at once and never fail for the network, which
ports.py does. A broken promise raises Broken, is kept in ``breach`` and ends the life.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter

from remote_trainer.testing.sim.bucket import Bucket
from remote_trainer.testing.sim.faults import KINDS, Profile
from remote_trainer.testing.sim.loop import VirtualLoop
from remote_trainer.testing.sim.machine import Machine
from remote_trainer.testing.sim.promises import Promises
from remote_trainer.testing.sim.provider import Provider
from remote_trainer.testing.sim.store import SimStore


class Broken(AssertionError):
    """A promise of the product does not hold."""


class World:
    """Everything that is true in one life, whoever looks."""

    def __init__(self, seed: int, profile: Profile, loop: VirtualLoop, *, tell: bool = False) -> None:
        self.dice = random.Random(seed)  # noqa: S311 - a seed, no secret
        self.profile, self.faults, self.loop = profile, profile.faults, loop
        self.trace: list[str] | None = [] if tell else None
        self.dealt: Counter[str] = Counter()
        self.checked: Counter[str] = Counter()
        self.breach: Broken | None = None  # the first one: a worker may take the error for one of its own and go on
        self.over = asyncio.Event()  # every job has ended, or a promise is broken
        self.store_down_until = 0.0
        self.quiet_s = self.faults.quiet_s
        #: Lives of some kinds are rare, since they cost the time of many others.
        self.doomed = self.dice.random() < self.faults.dead_hosts
        self.exodus_s = self.dice.uniform(3700, 9000) if self.dice.random() < self.faults.exodus else 0.0
        self.machines: list[Machine] = []
        self.promises = Promises(self)
        self.store = SimStore(self)
        self.bucket = Bucket(self)
        self.provider = self.make_provider()
        self.own = Machine(self, "own") if profile.borrowed or profile.market else None

    def make_provider(self) -> Provider:
        """Return where machines are rented."""
        return Provider(self)

    def check_end(self) -> None:
        """Look at what only the end of a life shows."""

    @property
    def now(self) -> float:
        """Return the virtual time, seconds."""
        return self.loop.now

    @property
    def quiet(self) -> bool:
        """Do no new faults begin any more?"""
        return self.loop.now >= self.quiet_s

    def deal(self, kind: str, probability: float) -> bool:
        """Does this fault happen now? Never once the world is quiet."""
        if probability <= 0 or self.loop.now >= self.quiet_s or self.dice.random() >= probability:
            return False
        self.note(kind)
        return True

    def note(self, kind: str, text: str = "") -> None:
        """Count a fault that was dealt."""
        assert kind in KINDS, kind
        self.dealt[kind] += 1
        if self.trace is not None:
            self.say(f"fault: {kind} {text}")

    def say(self, text: str) -> None:
        """Add to the story."""
        if self.trace is not None:
            self.trace.append(f"{self.loop.now:9.2f}  {text.rstrip()}")

    def broken(self, promise: str) -> Broken:
        """Return the error for a promise that does not hold, and end the life."""
        self.say(f"BROKEN: {promise}")
        error = Broken(promise)
        self.breach = self.breach or error
        self.over.set()
        return error
