"""The worker's time: the machine's wall clock, but a jump of it is made good slowly.

Deadlines are computed from saved wall times, so a clock that is set an hour forward would end jobs early, and one that is set back would
make every wait an hour longer. Between two readings this clock goes as fast as the time since boot does, and at most a tenth faster
or slower while the wall clock says something else.

Rules for editing: no other part of the shell reads the machine's time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime

#: How much faster or slower than real time this clock may go until it agrees with the machine's.
_SLEW = 0.1


def _elapsed() -> float:
    """Return seconds that also pass while the machine sleeps, where the system can tell."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class SystemClock:
    """``ports.Clock`` of this machine."""

    def __init__(self, wall: Callable[[], float] = time.time, elapsed: Callable[[], float] = _elapsed) -> None:
        self._wall, self._elapsed = wall, elapsed
        self._now, self._read_at = wall(), elapsed()

    def now(self) -> datetime:
        """Return the aware UTC wall time."""
        read_at = self._elapsed()
        passed = max(0.0, read_at - self._read_at)
        behind = self._wall() - (self._now + passed)
        self._now += passed + max(-_SLEW * passed, min(_SLEW * passed, behind))
        self._read_at = read_at
        return datetime.fromtimestamp(self._now, UTC)

    async def sleep(self, seconds: float) -> None:
        """Wait; cancellable."""
        await asyncio.sleep(seconds)
