"""Carries out effects: the only place where a job's wishes meet driver, host, store and object store.

Rules for editing: one method per effect, each idempotent; what was found goes into ``Seen`` through ``observe``; errors go up untouched
(``trouble.judge`` knows what they mean). No phase is decided here.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Protocol, assert_never

from remote_trainer import effects as fx
from remote_trainer import log
from remote_trainer.dataset.cache import Cache
from remote_trainer.errors import (
    ConfigError,
    DigestMismatch,
    HostFull,
    HostLacks,
    HostUnreachable,
    HostWiped,
    InvariantBroken,
    NoCapacity,
    NotFound,
    Permanent,
    RemoteTrainerError,
    Transient,
)
from remote_trainer.host.client import SupervisedHost
from remote_trainer.host.depot import Depot
from remote_trainer.lifecycle import listed
from remote_trainer.model import (
    Attempt,
    Checkpoint,
    Event,
    HostFacts,
    Instance,
    Job,
    LogChunk,
    Metric,
    Plan,
    StepRun,
    StepState,
    Token,
    log_stream,
)
from remote_trainer.policy import choose_offer, deadman_s, estimate, fits
from remote_trainer.ports import Change, Driver, Spec, StepSpec, StepStatus
from remote_trainer.worker.collect import Collector
from remote_trainer.worker.follow import LogCopy
from remote_trainer.worker.metrics import read_json_line
from remote_trainer.worker.news import News
from remote_trainer.worker.records import newest_checkpoint
from remote_trainer.worker.script import step_script
from remote_trainer.worker.ship import fetch_checkpoint, restore, ship
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


class Performer:
    """Performs the effects of one job."""

    def __init__(self, shop: Shop, driver: Driver, patient: Patient) -> None:
        self._shop, self._driver, self._patient = shop, driver, patient
        self._news = News()
        self._refused: set[Checkpoint] = set()

    async def perform(self, effect: fx.Effect) -> None:
        """Carry out one effect; returns when it is fulfilled."""
        match effect:
            case fx.ChooseOffer():
                await self._choose_offer()
            case fx.Create(label):
                await self._create(label)
            case fx.FindInstance(label):
                await self._find_instance(label)
            case fx.Guard(_, until):
                await self._guard(until)
            case fx.PrepareHost():
                await self._prepare_host()
            case fx.FindCheckpoint():
                await self._find_checkpoint()
            case fx.ShipInputs():
                await self._ship(effect)
            case fx.StartStep(label, key):
                await self._start_step(label, key)
            case fx.FollowStep(label, key):
                await self._follow_step(label, key)
            case fx.StopStep(label, key, grace_s):
                host = await self._host()
                self._saw(key, await host.stop(label, key, self._patient.token, grace_s=grace_s))
            case fx.CollectOutputs(label, final):
                await (self._collect_finally(label) if final else self._collect_on(label))
            case fx.CleanHost(label):
                await self._clean(label)
            case fx.Destroy(_, instance_id):
                await self._driver.destroy(self._instance(instance_id))
            case _:
                assert_never(effect)

    # -- the machine

    async def _choose_offer(self) -> None:
        job = self._patient.job
        offers = await self._driver.offers(job.plan.resources)
        suitable = [offer for offer in offers if not fits(offer, job.plan.resources, job.limits)]
        avoid = frozenset[str]() if self._driver.abilities.borrowed else await self._shop.market.avoid(job)
        dice = random.Random(self._attempt().label).random()  # noqa: S311 - spreads workers over offers, keeps no secret
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

    async def _create(self, label: str) -> None:
        offer, resources = self._attempt().offer, self._patient.job.plan.resources
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
        asked_at = self._attempt().requested_at
        late_s = (self._shop.clock.now() - asked_at).total_seconds() if asked_at and not self._driver.abilities.borrowed else 0.0
        if late_s > self._shop.policy.lag_margin_s / 2:
            raise Transient(f"{label}: {late_s:.0f} s passed before the request to rent could be sent: not sent")

    def _instance(self, instance_id: str) -> Instance:
        seen = self._patient.seen
        known = (*(seen.instances or ()), *filter(None, [self._attempt().instance, seen.created]))
        found = next((instance for instance in known if instance.id == instance_id), None)
        return found or Instance(id=instance_id, label=self._attempt().label)  # not listed any more: the id is all it takes

    async def _find_instance(self, label: str) -> None:
        asked_at = self._shop.clock.now()
        found = tuple(one for one in await self._driver.instances(label) if one.label == label)
        self._patient.observe(lambda seen: listed(seen, self._patient.job, found, asked_at))

    async def _guard(self, until: datetime) -> None:
        instance = self._attempt().instance
        if instance is None:
            raise InvariantBroken(f"job {self._patient.job.id}: an instance is to be guarded and there is none")
        await self._driver.guard(instance, until)
        self._patient.observe(lambda seen: replace(seen, guarded=True))

    async def _host(self) -> SupervisedHost:
        attempt, instance = self._attempt(), self._attempt().instance
        if instance is None:
            raise InvariantBroken(f"job {self._patient.job.id}: an effect needs a host and there is no instance")
        moved_to = self._instance(instance.id).address or instance.address  # a machine may come back at another address
        try:
            return await self._shop.host(self._driver, replace(instance, address=moved_to))
        except (ConfigError, Permanent) as error:
            if attempt.facts is None:
                raise
            # Our key is missing or refused: that says nothing about what runs on a machine that we have been on.
            raise HostUnreachable(f"instance {instance.id} cannot be reached from here: {error}") from error

    async def _prepare_host(self) -> None:
        host = await self._host()
        facts = await self._shop.facts(host)
        try:
            self._check(facts, host.transport.address)
        except HostLacks:
            facts = await self._shop.facts(host, anew=True)  # somebody may have made room just now
            self._check(facts, host.transport.address)
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

    async def _check_health(self, host: SupervisedHost, script: str) -> None:
        done = await host.transport.run(["sh", "-c", script], timeout_s=_HEALTH_TIMEOUT_S)
        if done.code != 0:
            words = (done.stderr or done.stdout)[-500:].decode("utf-8", "replace").strip()
            raise HostLacks(f"{host.transport.address} failed the tool's health check (exit {done.code}): {words}")

    async def _clean(self, label: str) -> None:
        host = await self._host()
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

    # -- data

    async def _find_checkpoint(self) -> None:
        job = self._patient.job
        found = None
        if any(output.kind == "checkpoint" for output in job.plan.outputs):
            for job_id in filter(None, (job.id, job.retry_of)):
                found = found or await newest_checkpoint(self._shop.objects, job.tenant, job_id, self._refused)
        self._patient.observe(lambda seen: replace(seen, resume=found, resume_known=True))

    async def _ship(self, effect: fx.ShipInputs) -> None:
        host = await self._host()
        depot = Depot(host.transport, host.root)
        await ship(depot, effect.label, self._patient.job.inputs, Cache(self._shop.cache_dir))
        if effect.restore is not None:
            folder = self._shop.spool_dir / self._patient.job.id / f"a{self._attempt().number}" / "restore"
            try:
                files = await fetch_checkpoint(self._shop.objects, effect.restore, folder)
            except (NotFound, DigestMismatch) as error:
                await self._refuse(effect.restore, error)
                return
            await restore(depot, effect.label, files)
            await asyncio.to_thread(shutil.rmtree, folder)
        self._patient.observe(lambda seen: replace(seen, shipped=True))

    async def _refuse(self, checkpoint: Checkpoint, error: RemoteTrainerError) -> None:
        """A checkpoint was there when it was looked for, and cannot be read: the next older one will do, or the beginning."""
        self._refused.add(checkpoint)
        message = (
            f"checkpoint {checkpoint.unit} of attempt {checkpoint.attempt} cannot be used, an older one is looked for: {error}"
        )
        event = Event(at=self._shop.clock.now(), kind="fault", message=message)
        await self._shop.writer.save(Change(job_id=self._patient.job.id, token=self._patient.token, events=(event,)))
        self._patient.observe(lambda seen: replace(seen, resume=None, resume_known=False))

    async def _collect_on(self, label: str) -> None:
        collector = await self._collector(label)
        while True:
            new = await self._news.wait()
            if new.metrics:
                await self._copy_metrics(label)
            if new.outputs:
                self._saw_checkpoint((await collector.collect(final=False)).checkpoint)
            self._news.collected(new)
            self._works(fx.CollectOutputs)
            await self._shop.clock.sleep(self._shop.collect_interval_s)

    async def _collect_finally(self, label: str) -> None:
        await self._copy_metrics(label)
        complete = self._attempt().verdict == "succeeded"
        result = await (await self._collector(label)).collect(final=True, complete=complete)
        if result.manifest is None:
            raise InvariantBroken("a final collect returned no manifest")
        if complete:
            await self._check_disk(label)
        collected = fx.Collected(manifest=result.manifest, missing=tuple(result.missing))
        self._saw_checkpoint(result.checkpoint)
        self._patient.observe(lambda seen: replace(seen, collected=collected))

    async def _check_disk(self, label: str) -> None:
        """Make sure that what was listed is what the steps left: an empty disk that was set up anew, by another job, lists nothing."""
        key, host = self._attempt().steps[-1].key, await self._host()
        if (await host.status(label, [key]))[key].state is StepState.NONE:
            raise HostWiped(f"{host.transport.address} has nothing of {label} any more: its disk was reset")

    async def _collector(self, label: str) -> Collector:
        job = self._patient.job
        return Collector(
            host=await self._host(),
            objects=self._shop.objects,
            outputs=job.plan.outputs,
            tenant=job.tenant,
            job_id=job.id,
            attempt=self._attempt().number,
            label=label,
            spool=self._shop.spool_dir,
        )

    async def _copy_metrics(self, label: str) -> None:
        """Copy what the steps appended to their metrics file; whole lines only, from where the store's copy ends."""
        job = self._patient.job
        host = await self._host()
        stream = f"a{self._attempt().number}/{job.plan.metrics_file}"
        offset = (await self._shop.store.log_streams(job.id)).get(stream, 0)
        while data := await host.read(label, job.plan.metrics_file, offset=offset):
            lines, newline, _ = data.rpartition(b"\n")
            if not newline:
                return
            at = self._shop.clock.now()
            rows = (read_json_line(line) for line in lines.split(b"\n"))
            metrics = tuple(Metric(at=at, stream=stream, values=values) for values in rows if values)
            chunk = LogChunk(stream=stream, offset=offset, data=lines + newline)
            await self._shop.writer.save(Change(job_id=job.id, token=self._patient.token, logs=(chunk,), metrics=metrics))
            offset += len(chunk.data)

    # -- steps

    async def _start_step(self, label: str, key: str) -> None:
        job, attempt = self._patient.job, self._attempt()
        run = self._run(key)
        step = next(planned for planned in job.plan.steps if planned.name == run.name)
        host = await self._host()
        values, missing = self._secrets(job.plan, step.secrets)
        if missing and (known := (await host.status(label, [key]))[key]).state is not StepState.NONE:
            self._saw(key, known)  # a worker that had them has started it: it needs none of ours
            return
        if missing:
            raise ConfigError(f"{job.plan.tool} needs secrets that this worker does not have: {', '.join(missing)}")
        spec = StepSpec(key=key, script=step_script(job, attempt, step, run), secrets=values, stop_grace_s=step.stop_grace_s)
        incarnation = attempt.facts.incarnation if attempt.facts else ""
        silence_s = deadman_s(job, self._shop.clock.now())
        try:
            status = await host.start(label, self._patient.token, spec, incarnation=incarnation, deadman_s=silence_s)
        except HostWiped:
            self._shop.forget_facts(host)
            raise
        except HostFull:
            status = (await host.status(label, [key]))[key]
            if status.state in (StepState.NONE, StepState.UNKNOWN):
                raise
            # It was started while there was room: a full disk is no reason to give up what runs.
        self._saw(key, status)

    def _secrets(self, plan: Plan, names: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
        """Return the secrets that this worker has, and the names of those without which no step can run."""
        found = {name: self._shop.find_secret(name) for name in names}
        missing = [name for name in names if name in plan.required_secrets and found[name] is None]
        return {name: value for name, value in found.items() if value is not None}, missing

    async def _follow_step(self, label: str, key: str) -> None:
        job = self._patient.job
        stream = log_stream(self._attempt().number, key)
        offset = (await self._shop.store.log_streams(job.id)).get(stream, 0)
        tail = await self._shop.store.read_log(job.id, stream, offset=max(0, offset - 4096), limit=4096)
        copy = LogCopy(self._shop.writer, job.id, self._patient.token, stream, job.plan, self._shop.clock.now)
        host, wanted = await self._host(), job.plan.metrics_file
        async with host.follow(label, key, offset, metrics=wanted, every_s=self._shop.collect_interval_s) as follow:
            self._works(fx.FollowStep)
            status = await copy.run(follow, offset, tail, self._news.hear)
        self._patient.observe(lambda seen: seen.with_step(key, status, drained=True))

    def _works(self, kind: type[fx.Effect]) -> None:
        """An effect that lasts as long as the step does its work again: earlier trouble is over, the next is a first one."""
        if kind in self._patient.seen.troubles:
            self._patient.observe(lambda seen: seen.with_trouble(kind, None))

    def _saw(self, key: str, status: StepStatus) -> None:
        if status.state is not StepState.UNKNOWN:
            self._patient.observe(lambda seen: seen.with_step(key, status))

    def _saw_checkpoint(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is not None:
            self._patient.observe(lambda seen: replace(seen, checkpoint=checkpoint))

    def _run(self, key: str) -> StepRun:
        return next(run for run in self._attempt().steps if run.key == key)

    def _attempt(self) -> Attempt:
        attempt = self._patient.job.attempt
        if attempt is None:
            raise InvariantBroken(f"job {self._patient.job.id}: an effect needs an attempt and there is none")
        return attempt
