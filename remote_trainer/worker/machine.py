"""What is done with a machine: choosing an offer, renting it, looking for it, making sure that it serves, cleaning up, giving it back.

Rules for editing: one method per effect, as in ``perform``, which hands them out; what was found goes into ``Seen`` through ``observe``.
No phase is decided here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
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
    Permanent,
    RemoteTrainerError,
    Transient,
    UsageError,
)
from remote_trainer.host.client import SupervisedHost
from remote_trainer.host.cuda import try_cuda
from remote_trainer.lifecycle import listed
from remote_trainer.model import Attempt, HostFacts, Instance, Job, Place, Resources, Token
from remote_trainer.policy import needs, switched_off_at
from remote_trainer.ports import Bidder, Driver, Recorder, Spec
from remote_trainer.worker.choosing import Choice, choose
from remote_trainer.worker.listing import new_enough
from remote_trainer.worker.shop import Shop

_log = log.get()

_OFFER_S = 10.0  # what was on offer that long ago may be taken
_HEALTH_TIMEOUT_S = _CLEANUP_TIMEOUT_S = 120.0

# $1 our folder on the host, $2 the attempt's label, $3 the recipe's script
_CLEANUP = """\
case $1 in '~/'*) set -- "$HOME/${1#'~/'}" "$2" "$3" ;; esac
RT_WORK=$1/j/$2/w RT_OUTPUT=$1/j/$2/w/output
export RT_WORK RT_OUTPUT
cd "$RT_WORK" && eval "$3"
"""


# $1 our folder on the host, $2 a model's in a cache of the hub; prints KiB
_HELD = """\
case $1 in '~/'*) set -- "$HOME/${1#'~/'}" "$2" ;; esac
for cache in "${HF_HUB_CACHE:-$1/hub}" "$HOME/.cache/huggingface/hub"; do
    [ -d "$cache/$2" ] || continue
    du -sk "$cache/$2" | { read -r size _ && echo "$size"; }
    break
done
"""


class Patient(Protocol):
    """The job runner, as far as effects need it."""

    job: Job
    token: Token

    @property
    def seen(self) -> fx.Seen: ...

    @property
    def driver(self) -> Driver: ...

    def observe(self, change: Callable[[fx.Seen], fx.Seen]) -> None: ...


class Machine:
    """The machine of one job's current attempt."""

    def __init__(self, shop: Shop, patient: Patient) -> None:
        self._shop, self._patient = shop, patient
        self._host: SupervisedHost | None = None  # held so that what is known of it lasts as long as the job, and no longer

    @property
    def _driver(self) -> Driver:
        return self._patient.driver

    @property
    def attempt(self) -> Attempt:
        """The attempt that the machine is for."""
        attempt = self._patient.job.attempt
        if attempt is None:
            raise InvariantBroken(f"job {self._patient.job.id}: an effect needs an attempt and there is none")
        return attempt

    async def choose_offer(self) -> None:
        """Pick one, or some, of what there is at the job's places, when it is the job's turn to rent there."""
        await self._check_models()
        found = await self._choose()
        place = self._patient.job.places[found.place]
        waited_s = await self._shop.desk.turn(self._shop.driver(place.driver, place.options), 1 + len(found.rivals))
        if waited_s > _OFFER_S:
            found = await self._choose()
        for offer in (found.offer, *found.rivals):
            self._shop.market.take(offer.id)  # only now: who waits for a turn keeps nobody from an offer
        self._patient.observe(lambda seen: replace(seen, offer=found.offer, rivals=found.rivals, place=found.place))

    async def _check_models(self) -> None:
        """Make sure that what the steps will fetch from a model hub can be had."""
        job = self._patient.job
        if job.plan.models:
            await self._shop.models.check(job, rents=any(map(self._rents, job.places)))

    def _rents(self, place: Place) -> bool:
        try:
            return not self._shop.driver(place.driver, place.options).abilities.borrowed
        except UsageError:  # told when it is asked for offers; another place may do
            return False

    async def _choose(self) -> Choice:
        return await choose(self._shop, self._patient.job, self._patient.seen)

    async def create(self, label: str, number: int) -> None:
        """Rent one of the offers that were saved: one request."""
        attempt = self.attempt
        offers = (attempt.offer, *attempt.rivals)
        try:
            if (offer := offers[number]) is None:
                raise InvariantBroken(f"{label}: a machine is to be rented and no offer was saved")
            made = await self._driver.create(offer, self._spec(label, number), label)
            self._patient.observe(lambda seen: replace(seen, created={**seen.created, number: made}))
        except Permanent:
            self._patient.observe(lambda seen: replace(seen, refused=seen.refused | {number}))
            raise
        except (Transient, UsageError):
            self._patient.observe(lambda seen: replace(seen, unsent=seen.unsent | {number}))
            raise
        finally:
            answered_at = self._shop.clock.now()
            self._patient.observe(lambda seen: replace(seen, creating=seen.creating - {number}, answered_at=answered_at))

    def _spec(self, label: str, number: int) -> Spec:
        """Return what to put on the machine, and until when the request may be sent at all.

        Long after the intent was saved it may not: this process was paused, or waited for its turn, and others may have given it up.
        """
        policy, job = self._shop.policy, self._patient.job
        spec = Spec(image=job.plan.image, disk_gb=self.needs.disk_gb, until=switched_off_at(job, policy))
        asked_at = self.attempt.requested_at
        if asked_at is None or self._driver.abilities.borrowed:
            return spec
        # A race's later requests have to wait their turn; what another worker allows for them is still more.
        turn_s = min(number * self._driver.abilities.rents_every_s, policy.lag_margin_s * 0.4)
        not_after, clock = asked_at + timedelta(seconds=policy.lag_margin_s / 2 + turn_s), self._shop.clock
        if clock.now() > not_after:
            raise Transient(f"{label}: too much time passed before the request to rent could be sent: not sent")
        return replace(spec, left_s=lambda: (not_after - clock.now()).total_seconds())

    @property
    def needs(self) -> Resources:
        """What the machine must have."""
        return needs(self._patient.job.plan, self._patient.job.place)

    def _instance(self, instance_id: str) -> Instance:
        seen = self._patient.seen
        known = (*(seen.instances or ()), *filter(None, [self.attempt.instance]), *seen.created.values(), *(seen.traced or ()))
        found = next((instance for instance in known if instance.id == instance_id), None)
        return found or Instance(id=instance_id, label=self.attempt.label)  # not listed any more: the id is all it takes

    async def find_instance(self, label: str) -> None:
        """List what carries the attempt's label."""
        job, seen = self._patient.job, self._patient.seen
        began = max(seen.since, job.since or seen.since)
        look = await self._shop.listing(self._driver).since(new_enough(seen.instances_at, began, self._shop.clock.now()))
        self._patient.observe(lambda seen: listed(seen, self._patient.job, look.by_label.get(label, ()), look.asked_at))

    async def trace(self, label: str) -> None:
        """Look the requests up in the provider's records, which know also what no listing shows."""
        attempt, looked_at = self.attempt, self._shop.clock.now()
        if not isinstance(self._driver, Recorder) or attempt.requested_at is None:
            raise InvariantBroken(f"{label}: {self._driver.name} is asked for records and keeps none")
        found: dict[str, Instance] = {}
        for offer in filter(None, (attempt.offer, *attempt.rivals)):
            for one in await self._driver.recorded(offer, label, attempt.requested_at):
                found[one.id] = replace(one, label=label)
        self._patient.observe(lambda seen: replace(seen, traced=tuple(found.values()), traced_at=looked_at))

    async def guard(self, instance_id: str, until: datetime) -> None:
        """Let the provider end an instance by itself some time."""
        await self._driver.guard(self._instance(instance_id), until)
        self._patient.observe(lambda seen: replace(seen, guarded={**seen.guarded, instance_id: until}))

    async def bid(self, price: Decimal) -> None:
        """Bid for the machine what was saved."""
        instance = self.attempt.instance
        if instance is None or not isinstance(self._driver, Bidder):
            raise InvariantBroken(f"{self.attempt.label}: {self._driver.name} has nothing to bid for")
        await self._driver.bid(instance, price)
        self._patient.observe(lambda seen: replace(seen, bid=price))

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
            self._check(facts, host.transport.address, held=await self._held(host))
        if self.needs.gpus and not self._driver.abilities.borrowed:
            facts = replace(facts, cuda=await self._check_cuda(host))
        if self._patient.job.plan.health:
            await self._check_health(host, self._patient.job.plan.health)
        self._patient.observe(lambda seen: replace(seen, host=facts))

    async def _held(self, host: SupervisedHost) -> int:
        """Return how much of the models that the steps would fetch is on the host from jobs before, bytes: it needs no room anymore."""
        held = 0
        for model in self._patient.job.plan.models:
            done = await host.transport.run(["sh", "-c", _HELD, "sh", host.root, f"models--{model.name.replace('/', '--')}"])
            held += min(model.size, sum(1024 * int(size) for size in done.stdout.split() if size.isdigit() and len(size) < 16))
        return held

    def _check(self, facts: HostFacts, address: str, *, held: int = 0) -> None:
        wanted = self.needs
        disk_gb = max(0.0, wanted.disk_gb - held / 10**9) if wanted.disk_gb else 0
        lacks = [
            f"{what}: {there:g} there, {need:g} needed"
            for what, there, need in (
                ("GPUs", len(facts.gpus), wanted.gpus),
                ("GPU memory (GB)", min(facts.gpu_mem_mib, default=0) * 2**20 / 10**9, wanted.vram_gb),
                ("free disk (GB)", facts.disk_free / 10**9, disk_gb),
                ("memory (GB)", facts.mem_total / 10**9, wanted.ram_gb),
            )
            if there < need
        ]
        if lacks:
            raise HostLacks(f"{address} cannot run {self._patient.job.plan.tool}: {'; '.join(lacks)}")

    async def _check_cuda(self, host: SupervisedHost) -> str:
        """Make sure that programs can use the GPUs of a machine that we pay for; where that cannot be tried nvidia-smi is believed."""
        cuda, wanted = await try_cuda(host.transport), self.needs.gpus
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
        accepted_at = self._shop.clock.now()
        self._patient.observe(lambda seen: replace(seen, destroyed={**seen.destroyed, instance_id: accepted_at}))
