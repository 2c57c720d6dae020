"""One question for all jobs of a worker: what does this driver list of ours?

Whoever needs a listing says from which moment on it must have been asked for, and is given the newest one if that will do, the one under
way, or the next. So a hundred jobs cost one request a round, and no job is shown a listing that is older than what it waits for.

Rules for editing: ``Look.asked_at`` is never later than the moment at which the request went out: what is concluded from "not listed"
rests on it. One request at a time; it belongs to nobody, so whoever waits for it may be cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from remote_trainer.model import Instance
from remote_trainer.ports import Clock, Driver

_PAUSE_S = 2.0  # after a listing that failed, for all who ask again
#: A listing is news if it was asked for in that last part of the time since the job's last one. More than half, so that jobs which began
#: at different times get into step: of two requests within one cycle, the gap to the next is shorter than that on one side.
_IN_STEP = 0.6


@dataclass(frozen=True, slots=True)
class Look:
    """A complete listing of ours at one driver."""

    asked_at: datetime
    instances: Sequence[Instance]
    by_label: Mapping[str, tuple[Instance, ...]]


def new_enough(last: datetime | None, began: datetime, now: datetime) -> datetime:
    """Return from when on a listing must have been asked for to be news for a job that knows the one of ``last``.

    Without one it is what the job's phase ``began`` with: whatever was asked for before belongs to another question.
    """
    if last is None:
        return began
    return max(began, now - timedelta(seconds=_IN_STEP * max(0.0, (now - last).total_seconds())))


class Listing:
    """What one driver lists under one label prefix; shared by everybody who asks."""

    def __init__(self, driver: Driver, prefix: str, clock: Clock) -> None:
        self._driver, self._prefix, self._clock = driver, prefix, clock
        self._last: Look | None = None
        self._request: _Request | None = None
        self._failed_at: datetime | None = None

    async def since(self, moment: datetime) -> Look:
        """Return a listing that was asked for at that moment or later. Errors are the driver's: all who wait for one share them."""
        moment = min(moment, self._clock.now())
        while self._last is None or self._last.asked_at < moment:
            request = self._request = self._request or _Request(self._ask)
            await asyncio.wait({request.task})
            if self._request is request:
                self._request = None
            if request.asked_at is None or request.asked_at >= moment:
                return request.task.result()
        return self._last

    async def _ask(self, request: _Request) -> Look:
        if self._failed_at is not None:
            await self._clock.sleep(max(0.0, _PAUSE_S - (self._clock.now() - self._failed_at).total_seconds()))
        request.asked_at = asked_at = self._clock.now()
        try:
            self._last = _look(asked_at, await self._driver.instances(self._prefix))
        except Exception:
            self._failed_at = self._clock.now()
            raise
        self._failed_at = None
        return self._last


class _Request:
    """One that is under way."""

    def __init__(self, ask: Callable[[_Request], Coroutine[None, None, Look]]) -> None:
        self.asked_at: datetime | None = None  # None until it goes out
        self.task = asyncio.create_task(ask(self), name="listing")
        self.task.add_done_callback(_heard)


def _heard(task: asyncio.Task[Look]) -> None:
    """Take the failure of a request for which nobody waits any more."""
    if not task.cancelled():
        task.exception()


def _look(asked_at: datetime, found: Sequence[Instance]) -> Look:
    by_label: dict[str, tuple[Instance, ...]] = {}
    for one in found:
        by_label[one.label] = (*by_label.get(one.label, ()), one)
    return Look(asked_at, tuple(found), by_label)
