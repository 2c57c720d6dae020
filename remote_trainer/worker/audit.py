"""Reads what providers bill, writes it beside our own meter, and tells when the two differ.

Every hour it asks each driver that can say so for the charges of the last days and posts what is new as entries of the ledger. Several
workers may do so at once: an entry that two of them post is there once. A day after a job has ended its bill should be complete.

Rules for editing: what an entry is, and what differs, is decided in ``policy.accounts``. Nothing is changed but the ledger; a provider
or store that is down costs a look.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal

from remote_trainer import log
from remote_trainer.errors import RemoteTrainerError
from remote_trainer.lifecycle import job_of
from remote_trainer.model import EntryKind, Job, JobId
from remote_trainer.policy import charged, job_cost, misbilled
from remote_trainer.ports import Biller, Charge, JobQuery
from remote_trainer.worker.alarm import Cause
from remote_trainer.worker.holdings import renting
from remote_trainer.worker.shop import Shop

_log = log.get()

_EVERY_S = 3600.0
_SOON_S = 5.0  # after the start: until the reaper has learnt which drivers there are
_DAYS = timedelta(days=8)  # whose charges are asked for
_COMPLETE = timedelta(hours=24)  # after the end of a job
_PAGE = 200


class Audit:
    """The auditor of one worker."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop
        self._told: set[JobId] = set()

    async def run(self) -> None:
        """Look now and then until cancelled."""
        await self._shop.clock.sleep(_SOON_S)
        while True:
            try:
                await self.look()
            except RemoteTrainerError as error:
                _log.warning("training.audit", action="audit_failed", error=str(error))
            await self._shop.clock.sleep(_EVERY_S)

    async def look(self) -> None:
        """Ask once for what was billed; post what is new, ring for what differs."""
        now = self._shop.clock.now()
        jobs = await self._recent(now - _DAYS)
        asked: set[str] = set()
        for driver in renting(self._shop.drivers()):
            if not isinstance(driver, Biller) or not any(driver.name in _rented_from(job) for job in jobs):
                continue
            try:
                charges = await driver.charges(now - _DAYS, now)
            except Exception as error:  # noqa: BLE001 - a driver without its key or right, or with a bug, ends neither worker nor look
                _log.warning("training.audit", action="charges_unknown", driver=driver.name, error=str(error))
                continue
            asked.add(driver.name)
            await self._post(driver.name, self._by_job(charges, jobs), now)
        for job in jobs:
            if _rented_from(job) and _rented_from(job) <= asked:
                await self._compare(job, now)

    async def _recent(self, since: datetime) -> list[Job]:
        """Return the jobs that were submitted since then."""
        found: list[Job] = []
        after: str | None = None
        while True:
            page = await self._shop.store.find(JobQuery(limit=_PAGE, after=after))
            found += [job for job in page.jobs if job.created_at >= since]
            after = page.cursor
            if after is None or page.jobs[-1].created_at < since:
                return found

    def _by_job(self, charges: Iterable[Charge], jobs: Sequence[Job]) -> list[tuple[Job, list[Charge]]]:
        """Return the charges of our jobs' machines: by label or, where the provider does not say it, by the machine."""
        known = {job.id: job for job in jobs}
        machines = {attempt.instance.id: job.id for job in jobs for attempt in job.attempts if attempt.instance is not None}
        found: defaultdict[JobId, list[Charge]] = defaultdict(list)
        for charge in charges:
            job_id = job_of(self._shop.deployment, charge.label) if charge.label else machines.get(charge.instance)
            if job_id is not None and job_id in known:
                found[job_id].append(charge)
        return [(known[job_id], of_job) for job_id, of_job in found.items()]

    async def _post(self, driver: str, found: Iterable[tuple[Job, list[Charge]]], now: datetime) -> None:
        ledger = self._shop.store.ledger
        for job, charges in found:
            posted = await ledger.entries(job.tenant, job=job.id)
            if new := charged(job, driver, charges, posted, now):
                await ledger.post(new)
                _log.info("training.audit", action="charged", job=job.id, usd=str(sum(each.amount for each in new)))

    async def _compare(self, job: Job, now: datetime) -> None:
        """Ring once if the bill of a job that ended a day ago is not what our meter says."""
        if job.id in self._told or job.finished_at is None or now - job.finished_at < _COMPLETE:
            return
        posted = await self._shop.store.ledger.entries(job.tenant, job=job.id)
        billed = sum((entry.amount for entry in posted if entry.kind is EntryKind.CHARGE), Decimal(0))
        self._told.add(job.id)
        if misbilled(job, billed):
            metered = job_cost(job, job.finished_at)
            message = (
                f"the machines of job {job.id} were billed {billed:.2f} $, and by our own meter they cost {metered:.2f} $: compare "
                f"`remote-trainer show {job.id}` with the provider's list of charges"
            )
            data = (("job", job.id), ("billed_usd", str(billed)), ("metered_usd", str(metered)))
            self._shop.alarm.ring(Cause(kind="charges", subject=job.id, message=message, data=data))


def _rented_from(job: Job) -> set[str]:
    """Return the drivers from which a job has rented what costs anything."""
    asked = (attempt for attempt in job.attempts if attempt.requested_at is not None and attempt.offer is not None)
    return {attempt.offer.driver for attempt in asked if attempt.offer is not None and attempt.offer.price_per_hour}
