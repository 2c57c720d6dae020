"""Single effects of the real performer in a simulated world: what a paused or poorer worker may not do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from remote_trainer import effects as fx
from remote_trainer.errors import ConfigError, Transient
from remote_trainer.lifecycle import Moment, decide
from remote_trainer.model import HostFacts, Instance, Job, Lease, Offer, Token
from remote_trainer.ports import StepSpec
from remote_trainer.testing.sim.faults import CALM
from remote_trainer.testing.sim.loop import EPOCH, VirtualLoop
from remote_trainer.testing.sim.ports import SimHost
from remote_trainer.testing.sim.store import SimStore
from remote_trainer.testing.sim.world import World
from remote_trainer.worker.perform import Performer
from remote_trainer.worker.runner import JobRunner
from tests.sim.crew import POLICY, Process, a_job


def lived(borrowed: bool, act: Callable[[World, JobRunner, Performer], Awaitable[None]], **seen: Any) -> None:
    """Let a job get as far as these facts bring it, and act as the worker that has just taken it."""
    loop = VirtualLoop()
    world = World(0, CALM, borrowed=borrowed)

    async def run() -> None:
        process = Process(world, SimStore(lambda: world.now, world.saved), "w1")
        job: Job = a_job(world)
        step = replace(job.plan.steps[0], secrets=("HF_TOKEN",))
        job = replace(job, plan=replace(job.plan, steps=(step, *job.plan.steps[1:]), required_secrets=("HF_TOKEN",)))
        facts = fx.Seen(since=EPOCH, **seen)
        moment = Moment(seen=facts, now=EPOCH, policy=POLICY, abilities=process.driver.abilities, deployment="sim")
        while (after := decide(job, moment).job) != job:
            job = after
        runner = JobRunner(Lease(job=job, token=Token(1), holder="w1"), process.shop, process.driver)  # type: ignore[arg-type]
        await act(world, runner, Performer(process.shop, process.driver, runner))  # type: ignore[arg-type]

    try:
        loop.run_until_complete(run())
    finally:
        loop.close()


OFFER = Offer(id="o1", driver="sim")
LABEL = "rt-sim-j1-a1"
RUNNING = {
    "offer": OFFER,
    "created": Instance(id="own", label=LABEL, borrowed=True),
    "host": HostFacts(incarnation="own", boot="b"),
    "resume_known": True,
    "shipped": True,
}


def test_a_request_to_rent_is_not_sent_long_after_its_intent_was_saved() -> None:
    """A process that was paused in between does not rent: others may have given the request up."""

    async def late(world: World, runner: JobRunner, performer: Performer) -> None:
        await asyncio.sleep(60)
        with pytest.raises(Transient, match="not sent"):
            await performer.perform(fx.Create(LABEL))
        assert not world.rented
        assert runner.seen.answered_at is not None and runner.seen.answered_at >= EPOCH + timedelta(seconds=50)

    lived(False, late, offer=OFFER)


def test_a_step_that_cannot_have_its_secrets_is_not_started() -> None:
    """A worker without a required secret says so instead of starting a step that must fail."""

    async def start(world: World, runner: JobRunner, performer: Performer) -> None:
        with pytest.raises(ConfigError, match="HF_TOKEN"):
            await performer.perform(fx.StartStep(LABEL, "s0.1"))
        assert not world.own.runs

    lived(True, start, **RUNNING)


def test_a_running_step_is_adopted_also_by_a_worker_without_its_secrets() -> None:
    """Whoever takes over needs no secrets for what another worker has started."""

    async def adopt(world: World, runner: JobRunner, performer: Performer) -> None:
        host = SimHost(performer._driver._line, RUNNING["created"])  # type: ignore[attr-defined,arg-type]
        await host.start(LABEL, Token(1), StepSpec(key="s0.1", script=""), incarnation="own", deadman_s=0)
        await performer.perform(fx.StartStep(LABEL, "s0.1"))
        assert "s0.1" in runner.seen.steps

    lived(True, adopt, **RUNNING)
