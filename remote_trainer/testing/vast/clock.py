"""The time in which the simulated service lives, seconds since the epoch.

Rules for editing: nothing else here reads a clock; limits of requests and late answers count real seconds, since clients do.
"""

from __future__ import annotations

import time
from typing import Protocol


class SimClock(Protocol):
    """Tells the time."""

    def now(self) -> float:
        """Return seconds since the epoch."""
        ...


class RunningClock:
    """Runs as fast as it is told; `advance` jumps."""

    def __init__(self, speed: float = 1.0) -> None:
        self._speed = speed
        self._zero = time.monotonic()
        self._start = time.time()

    def now(self) -> float:
        return self._start + (time.monotonic() - self._zero) * self._speed

    def advance(self, seconds: float) -> None:
        """Jump ahead."""
        self._start += seconds


class StandingClock:
    """Stands still until it is moved."""

    def __init__(self, start: float = 1_800_000_000.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Move on."""
        self._now += seconds
