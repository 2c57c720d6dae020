"""Returns rented machines that no live attempt claims: what a lost reply, a dead worker or a provider's mistake has left behind.

It lists by our own label prefix, so a stranger's machine is never looked at, and asks for the end of what nobody claims until the
listing agrees. Several workers may do so at once.

Rules for editing: what claims a machine is decided in ``policy.claims``; doubt (store or provider down, a document of a newer version)
means that it is claimed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from remote_trainer import log
from remote_trainer.errors import DocumentTooNew, DriverError, NotFound, StoreUnavailable, UsageError
from remote_trainer.lifecycle import job_of, prefix_of
from remote_trainer.model import Instance, Job
from remote_trainer.policy import claims
from remote_trainer.ports import Driver, JobQuery
from remote_trainer.worker.shop import Shop

_log = log.get()

#: Drivers are learnt from so many of the newest jobs, at the start and every so many sweeps.
_JOBS = 500
_LEARN_EVERY = 10


class Reaper:
    """Sweeps all drivers that jobs of this store use."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop
        self._unclaimed: dict[int, dict[str, float]] = {}  # by driver: instance → since when, by the loop's clock
        self._sweeps = 0

    async def run(self) -> None:
        """Sweep now and then until cancelled."""
        while True:
            await self.sweep()
            await self._shop.clock.sleep(self._shop.policy.reap_every_s)

    async def sweep(self) -> Sequence[Instance]:
        """Look once at every driver; return the machines whose end was asked for."""
        if self._sweeps % _LEARN_EVERY == 0:
            await self._learn()
        self._sweeps += 1
        reaped: list[Instance] = []
        for driver in self._shop.drivers():
            if driver.abilities.borrowed:
                continue
            try:
                reaped += await self._sweep(driver)
            except (DriverError, StoreUnavailable) as error:
                _log.warning("training.reaper", action="sweep_failed", driver=driver.name, error=str(error))
        return reaped

    async def _learn(self) -> None:
        """Open the drivers of jobs that other workers ran: whoever rented may be dead."""
        try:
            page = await self._shop.store.find(JobQuery(limit=_JOBS))
        except (StoreUnavailable, DocumentTooNew) as error:
            _log.warning("training.reaper", action="jobs_unknown", error=str(error))
            return
        for job in page.jobs:
            try:
                self._shop.driver(job.driver, job.driver_options)
            except UsageError as error:
                _log.debug("training.reaper", action="no_driver", driver=job.driver, error=str(error))

    async def _sweep(self, driver: Driver) -> list[Instance]:
        there = await driver.instances(prefix_of(self._shop.deployment))
        known, now = self._unclaimed.get(id(driver), {}), asyncio.get_running_loop().time()
        since: dict[str, float] = {}
        due: list[Instance] = []
        for instance in there:
            if (grace_s := await self._grace_s(instance.label)) is None:
                continue
            since[instance.id] = known.get(instance.id, now)
            if now - since[instance.id] >= grace_s:
                due.append(instance)
        self._unclaimed[id(driver)] = since
        for instance in due:
            _log.warning("training.reaper", action="reaped", driver=driver.name, instance=instance.id, label=instance.label)
            await driver.destroy(instance)
        return due

    async def _grace_s(self, label: str) -> float | None:
        """Return how long a machine may be nobody's before it is destroyed; None while it is claimed."""
        policy = self._shop.policy
        try:
            job = await self._job(label)
        except DocumentTooNew:
            return None
        if claims(job, label, self._shop.clock.now(), policy):
            return None
        return policy.reap_unknown_s if job is None else policy.reap_grace_s

    async def _job(self, label: str) -> Job | None:
        """Return the job a label speaks of; None if the store does not know it."""
        job_id = job_of(self._shop.deployment, label)
        if job_id is None:
            return None
        try:
            return await self._shop.store.get(job_id)
        except NotFound:
            return None
