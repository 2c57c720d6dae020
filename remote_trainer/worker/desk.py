"""Lets a worker's jobs rent one after the other, no faster than their provider takes requests: first come, first served.

Jobs that came together would else all save that they asked, wait for their turn at the driver, and most would come too late for their
request to be sent at all.

Rules for editing: a hint only. What keeps the provider's limits is the driver, and what keeps a late request from being sent is
``Spec.left_s``.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict

from remote_trainer.ports import Driver


class Desk:
    """Shared by all jobs of a worker."""

    def __init__(self) -> None:
        self._lines: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._next: dict[str, float] = {}  # when a driver's next request may go, by the loop's clock

    async def turn(self, driver: Driver, requests: int) -> float:
        """Wait until it is the caller's turn to rent, with so many requests; return for how long that was, seconds.

        Who is cancelled gives up its place.
        """
        every_s = driver.abilities.rents_every_s
        if not every_s:
            return 0.0
        now = asyncio.get_running_loop().time
        came_at = now()
        # By name: drivers of one provider with other options have the same limits.
        async with self._lines[driver.name]:
            await asyncio.sleep(max(0.0, self._next.get(driver.name, 0.0) - now()))
            self._next[driver.name] = now() + every_s * requests
        return now() - came_at
