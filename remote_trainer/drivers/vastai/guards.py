"""The provider's own scheduler as the outermost dead man's switch: it ends an instance at a full hour, whatever becomes of us.

Rules for editing: a guard is taken back only when its instance is known to be gone. One that is left behind is harmless: it asks for
the end of what is not there, and is over after a day.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from remote_trainer.drivers.vastai.api import VastApi, instance_path
from remote_trainer.drivers.vastai.contacts import Contact, Guard
from remote_trainer.drivers.vastai.envelope import Gone
from remote_trainer.drivers.vastai.rows import number, text

_HOUR_S = 3600


def first_slot(until: float, now: float) -> int:
    """Return the start to ask for, so that it acts at the first full hour after ``until``, or from now on if that is over.

    All in seconds since the epoch. The provider acts at minute 0 of the very hour that contains the start.
    """
    return math.ceil(max(until, now) / _HOUR_S) * _HOUR_S + 1


class Guards:
    """Of all instances of an account."""

    def __init__(self, api: Callable[[], VastApi], now: Callable[[], float]) -> None:
        self._api, self._now = api, now

    async def put(self, contact: Contact, until: float) -> None:
        """Have an instance ended soon after ``until``; sends nothing where that is so already."""
        start = first_slot(until, self._now())
        known = contact.guard
        if known is not None and known.start == start:
            return
        try:
            job_id = await self._api().schedule_destroy(contact.id, start, known=known.job_id if known else None)
        except Gone:
            if known is None:
                raise
            contact.guard = None  # somebody has taken ours away
            job_id = await self._api().schedule_destroy(contact.id, start)
        contact.guard = Guard(start, job_id)

    async def take_back(self, contact: Contact) -> None:
        """Have nothing done any more about an instance that is gone."""
        if contact.guard is not None and contact.guard.job_id is not None:
            await self._api().unschedule(contact.guard.job_id)
            return
        for row in await self._api().scheduled():
            if text(row, "api_endpoint") == instance_path(contact.id) and number(row, "id") > 0:
                await self._api().unschedule(int(number(row, "id")))
