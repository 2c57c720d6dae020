"""What is done with a machine: choosing an offer, renting it, looking for it, making sure that it serves, cleaning up, giving it back.

Rules for editing: one method per effect, as in ``perform``, which hands them out; what was found goes into ``Seen`` through ``observe``.
No phase is decided here.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Protocol

from remote_trainer import effects as fx
from remote_trainer import log
from remote_trainer.errors import (
    ConfigError,
    HostKeyMismatch,
    HostLacks,
    HostUnreachable,
    HostWiped,
    InvariantBroken,
    NoCapacity,
    Permanent,
    RemoteTrainerError,
    Transient,
)
from remote_trainer.host.client import SupervisedHost
from remote_trainer.host.cuda import try_cuda
from remote_trainer.lifecycle import listed
from remote_trainer.model import Attempt, HostFacts, Instance, Job, Token
from remote_trainer.policy import choose_offer, estimate, fits
from remote_trainer.ports import Driver, Spec
from remote_trainer.worker.listing import new_enough
from remote_trainer.worker.shop import Shop

_log = log.get()

_HEALTH_TIMEOUT_S = _CLEANUP_TIMEOUT_S = 120.0

# $1 our folder on the host, $2 the attempt's label, $3 the recipe's script
_CLEANUP = """\
case $1 in '~/'*) set -- "$HOME/${1#'~/'}" "$2" "$3" ;; esac
RT_WORK=$1/j/$2/w RT_OUTPUT=$1/j/$2/w/output
export RT_WORK RT_OUTPUT
cd "$RT_WORK" && eval "$3"
"""


class Patient(Protocol):
    """The job runner, as far as effects need it."""

    job: Job
    token: Token

    @property
    def seen(self) -> fx.Seen: ...

    def observe(self, change: Callable[[fx.Seen], fx.Seen]) -> None: ...


class Machine:
    """The machine of one job's current attempt."""

    def __init__(self, shop: Shop, driver: Driver, patient: Patient) -> None:
        self._shop, self._driver, self._patient = shop, driver, patient
        self._host: SupervisedHost | None = None  # held so that what is known of it lasts as long as the job, and no longer

    @property
    def attempt(self) -> Attempt:
        """The attempt that the machine is for."""
        attempt = self._patient.job.attempt
        if attempt is None:
            raise InvariantBroken(f"job {self._patient.job.id}: an effect needs an attempt and there is none")
        return attempt

    async def choose_offer(self) -> None:
        """Pick one of what the driver has."""
        job = self._patient.job
        offers = await self._driver.offers(job.plan.resources)
        suitable = [offer for offer in offers if not fits(offer, job.plan.resources, job.limits)]
        avoid = frozenset[str]() if self._driver.abilities.borrowed else await self._shop.market.avoid(job)
        dice = random.Random(self.attempt.label).random()  # noqa: S311 - spreads workers over offers, keeps no secret
        offer = choose_offer(suitable, estimate(job), avoid, dice)
        if offer is None:
            raise NoCapacity(
                f"driver {job.driver} has no machine that fits {job.plan.resources} among {len(offers)} offers: "
                "ask for less, or use another driver",
                driver=job.driver,
                operation="offers",
            )
        self._shop.market.take(offer.id)
        self._patient.observe(lambda seen: replace(seen, offer=offer))

    async def create(self, label: str) -> None:
        """Rent the offer that was saved: one request."""
        offer, resources = self.attempt.offer, self._patient.job.plan.resources
        try:
            if offer is None:
                raise InvariantBroken(f"{label}: a machine is to be rented and no offer was saved")
            self._check_in_time(label)
            instance = await self._driver.create(
                offer, Spec(image=self._patient.job.plan.image, disk_gb=resources.disk_gb), label
            )
            self._patient.observe(lambda seen: replace(seen, created=instance))
        finally:
            answered_at = self._shop.clock.now()
            self._patient.observe(lambda seen: replace(seen, creating=False, answered_at=answered_at))

    def _check_in_time(self, label: str) -> None:
        """Refuse to rent long after the intent was saved: this process was paused, and others may have given the request up."""
        asked_at = self.attempt.requested_at
        late_s = (self._shop.clock.now() - asked_at).total_seconds() if asked_at and not self._driver.abilities.borrowed else 0.0
        if late_s > self._shop.policy.lag_margin_s / 2:
            raise Transient(f"{label}: {late_s:.0f} s passed before the request to rent could be sent: not sent")

    def _instance(self, instance_id: str) -> Instance:
        seen = self._patient.seen
        known = (*(seen.instances or ()), *filter(None, [self.attempt.instance, seen.created]))
        found = next((instance for instance in known if instance.id == instance_id), None)
        return found or Instance(id=instance_id, label=self.attempt.label)  # not listed any more: the id is all it takes

    async def find_instance(self, label: str) -> None:
        """List what carries the attempt's label."""
        job, seen = self._patient.job, self._patient.seen
        began = max(seen.since, job.since or seen.since)
        look = await self._shop.listing(self._driver).since(new_enough(seen.instances_at, began, self._shop.clock.now()))
        self._patient.observe(lambda seen: listed(seen, self._patient.job, look.by_label.get(label, ()), look.asked_at))

    async def guard(self, until: datetime) -> None:
        """Let the provider end the instance by itself some time."""
        instance = self.attempt.instance
        if instance is None:
            raise InvariantBroken(f"job {self._patient.job.id}: an instance is to be guarded and there is none")
        await self._driver.guard(instance, until)
        self._patient.observe(lambda seen: replace(seen, guarded=True))

    async def host(self) -> SupervisedHost:
        """Return the way to the machine, wherever it is now."""
        attempt, instance = self.attempt, self.attempt.instance
        if instance is None:
            raise InvariantBroken(f"job {self._patient.job.id}: an effect needs a host and there is no instance")
        moved_to = self._instance(instance.id).address or instance.address  # a machine may come back at another address
        try:
            self._host = await self._shop.host(self._driver, replace(instance, address=moved_to))
            return self._host
        except (ConfigError, Permanent) as error:
            if attempt.facts is None:
                raise
            # Our key is missing or refused: that says nothing about what runs on a machine that we have been on.
            raise HostUnreachable(f"instance {instance.id} cannot be reached from here: {error}") from error

    def explain(self, error: HostKeyMismatch) -> RemoteTrainerError:
        """Return what it means that the machine shows another host key than the one it was pinned with.

        At the address where we met it: somebody else may answer there. At another one, which the provider's listing has told us since:
        its container was made anew, so its disk is not the one we knew. Neither is ever spoken to.
        """
        instance = self.attempt.instance
        if instance is None or instance.borrowed or not self._moved(instance):
            return error
        return HostWiped(f"instance {instance.id} came back at another address as another machine, its disk was reset: {error}")

    def _moved(self, instance: Instance) -> bool:
        there = self._instance(instance.id).address
        return bool(there) and there != instance.address

    async def prepare_host(self) -> None:
        """Set the supervisor up and make sure that the machine serves."""
        host = await self.host()
        facts = await self._shop.facts(host)
        try:
            self._check(facts, host.transport.address)
        except HostLacks:
            facts = await self._shop.facts(host, anew=True)  # somebody may have made room just now
            self._check(facts, host.transport.address)
        if self._patient.job.plan.resources.gpus and not self._driver.abilities.borrowed:
            facts = replace(facts, cuda=await self._check_cuda(host))
        if self._patient.job.plan.health:
            await self._check_health(host, self._patient.job.plan.health)
        self._patient.observe(lambda seen: replace(seen, host=facts))

    def _check(self, facts: HostFacts, address: str) -> None:
        wanted = self._patient.job.plan.resources
        lacks = [
            f"{what}: {there:g} there, {need:g} needed"
            for what, there, need in (
                ("GPUs", len(facts.gpus), wanted.gpus),
                ("GPU memory (GB)", min(facts.gpu_mem_mib, default=0) * 2**20 / 10**9, wanted.vram_gb),
                ("free disk (GB)", facts.disk_free / 10**9, wanted.disk_gb),
                ("memory (GB)", facts.mem_total / 10**9, wanted.ram_gb),
            )
            if there < need
        ]
        if lacks:
            raise HostLacks(f"{address} cannot run {self._patient.job.plan.tool}: {'; '.join(lacks)}")

    async def _check_cuda(self, host: SupervisedHost) -> str:
        """Make sure that programs can use the GPUs of a machine that we pay for; where that cannot be tried nvidia-smi is believed."""
        cuda, wanted = await try_cuda(host.transport), self._patient.job.plan.resources.gpus
        if cuda.devices is not None and cuda.devices < wanted:
            why = cuda.fault or f"the driver has {cuda.devices} devices, {wanted} needed"
            raise HostLacks(f"{host.transport.address} has GPUs that CUDA cannot use: {why}")
        return cuda.words

    async def _check_health(self, host: SupervisedHost, script: str) -> None:
        done = await host.transport.run(["sh", "-c", script], timeout_s=_HEALTH_TIMEOUT_S)
        if done.code != 0:
            words = (done.stderr or done.stdout)[-500:].decode("utf-8", "replace").strip()
            raise HostLacks(f"{host.transport.address} failed the tool's health check (exit {done.code}): {words}")

    async def clean(self, label: str) -> None:
        """Remove the attempt's folders from a borrowed machine."""
        host = await self.host()
        if self._patient.job.plan.cleanup:
            await self._clean_up(host, label, self._patient.job.plan.cleanup)
        await host.clean(label, self._patient.token)
        self._patient.observe(lambda seen: replace(seen, cleaned=True))

    async def _clean_up(self, host: SupervisedHost, label: str, script: str) -> None:
        """Run the recipe's cleanup in the work folder; best effort, so its failure is told and changes nothing."""
        done = await host.transport.run(["sh", "-c", _CLEANUP, "sh", host.root, label, script], timeout_s=_CLEANUP_TIMEOUT_S)
        if done.code != 0:
            words = (done.stderr or done.stdout)[-500:].decode("utf-8", "replace").strip()
            _log.warning(log.event("releasing"), action="cleanup_failed", exit_code=done.code, output=words)

    async def destroy(self, instance_id: str) -> None:
        """Ask for the end of an instance."""
        await self._driver.destroy(self._instance(instance_id))
