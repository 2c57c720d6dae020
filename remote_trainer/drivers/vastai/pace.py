"""The least time between two requests of one kind with one key, shared by everything in this process that uses the key.

The provider refuses whoever asks more often, and a refused request to rent is punished with a longer wait.

A limit that lasts (a daily quota, for one) is nothing to wait for here: whoever comes meanwhile is told how long it lasts.

Rules for editing: intervals are the provider's published thresholds and a little more; a caller waits its turn, first come first served,
and one that waits no longer leaves its place to the next.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from weakref import WeakValueDictionary

from remote_trainer.errors import Transient

PATIENT_S = 20.0  # for so long a limit is waited for

#: Seconds between two requests, by kind.
INTERVALS_S: Mapping[str, float] = {
    "search": 6.5,
    "create": 5.0,
    "destroy": 3.2,
    "list": 1.2,
    "account": 1.2,
    "attach": 1.2,
    "detach": 2.2,
    "keys": 1.2,
    "bid": 6.0,
    "show": 2.2,
    "schedule": 1.2,
    "schedules": 1.2,
    "audit": 2.0,
    "charges": 1.2,
}


class Pace:
    """Lets requests of each kind through one by one, each at its time."""

    def __init__(self, intervals_s: Mapping[str, float] = INTERVALS_S) -> None:
        self._intervals_s = intervals_s
        self._next: dict[str, float] = {}
        self._held: dict[str, float] = {}
        self._lines: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def turn(self, kind: str) -> None:
        """Wait for this kind's next turn and take it. Transient if the provider lets nothing of this kind through for long."""
        now = asyncio.get_running_loop().time
        async with self._lines[kind]:
            while True:  # it may be held meanwhile
                left_s = self._next.get(kind, 0.0) - now()
                if left_s <= 0:
                    break
                if (held_s := self._held.get(kind, 0.0) - now()) > PATIENT_S:
                    message = f"Vast.ai limits {kind}: next try in {held_s:.0f} s"
                    raise Transient(message, driver="vastai", operation=kind, retry_after_s=held_s)
                await asyncio.sleep(left_s)
            self._next[kind] = now() + self._intervals_s[kind]

    def hold(self, kind: str, seconds: float) -> None:
        """Let nothing of this kind through for so long: the provider said so."""
        self._held[kind] = max(self._held.get(kind, 0.0), asyncio.get_running_loop().time() + seconds)
        self._next[kind] = max(self._next.get(kind, 0.0), self._held[kind])


_SHARED: WeakValueDictionary[tuple[str, str], Pace] = WeakValueDictionary()


def shared(url: str, key: str, intervals_s: Mapping[str, float] = INTERVALS_S) -> Pace:
    """Return the pace of one key at one address; the same one for every caller."""
    return _SHARED.setdefault((url, key), Pace(intervals_s))
