"""An event loop whose time jumps from timer to timer: hours of waiting cost nothing, and no run differs from the next.

Rules for editing: public asyncio surface only. Threads and sockets do not work on it.
"""

from __future__ import annotations

import asyncio
import selectors
from datetime import UTC, datetime, timedelta

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)

#: So many turns of the loop without time passing mean that something spins.
_TURNS_MAX = 20_000


class Spinning(AssertionError):
    """Tasks wake each other without end and time does not pass."""


class _Leaping(selectors.SelectSelector):
    """Instead of waiting, lets the time pass."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self._turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Spinning("every task waits for another one: nothing can ever happen again")
        self._turns = 0 if timeout > 0 else self._turns + 1
        if self._turns > _TURNS_MAX:
            raise Spinning(f"{_TURNS_MAX} turns of the loop at {self.now:.3f} s: a hot loop")
        self.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """The loop of one simulated life."""

    def __init__(self) -> None:
        self._leaping = _Leaping()
        super().__init__(self._leaping)

    def time(self) -> float:
        """Return the virtual seconds since the start."""
        return self._leaping.now


class VirtualClock:
    """``ports.Clock`` on the running virtual loop; ``skew_s`` is how far this machine's clock goes wrong."""

    def __init__(self, skew_s: float = 0.0) -> None:
        self._skew_s = skew_s

    def now(self) -> datetime:
        """Return the aware UTC wall time of this machine."""
        return EPOCH + timedelta(seconds=asyncio.get_running_loop().time() + self._skew_s)

    async def sleep(self, seconds: float) -> None:
        """Wait; cancellable."""
        await asyncio.sleep(seconds)
