"""What this installation has rented, and whose it is: looks and judges, and touches nothing.

Machines are listed by our own label prefix, so a stranger's is never looked at.

Rules for editing: what claims a machine is decided in ``policy.unclaimed``; doubt (a document of a newer version) means that it is
claimed, and a store or provider that is down means no judgement at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from remote_trainer.errors import DocumentTooNew, NotFound, UsageError
from remote_trainer.lifecycle import attempt_of, job_of
from remote_trainer.model import Instance, Job, JobId
from remote_trainer.policy import Policy, Unclaimed, unclaimed
from remote_trainer.ports import Driver, JobQuery
from remote_trainer.worker.alarm import unreturned
from remote_trainer.worker.shop import Shop

_JOBS = 500  # drivers are learnt from so many of the newest jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """One rented machine as it was judged."""

    driver: Driver
    instance: Instance
    job_id: JobId | None  # that its label speaks of
    attempt: int | None
    claimed: bool
    why: str
    since: datetime | None = None  # when it became nobody's, as far as the job tells
    grace_s: float = 0.0  # how long it must be nobody's before it is destroyed
    overdue: bool = False  # claimed, and should long be gone

    def due(self, now: datetime) -> bool:
        """Is it certain from the job alone that it has been nobody's for as long as it must?"""
        return not self.claimed and self.since is not None and (now - self.since).total_seconds() >= self.grace_s


async def learn_drivers(shop: Shop) -> Mapping[str, str]:
    """Open the drivers of jobs that anybody ran, since whoever rented may be dead.

    Returns the names of those that cannot be opened and may have rented, and why.
    """
    faults: dict[str, str] = {}
    for job in (await shop.store.find(JobQuery(limit=_JOBS))).jobs:
        for index, place in enumerate(job.places):
            try:
                shop.driver(place.driver, place.options)
            except UsageError as error:
                if _may_have_rented(job, index):
                    faults[place.driver] = str(error)
    return faults


def _may_have_rented(job: Job, place: int) -> bool:
    asked = (attempt for attempt in job.attempts if attempt.requested_at is not None and attempt.place == place)
    return any(attempt.instance is None or not attempt.instance.borrowed for attempt in asked)


def renting(drivers: Iterable[Driver]) -> Sequence[Driver]:
    """Return those that rent: only they have anything to give back."""
    return tuple(driver for driver in drivers if not driver.abilities.borrowed)


async def look(shop: Shop, driver: Driver) -> list[Holding]:
    """Return every machine of this installation at one driver. Errors are the driver's and the store's."""
    there = await shop.listing(driver).since(shop.clock.now())
    return [await judge(shop, driver, instance) for instance in there.instances]


async def judge(shop: Shop, driver: Driver, instance: Instance) -> Holding:
    """Say whose a machine is."""
    job_id, number = job_of(shop.deployment, instance.label), attempt_of(shop.deployment, instance.label)
    try:
        job = None if job_id is None else await _job(shop, job_id)
    except DocumentTooNew:
        why = "in doubt: its job was written by a newer version"
        return Holding(driver=driver, instance=instance, job_id=job_id, attempt=number, claimed=True, why=why)
    now = shop.clock.now()
    verdict = unclaimed(job, instance.label, now, shop.policy)
    return Holding(
        driver=driver,
        instance=instance,
        job_id=job_id,
        attempt=number,
        claimed=verdict is None,
        why=_why(job_id, job, verdict),
        since=verdict.since if verdict else None,
        grace_s=_grace_s(job, shop.policy),
        overdue=verdict is None and job is not None and unreturned(job, now, shop.policy.alarm_after_s) is not None,
    )


def _why(job_id: JobId | None, job: Job | None, verdict: Unclaimed | None) -> str:
    if job_id is None:
        return "its label is not of the form that jobs give"
    return verdict.why if verdict else f"its job is {job.phase}" if job else ""


def _grace_s(job: Job | None, policy: Policy) -> float:
    return policy.reap_unknown_s if job is None else policy.reap_grace_s


async def _job(shop: Shop, job_id: JobId) -> Job | None:
    try:
        return await shop.store.get(job_id)
    except NotFound:
        return None
