"""Keeps a watchman on the rented machine of a job, which ends it should all of us be gone; where machines can end themselves.

Rules for editing: what the watchman may do by itself is said in host/watchman.sh. New orders are his only way to hear that limits or
addresses have changed, so they are given again and again while a job is on its machine; only the first ones must arrive.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from remote_trainer import effects as fx
from remote_trainer import log
from remote_trainer.errors import RemoteTrainerError
from remote_trainer.host.client import SupervisedHost
from remote_trainer.host.watchman import Orders
from remote_trainer.model import Event
from remote_trainer.policy import limit
from remote_trainer.ports import Change, Outbox, SelfEnding
from remote_trainer.worker.machine import Machine, Patient
from remote_trainer.worker.records import outbox_key
from remote_trainer.worker.shop import Shop

_log = log.get()

_LONG = (fx.ShipInputs, fx.FollowStep, fx.CollectOutputs)  # during which nobody else may give orders for hours
_LINK_S = 7 * 86400.0  # no link lives longer


class Watch:
    """The watchman over one job's current attempt."""

    def __init__(self, shop: Shop, patient: Patient, machine: Machine) -> None:
        self._shop, self._patient, self._machine = shop, patient, machine
        self._told: set[str] = set()  # leftovers
        self._due = 0.0  # by the loop's clock; at once after a takeover

    @property
    def _farewell(self) -> str:
        driver = self._patient.driver
        return driver.farewell if isinstance(driver, SelfEnding) else ""

    async def begin(self) -> None:
        """Make sure that the machine will end itself; on a bare one this is the first that we do."""
        if self._farewell:
            host = await self._machine.host()
            await self._shop.facts(host)
            await self._order(host)
            self._due = asyncio.get_running_loop().time() + self._every_s

    @contextlib.asynccontextmanager
    async def during(self, effect: fx.Effect) -> AsyncIterator[None]:
        """Let the watchman hear from us for as long as an effect takes."""
        if not self._farewell or not isinstance(effect, _LONG):
            yield
            return
        speaking = asyncio.create_task(self._speak(), name=f"watchman {self._machine.attempt.label}")
        try:
            yield
        finally:
            speaking.cancel()
            await asyncio.wait([speaking])

    async def tell_leftovers(self) -> None:
        """Say what machines of earlier attempts have put into the bucket. Nobody has verified it, so nothing resumes from it."""
        job, objects = self._patient.job, self._shop.objects
        for attempt in job.attempts[:-1] if isinstance(objects, Outbox) else ():
            key = outbox_key(job.tenant, job.id, attempt.number)
            found = await objects.head(key)
            if found is None or key in self._told:
                continue
            message = f"the machine of attempt {attempt.number} has ended itself; its outputs, {found.size} bytes, unverified, are in {key}"
            event = Event(at=self._shop.clock.now(), kind="note", message=message)
            await self._shop.writer.save(Change(job_id=job.id, token=self._patient.token, events=(event,)))
            self._told.add(key)

    async def _speak(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if loop.time() >= self._due:
                self._due = loop.time() + self._every_s
                try:
                    await self._order(await self._machine.host())
                except RemoteTrainerError as error:
                    self._due = loop.time() + self._every_s / 10
                    _log.warning(log.event("executing"), action="watchman_not_reached", why=str(error))
            await self._shop.clock.sleep(max(0.0, self._due - loop.time()))

    @property
    def _every_s(self) -> float:
        return self._shop.policy.orphan_after_s / 6

    async def _order(self, host: SupervisedHost) -> None:
        job, attempt, policy = self._patient.job, self._machine.attempt, self._shop.policy
        reached, limit_s = limit(job), None
        if reached is not None:
            limit_s = (reached[0] - self._shop.clock.now()).total_seconds() + policy.reap_overtime_s
        outbox = ""
        if isinstance(self._shop.objects, Outbox):
            key = outbox_key(job.tenant, job.id, attempt.number)
            outbox = await self._shop.objects.presign_put(key, expires_s=int(_LINK_S))
        orders = Orders(
            farewell=self._farewell,
            silence_s=policy.orphan_after_s,
            hold_s=policy.orphan_hold_s,
            limit_s=limit_s,
            outbox=outbox,
        )
        await host.keep_watch(attempt.label, orders)
