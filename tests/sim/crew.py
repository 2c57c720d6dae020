"""Worker processes for the simulated world: the real runner, performer, writer and log copy over simulated ports.

Only what needs files or a shell (packing, shipping, pulling outputs) is stood in for. `live` runs one life and returns how it went.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from remote_trainer import effects as fx
from remote_trainer.errors import LeaseLost, StoreUnavailable
from remote_trainer.model import Instance, Job, JobId, Lease, Limits, Manifest, Plan, PlannedStep, Retries
from remote_trainer.policy import Policy
from remote_trainer.testing.sim.faults import Faults
from remote_trainer.testing.sim.loop import EPOCH, VirtualClock, VirtualLoop
from remote_trainer.testing.sim.ports import Line, SimDriver, SimHost, StoreLine
from remote_trainer.testing.sim.store import SimStore
from remote_trainer.testing.sim.world import World
from remote_trainer.worker.loop import Worker
from remote_trainer.worker.perform import Performer
from remote_trainer.worker.runner import JobRunner
from remote_trainer.worker.shop import Shop
from remote_trainer.worker.writer import Writer

LEASE_S = 15.0
POLICY = Policy(
    provision_timeout_s=600, transfer_timeout_s=600, fetch_timeout_s=900, fetch_partial_timeout_s=120, stop_timeout_s=300
)
#: A life must be over so long after the last fault: three attempts with all their timeouts.
PATIENCE_S = 3 * 3600.0


class SimPerformer(Performer):
    """The real one, but for files: inputs arrive after a while, outputs are kept by the host's stand-in."""

    async def _find_checkpoint(self) -> None:
        await asyncio.sleep(0.2)
        self._patient.observe(lambda seen: replace(seen, resume_known=True))

    async def _ship(self, effect: fx.ShipInputs) -> None:
        host: Any = await self._host()
        await host.bootstrap("")
        await asyncio.sleep(5)
        await host.bootstrap("")
        self._patient.observe(lambda seen: replace(seen, shipped=True))

    async def _collect_on(self, label: str) -> None:
        await asyncio.Event().wait()

    async def _collect_finally(self, label: str) -> None:
        host: Any = await self._host()
        complete = self._attempt().verdict == "succeeded"
        await host.keep(label, complete=complete)
        manifest = Manifest(job=self._patient.job.id, attempt=self._attempt().number, artifacts=(), complete=complete)
        self._patient.observe(lambda seen: replace(seen, collected=fx.Collected(manifest=manifest)))

    async def _create(self, label: str) -> None:
        requested_at = self._attempt().requested_at
        world: World = self._driver._line.world  # type: ignore[attr-defined]
        await self._driver._line.gate()  # type: ignore[attr-defined]
        late = requested_at is not None and (self._shop.clock.now() - requested_at).total_seconds() > 5
        if late and not world.faults.late_creates:
            return self._patient.observe(lambda seen: replace(seen, creating=False))  # this world has no such processes
        return await super()._create(label)


class SimShop(Shop):
    """Everything jobs share, with hosts of the simulated world."""

    async def host(self, driver: Any, instance: Instance) -> Any:
        await driver._line.gate()
        return SimHost(driver._line, instance)


class Process:
    """One worker process: claims, renews, drives; may be paused and killed at any time."""

    def __init__(self, world: World, store: SimStore, name: str) -> None:
        self.line, self.name = Line(world, name), name
        self.store = StoreLine(self.line, store)
        driver = SimDriver(self.line)
        clock = VirtualClock(world.dice.uniform(-2, 2))
        paths: Mapping[str, Any] = {"cache_dir": Path("/nowhere"), "spool_dir": Path("/nowhere")}
        self.shop = SimShop(
            store=self.store,  # type: ignore[arg-type]
            writer=Writer(self.store, clock, linger_s=0.0),  # type: ignore[arg-type]
            objects=None,  # type: ignore[arg-type]
            make_driver=lambda name, options: driver,  # type: ignore[arg-type,return-value]
            find_secret=lambda name: None,
            clock=clock,
            policy=POLICY,
            deployment="sim",
            **paths,
        )
        self.driver = driver
        self.runners: dict[JobId, JobRunner] = {}
        self.tasks: dict[JobId, asyncio.Task[None]] = {}

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.shop.writer.run())
                while True:
                    with suppress(StoreUnavailable):
                        await self._beat(group)
                    await asyncio.sleep(LEASE_S / 3)
        finally:
            for task in self.tasks.values():
                task.cancel()

    async def _beat(self, group: asyncio.TaskGroup) -> None:
        if self.runners:
            mine = {job_id: runner.token for job_id, runner in self.runners.items()}
            renewal = await self.store.renew(self.name, mine, lease_s=LEASE_S)
            for job_id in mine:
                if job_id not in renewal.held and job_id in self.tasks:
                    self.tasks[job_id].cancel()
                elif job_id in renewal.cancelling and job_id in self.runners:
                    self.runners[job_id].cancel_wished()
        else:
            for lease in await self.store.claim(self.name, lease_s=LEASE_S, limit=1):
                self.line.world.say(f"{self.name} claims with token {lease.token} in {lease.job.phase}")
                runner = self.runners[lease.job.id] = make_runner(lease, self.shop, self.driver)
                self.tasks[lease.job.id] = group.create_task(self._drive(runner))

    async def _drive(self, runner: JobRunner) -> None:
        try:
            await runner.run()
            await self.store.release({runner.job.id: runner.token})
        except (LeaseLost, StoreUnavailable):
            pass
        finally:
            self.runners.pop(runner.job.id, None)
            self.tasks.pop(runner.job.id, None)


class RealProcess(Process):
    """The whole worker as it is shipped: intake, heartbeat, self-fencing and drain too."""

    async def run(self) -> None:
        worker = Worker(self.shop, lease_s=LEASE_S, max_jobs=4, name=self.name)
        await worker.run()


def make_runner(lease: Lease, shop: Shop, driver: Any) -> JobRunner:
    runner = JobRunner(lease, shop, driver)
    runner._performer = SimPerformer(shop, driver, runner)
    return runner


@dataclass(frozen=True)
class Lived:
    """How a life went."""

    job: Job
    ended_s: float
    events: int
    saves: int
    trace: list[str]


def live(
    seed: int,
    faults: Faults,
    *,
    borrowed: bool = False,
    tell: bool = False,
    kind: type[Process] = Process,
) -> Lived:
    """Run the life of one seed; AssertionError for a promise that does not hold."""
    random.seed(seed)  # the runner's jitter
    loop = VirtualLoop()
    world = World(seed, faults, borrowed=borrowed, tell=tell)
    store = SimStore(lambda: world.now, world.saved)
    asyncio.set_event_loop(loop)
    trouble: list[BaseException] = []
    loop.set_exception_handler(lambda _, context: trouble.append(context.get("exception") or AssertionError(context["message"])))
    try:
        return loop.run_until_complete(_live(world, store, trouble, kind))
    except AssertionError as error:
        raise AssertionError("\n".join([*(world.trace or ()), f"seed {seed}: {error}"])) from error
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        with suppress(BaseException):
            loop.run_until_complete(asyncio.sleep(0))
        asyncio.set_event_loop(None)
        loop.close()


async def _live(world: World, store: SimStore, trouble: list[BaseException], kind: type[Process]) -> Lived:
    job = a_job(world)
    store.submit(job)
    crew = Crew(world, store, kind)
    crew.hire()
    crew.hire()
    chaos = [asyncio.create_task(crew.blows()), asyncio.create_task(crew.wishes(job.id))]
    if world.faults.late_creates:
        chaos.append(asyncio.create_task(reaper(world, store, job.id)))
    row = store.rows[job.id]
    while not row.job.phase.terminal:
        await asyncio.sleep(1)
        crew.check(trouble)
        if world.now > world.faults.quiet_s + PATIENCE_S:
            raise world.broken(f"the job never ends: {row.job.phase}, {row.job.note!r}, attempts {len(row.job.attempts)}")
    ended = world.now
    if world.faults.late_creates:
        await asyncio.sleep(1200)
        if left := world.alive():
            raise world.broken(f"{left[0].instance.id} costs money for ever")
    crew.check(trouble)
    _check_logs(world, row.job, row.logs)
    if len(row.events) > 300 or row.saves > 1000:
        raise world.broken(f"{len(row.events)} events and {row.saves} saves of one job")
    for task in (*chaos, *crew.all):
        task.cancel()
    return Lived(row.job, ended, len(row.events), row.saves, world.trace or [])


def a_job(world: World) -> Job:
    """Return a small job with limits that sometimes bind."""
    dice = world.dice
    retries = Retries(max=dice.choice((0, 2)), backoff_s=5)
    timeout_s = dice.choice((0.0, 0.0, 100.0))
    steps = tuple(PlannedStep(name=f"s{n}", run="true", retries=retries, timeout_s=timeout_s) for n in range(dice.choice((1, 2))))
    hours = 1.0 if world.doomed else dice.choice((24.0, 24.0, 0.2))
    limits = Limits(max_hours=hours, max_cost=Decimal(dice.choice(("0", "0", "0.05"))))
    plan = Plan(tool="t@1", parameters={}, steps=steps)
    return Job(id=JobId("j1"), name="j1", plan=plan, driver="sim", created_at=EPOCH, since=EPOCH, limits=limits)


def _check_logs(world: World, job: Job, logs: Mapping[str, bytearray]) -> None:
    """What is kept of a log is its beginning; of a run that ended by itself, all of it."""
    for attempt in job.attempts:
        for run in attempt.steps:
            there = [m.runs[attempt.label, run.key].log(world.now) for m in world.ours if (attempt.label, run.key) in m.runs]
            kept = bytes(logs.get(f"a{attempt.number}/{run.key}", b""))
            if kept and not any(log.startswith(kept) for log in there):
                raise world.broken(f"the log of {attempt.label} {run.key} is not what was printed")
            if run.state == "exited" and kept not in there:
                raise world.broken(f"bytes of the log of {attempt.label} {run.key} are lost: {len(kept)} kept")


class Crew:
    """All worker processes, and the blows dealt to the world."""

    def __init__(self, world: World, store: SimStore, kind: type[Process]) -> None:
        self.world, self.store, self._kind = world, store, kind
        self.all: list[asyncio.Task[None]] = []
        self.live: list[tuple[Process, asyncio.Task[None]]] = []

    def hire(self) -> None:
        process = self._kind(self.world, self.store, f"w{len(self.all) + 1}")
        task = asyncio.create_task(process.run())
        self.all.append(task)
        self.live.append((process, task))

    def check(self, trouble: list[BaseException]) -> None:
        """Raise what broke in the background."""
        if self.world.breach:
            raise self.world.breach
        for task in self.all:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise self.world.broken(f"a worker died: {error!r}") from error
        for error in trouble:
            if isinstance(error, AssertionError):
                raise error

    async def blows(self) -> None:
        """Deal blows until the world is quiet."""
        faults, dice = self.world.faults, self.world.dice
        if not faults.weights:
            return
        kinds, weights = zip(*faults.weights, strict=True)
        while True:
            await asyncio.sleep(dice.expovariate(1 / faults.every_s))
            if self.world.now >= faults.quiet_s:
                return
            kind = dice.choices(kinds, weights)[0]
            self.world.say(f"blow: {kind}")
            await getattr(self, f"_{kind}")()

    async def _kill(self) -> None:
        process, task = self.live.pop(self.world.dice.randrange(len(self.live)))
        process.line.paused_until = float("inf")  # nothing of it ever goes out again
        task.cancel()
        await asyncio.sleep(self.world.dice.uniform(0, 10))
        self.hire()

    async def _pause(self) -> None:
        process, _ = self.world.dice.choice(self.live)
        process.line.paused_until = self.world.now + self.world.dice.uniform(1, 60)

    async def _store_outage(self) -> None:
        self.world.store_down_until = self.world.now + self.world.dice.uniform(1, 25)

    async def _objects_outage(self) -> None:
        self.world.objects_down_until = self.world.now + self.world.dice.uniform(1, 200)

    async def _silence(self) -> None:
        if self.world.ours:
            ever = self.world.doomed and self.world.chance(0.5)
            self.world.ours[-1].silent_until = 1e9 if ever else self.world.now + self.world.dice.uniform(5, 200)

    async def _reboot(self) -> None:
        if self.world.ours:
            self.world.ours[-1].reboot()

    async def _vanish(self) -> None:
        for one in self.world.alive()[-1:]:
            one.destroyed_at = self.world.now
            one.machine.vanish()

    async def _preempt(self) -> None:
        for one in self.world.alive()[-1:]:
            one.stopped = True
            one.machine.vanish()

    async def wishes(self, job_id: JobId) -> None:
        """Cancel some jobs at some time."""
        if self.world.dice.random() < 0.3:
            await asyncio.sleep(self.world.dice.uniform(0, 600))
            if self.store.request_cancel(job_id):
                self.world.cancelled_at = self.world.now
                self.world.say("the user cancels")


async def reaper(world: World, store: SimStore, job_id: JobId) -> None:
    """Return what no live attempt claims."""
    while True:
        await asyncio.sleep(60)
        job = store.rows[job_id].job
        for one in world.alive():
            if job.phase.terminal or job.attempt is None or one.instance.label != job.attempt.label:
                world.say(f"reaper: {one.instance.id} ({one.instance.label})")
                one.destroyed_at = world.now
                one.machine.vanish()
