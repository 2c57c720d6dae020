"""What a worker knows about machines on offer besides their price: which failed lately, and which it is about to rent.

Rules for editing: hints only. What is forgotten here costs a failed attempt, never a second rental.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta

from remote_trainer.errors import DocumentTooNew
from remote_trainer.model import Attempt, Job, Reason
from remote_trainer.ports import Clock, JobQuery, Store

#: Machines of attempts that ended so are not taken again for a while.
_FAILURES = frozenset({Reason.PROVISIONING_FAILED, Reason.HOST_UNSUITABLE, Reason.HOST_KEY_MISMATCH, Reason.TRANSFER_FAILED})
_MEMORY = timedelta(days=7)
_JOBS = 200  # of the newest jobs is known what failed
_FRESH_S = 600.0  # how long that is known before the store is asked again
_CHOSEN_S = 120.0  # for so long an offer that a job has chosen is nobody else's


class Market:
    """Shared by all jobs of a worker."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._failed: frozenset[str] = frozenset()
        self._asked_at = float("-inf")
        self._chosen: dict[str, float] = {}  # offer → when, by the loop's clock

    async def avoid(self, job: Job) -> frozenset[str]:
        """Return the offers and machines that this job had better not take."""
        now = asyncio.get_running_loop().time()
        if now - self._asked_at > _FRESH_S:
            self._asked_at = now
            with contextlib.suppress(DocumentTooNew):  # of newer versions' jobs nothing is known: a hint less
                self._failed = await find_failed(self._store, self._clock.now())
        self._chosen = {offer: at for offer, at in self._chosen.items() if now - at < _CHOSEN_S}
        own = [offer for attempt in job.attempts[:-1] for offer in (attempt.offer, *attempt.rivals) if offer is not None]
        vain = {offer_id for attempt in job.attempts for offer_id in attempt.refused}
        machines = {offer.machine for offer in own if offer.machine}
        return self._failed | set(self._chosen) | {offer.id for offer in own} | machines | vain

    def take(self, offer_id: str) -> None:
        """Note that a job is about to rent an offer."""
        self._chosen[offer_id] = asyncio.get_running_loop().time()


def failed_offers(job: Job) -> frozenset[str]:
    """Return what was of no use to a job itself: a machine that is lent to us may be in order again for the next one."""
    over = [attempt for attempt in job.attempts if attempt.ended_at is not None and attempt.offer is not None]
    return frozenset(
        attempt.offer.id
        for attempt in over
        if attempt.offer is not None and (attempt.facts is None or attempt.reason in _FAILURES)
    )


async def find_failed(store: Store, now: datetime) -> frozenset[str]:
    """Return the machines that failed a job of this store lately."""
    return failed_machines((await store.find(JobQuery(limit=_JOBS))).jobs, now)


def failed_machines(jobs: Iterable[Job], now: datetime) -> frozenset[str]:
    """Return the machines on which an attempt failed for reasons of theirs within a week."""
    return frozenset(
        attempt.offer.machine for attempt in _failed(jobs, now) if attempt.offer is not None and attempt.offer.machine
    )


def _failed(jobs: Iterable[Job], now: datetime) -> Iterator[Attempt]:
    for job in jobs:
        for attempt in job.attempts:
            if attempt.reason in _FAILURES and attempt.ended_at is not None and now - attempt.ended_at < _MEMORY:
                yield attempt
