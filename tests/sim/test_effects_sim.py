"""Single effects of the real performer in a simulated world: what a paused or poorer worker may not do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from remote_trainer import effects as fx
from remote_trainer.errors import Ambiguous, ConfigError, HostWiped, Permanent, Transient
from remote_trainer.lifecycle import Moment, decide
from remote_trainer.model import SCHEMA, HostFacts, Instance, Job, Lease, Offer, Token
from remote_trainer.ports import StepSpec
from remote_trainer.testing.sim.crew import POLICY, Process
from remote_trainer.testing.sim.faults import NOTHING, Profile
from remote_trainer.testing.sim.life import a_job
from remote_trainer.testing.sim.loop import EPOCH, VirtualLoop
from remote_trainer.testing.sim.world import World
from remote_trainer.worker.perform import Performer
from remote_trainer.worker.runner import JobRunner

Act = Callable[[World, JobRunner, Performer], Awaitable[None]]


def lived(spool: Path, borrowed: bool, act: Act, **seen: Any) -> None:
    """Let a job get as far as these facts bring it, and act as the worker that has just taken it."""
    loop = VirtualLoop()  # type: ignore[abstract]
    world = World(0, Profile(name="one", about="", faults=NOTHING, share=1, borrowed=borrowed), loop)

    async def run() -> None:
        process = Process(world, "w1", spool, older=False)
        driver = process.shop.driver("sim", {})
        job: Job = a_job(world, 1)
        step = replace(job.plan.steps[0], secrets=("HF_TOKEN",))
        job = replace(job, plan=replace(job.plan, steps=(step, *job.plan.steps[1:]), required_secrets=("HF_TOKEN",)))
        facts = fx.Seen(since=EPOCH, **seen)
        moment = Moment(seen=facts, now=EPOCH, policy=POLICY, abilities=driver.abilities, deployment="sim")
        while (after := decide(job, moment).job) != job:
            job = after
        world.store.submit(job)
        if world.own is not None:
            world.own.installed = True
        runner = JobRunner(Lease(job=job, token=Token(1), holder="w1"), process.shop)
        await act(world, runner, Performer(process.shop, runner))

    try:
        loop.run_until_complete(run())
    finally:
        loop.close()


OFFER = Offer(id="o1", driver="sim")
LABEL = "rt-sim-j1-a1"
BORROWED = Instance(id="own", label=LABEL, borrowed=True)
RUNNING = {
    "offer": OFFER,
    "created": {0: BORROWED},
    "host": HostFacts(incarnation="own", boot="b"),
    "resume_known": True,
    "shipped": True,
}


def test_a_request_to_rent_is_not_sent_long_after_its_intent_was_saved(tmp_path: Path) -> None:
    """A process that was paused in between does not rent: others may have given the request up."""

    async def late(world: World, runner: JobRunner, performer: Performer) -> None:
        await asyncio.sleep(60)
        with pytest.raises(Transient, match="not sent"):
            await performer.perform(fx.Create(LABEL))
        assert not world.provider.rented
        assert runner.seen.answered_at is not None and runner.seen.answered_at >= EPOCH + timedelta(seconds=50)

    lived(tmp_path, False, late, offer=OFFER)


def test_a_step_that_cannot_have_its_secrets_is_not_started(tmp_path: Path) -> None:
    """A worker without a required secret says so instead of starting a step that must fail."""

    async def start(world: World, runner: JobRunner, performer: Performer) -> None:
        with pytest.raises(ConfigError, match="HF_TOKEN"):
            await performer.perform(fx.StartStep(LABEL, "s1.1"))
        assert world.own is not None and not world.own.runs

    lived(tmp_path, True, start, **RUNNING)


def test_a_running_step_is_adopted_also_by_a_worker_without_its_secrets(tmp_path: Path) -> None:
    """Whoever takes over needs no secrets for what another worker has started."""

    async def adopt(world: World, runner: JobRunner, performer: Performer) -> None:
        host = await runner._shop.host(runner.driver, BORROWED)
        await host.start(LABEL, Token(1), StepSpec(key="s1.1", script=""), incarnation="own", deadman_s=3600)
        await performer.perform(fx.StartStep(LABEL, "s1.1"))
        assert "s1.1" in runner.seen.steps

    lived(tmp_path, True, adopt, **RUNNING)


def test_outputs_of_a_disk_that_was_set_up_anew_are_not_taken_for_all_there_is(tmp_path: Path) -> None:
    """An empty listing after a success is believed only if the host still knows the step that wrote the outputs."""

    async def collect(world: World, runner: JobRunner, performer: Performer) -> None:
        assert world.own is not None
        runner.job = replace(runner.job, attempts=(replace(runner.job.attempts[0], verdict="succeeded"),))  # type: ignore[arg-type]
        world.own.wipe(0)
        world.own.installed = True  # by another job
        with pytest.raises(HostWiped, match="its disk was reset"):
            await performer.perform(fx.CollectOutputs(LABEL, final=True))

    lived(tmp_path, True, collect, **RUNNING)


def test_what_this_version_saves_is_left_alone_by_older_ones(tmp_path: Path) -> None:
    """A job that an older version began becomes a document of this one with its first save: it may hold what the older one would lose."""

    async def save(world: World, runner: JobRunner, performer: Performer) -> None:
        row = world.store.rows[runner.job.id]
        row.job = replace(row.job, schema=SCHEMA - 1)
        (lease,) = world.store.claim("w1", lease_s=10, limit=1, schema=SCHEMA)
        writing = asyncio.create_task(runner._shop.writer.run())
        await JobRunner(lease, runner._shop)._save(replace(lease.job, note="seen"))
        writing.cancel()
        assert (row.job.note, row.job.schema) == ("seen", SCHEMA)

    lived(tmp_path, True, save, **RUNNING)


def test_a_job_that_is_dropped_before_it_began_to_be_driven_can_be_taken_again(tmp_path: Path) -> None:
    """A worker whose leases ran out in the very moment of a claim does not hold the job for ever without driving it."""

    async def drop(world: World, runner: JobRunner, performer: Performer) -> None:
        worker = Process(world, "w2", tmp_path, older=False).worker
        (lease,) = world.store.claim("w2", lease_s=10, limit=1)
        worker._adopt(lease)
        task = worker._tasks[lease.job.id]
        task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0)
        assert not worker._runners

    lived(tmp_path, False, drop)


@pytest.mark.parametrize(
    ("error", "refused", "unsent"),
    [
        (Permanent("gone"), {0}, set()),
        (Transient("limited"), set(), {0}),
        (ConfigError("no key"), set(), {0}),
        (Ambiguous("no answer"), set(), set()),
    ],
)
def test_what_the_answer_to_a_request_to_rent_says(tmp_path: Path, error: Exception, refused: set[int], unsent: set[int]) -> None:
    """Refused and not sent are certain; everything else stays in doubt."""

    async def ask(world: World, runner: JobRunner, performer: Performer) -> None:
        async def fail(*_: Any) -> None:
            raise error

        runner.driver.create = fail  # type: ignore[method-assign, assignment]
        with pytest.raises(type(error)):
            await performer.perform(fx.Create(LABEL))
        assert (runner.seen.refused, runner.seen.unsent, runner.seen.creating) == (refused, unsent, set())

    lived(tmp_path, False, ask, offer=OFFER)
