"""Carries out effects: the only place where a job's wishes meet driver, host, store and object store.

Rules for editing: one method per effect, each idempotent; what was found goes into ``Seen`` through ``observe``; errors go up untouched
(``trouble.judge`` knows what they mean). No phase is decided here.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import assert_never

from remote_trainer import effects as fx
from remote_trainer.dataset.cache import Cache
from remote_trainer.errors import (
    ConfigError,
    DigestMismatch,
    HostFull,
    HostKeyMismatch,
    HostWiped,
    InvariantBroken,
    NotFound,
    RemoteTrainerError,
)
from remote_trainer.host.depot import Depot
from remote_trainer.model import (
    Checkpoint,
    Event,
    LogChunk,
    Metric,
    Plan,
    StepRun,
    StepState,
    log_stream,
)
from remote_trainer.policy import deadman_s
from remote_trainer.ports import Change, StepSpec, StepStatus
from remote_trainer.threads import to_end
from remote_trainer.worker.collect import Collector
from remote_trainer.worker.follow import LogCopy
from remote_trainer.worker.machine import Machine, Patient
from remote_trainer.worker.metrics import read_json_line
from remote_trainer.worker.news import News
from remote_trainer.worker.records import newest_checkpoint
from remote_trainer.worker.script import step_script
from remote_trainer.worker.ship import fetch_checkpoint, restore, ship
from remote_trainer.worker.shop import Shop
from remote_trainer.worker.watch import Watch
from remote_trainer.worker.way import Traffic, Way


class Performer:
    """Performs the effects of one job."""

    def __init__(self, shop: Shop, patient: Patient) -> None:
        self._shop, self._patient = shop, patient
        self._machine = Machine(shop, patient)
        self._watch = Watch(shop, patient, self._machine)
        self._news = News()
        self._refused: set[Checkpoint] = set()
        self.traffic = Traffic()

    async def perform(self, effect: fx.Effect) -> None:
        """Carry out one effect; returns when it is fulfilled."""
        try:
            async with self._watch.during(effect):
                await self._perform(effect)
        except HostKeyMismatch as error:
            raise self._machine.explain(error) from error

    async def _perform(self, effect: fx.Effect) -> None:
        match effect:
            case fx.ChooseOffer():
                await self._machine.choose_offer()
            case fx.Create(label, number):
                await self._machine.create(label, number)
            case fx.FindInstance(label):
                await self._machine.find_instance(label)
            case fx.Trace(label):
                await self._machine.trace(label)
            case fx.Guard(_, instance_id, until):
                await self._machine.guard(instance_id, until)
            case fx.Bid(_, price):
                await self._machine.bid(price)
            case fx.PrepareHost():
                await self._watch.begin()
                await self._machine.prepare_host()
            case fx.FindCheckpoint():
                await self._find_checkpoint()
            case fx.ShipInputs():
                await self._ship(effect)
            case fx.StartStep(label, key):
                await self._start_step(label, key)
            case fx.FollowStep(label, key):
                await self._follow_step(label, key)
            case fx.StopStep(label, key, grace_s):
                host = await self._machine.host()
                self._saw(key, await host.stop(label, key, self._patient.token, grace_s=grace_s))
            case fx.CollectOutputs(label, final):
                await (self._collect_finally(label) if final else self._collect_on(label))
            case fx.CleanHost(label):
                await self._machine.clean(label)
            case fx.Destroy(_, instance_id):
                await self._machine.destroy(instance_id)
            case _:
                assert_never(effect)

    # -- data

    async def _find_checkpoint(self) -> None:
        job = self._patient.job
        await self._watch.tell_leftovers()
        found = None
        if any(output.kind == "checkpoint" for output in job.plan.outputs):
            for job_id in filter(None, (job.id, job.retry_of)):
                found = found or await newest_checkpoint(self._shop.objects, job.tenant, job_id, self._refused)
        self._patient.observe(lambda seen: replace(seen, resume=found, resume_known=True))

    async def _ship(self, effect: fx.ShipInputs) -> None:
        host = await self._machine.host()
        depot = Depot(host.transport, host.root)
        way = self._way(effect.label)
        await ship(depot, effect.label, self._patient.job.inputs, Cache(self._shop.cache_dir), way=way)
        if effect.restore is not None:
            folder = self._shop.spool_dir / self._patient.job.id / f"a{self._machine.attempt.number}" / "restore"
            try:
                files = await fetch_checkpoint(self._shop.objects, effect.restore, folder)
            except (NotFound, DigestMismatch) as error:
                await self._refuse(effect.restore, error)
                return
            await restore(depot, effect.label, files, progress=way.counting())
            await to_end(lambda: shutil.rmtree(folder))
        self._patient.observe(lambda seen: replace(seen, shipped=True))

    def _way(self, label: str) -> Way:
        """Return the way to the machine. One that costs money must take what its place asks for; another one is as it is."""
        attempt, place = self._machine.attempt, self._patient.job.place
        if self._patient.driver.abilities.borrowed:
            return Way(self.traffic, label)
        machine = (attempt.offer.machine if attempt.offer else "") or label
        return Way(self.traffic, label, self._shop.uplink, machine, place.provision.min_mbit)

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
        complete = self._machine.attempt.verdict == "succeeded"
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
        key, host = self._machine.attempt.steps[-1].key, await self._machine.host()
        if (await host.status(label, [key]))[key].state is StepState.NONE:
            raise HostWiped(f"{host.transport.address} has nothing of {label} any more: its disk was reset")

    async def _collector(self, label: str) -> Collector:
        job = self._patient.job
        return Collector(
            host=await self._machine.host(),
            objects=self._shop.objects,
            outputs=job.plan.outputs,
            tenant=job.tenant,
            job_id=job.id,
            attempt=self._machine.attempt.number,
            label=label,
            spool=self._shop.spool_dir,
            count=lambda size: self.traffic.fetched.update({label: size}),
        )

    async def _copy_metrics(self, label: str) -> None:
        """Copy what the steps appended to their metrics file; whole lines only, from where the store's copy ends."""
        job = self._patient.job
        host = await self._machine.host()
        stream = f"a{self._machine.attempt.number}/{job.plan.metrics_file}"
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
        job, attempt = self._patient.job, self._machine.attempt
        run = self._run(key)
        step = next(planned for planned in job.plan.steps if planned.name == run.name)
        host = await self._machine.host()
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
        stream = log_stream(self._machine.attempt.number, key)
        offset = (await self._shop.store.log_streams(job.id)).get(stream, 0)
        tail = await self._shop.store.read_log(job.id, stream, offset=max(0, offset - 4096), limit=4096)
        copy = LogCopy(self._shop.writer, job.id, self._patient.token, stream, job.plan, self._shop.clock.now)
        host, wanted = await self._machine.host(), job.plan.metrics_file
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
        return next(run for run in self._machine.attempt.steps if run.key == key)
