"""How many requests to Vast.ai many jobs cost, and that the service's limits never refuse one of them.

With REMOTE_TRAINER_TEST_LONG=1 a hundred jobs of an hour, else a few short ones; `pytest -s` tells the figures.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

import pytest

from remote_trainer.model import Limits, Phase
from remote_trainer.policy import Policy
from remote_trainer.testing.sim import machine as machines
from remote_trainer.testing.sim.crew import Crew
from remote_trainer.testing.sim.faults import NOTHING, Profile
from remote_trainer.testing.sim.life import a_job
from remote_trainer.testing.sim.loop import VirtualLoop
from remote_trainer.testing.sim.machine import Machine, StepProcess
from remote_trainer.testing.sim.vastservice import Service
from remote_trainer.testing.sim.vastworker import VastProcess
from remote_trainer.testing.sim.vastworld import VastWorld
from remote_trainer.testing.vast.account import Limits as Refusals
from remote_trainer.testing.vast.reply import Refused
from remote_trainer.testing.vast.routes import Request
from tests.support.rig import LONG

BUSY = Profile(name="busy", about="", faults=NOTHING, share=0, vastai=True, nets=True)


class Busy(VastWorld):
    """A calm world with many offers, which counts what is asked."""

    def make_provider(self) -> Service:
        self.asked: Counter[str] = Counter()
        return Service(self, offers=150)

    def meet(self, request: Request) -> None:
        kind = "list" if "/v1/instances" in request.path else "search" if "bundles" in request.path else request.method
        self.asked[kind] += 1


@dataclass(frozen=True, slots=True)
class Cost:
    """What the jobs took."""

    asked: Counter[str]
    refused: int
    hours: float  # of jobs, from the first machine to the last job's end
    done: int


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def work(jobs: int, step_s: float, spool: Path, monkeypatch: pytest.MonkeyPatch) -> Cost:
    """Run so many jobs with steps of that length on one worker."""
    refused: list[str] = []

    def begin(self: Machine, label: str, key: str, last: bool, deadman_s: float) -> StepProcess:
        return StepProcess(label, key, self.world.now, self.world.now + step_s, 0, last, deadman_s=deadman_s)

    def check(self: Refusals, kind: str, key: int) -> None:
        try:
            kept(self, kind, key)
        except Refused:
            refused.append(kind)
            raise

    kept = Refusals.check
    monkeypatch.setattr(Refusals, "check", check)
    monkeypatch.setattr(Machine, "_begin", begin)
    monkeypatch.setattr(machines, "_CHECKPOINT_EVERY_S", 600.0)
    monkeypatch.setattr(machines, "_METRIC_EVERY_S", 60.0)
    monkeypatch.setattr("remote_trainer.testing.sim.crew.MOST_JOBS", jobs)
    monkeypatch.setattr("remote_trainer.testing.sim.crew.POLICY", Policy())
    loop = VirtualLoop()  # type: ignore[abstract]
    world = Busy(1, BUSY, loop)

    async def live() -> Cost:
        for number in range(1, jobs + 1):
            job = a_job(world, number)
            plan = replace(job.plan, steps=(replace(job.plan.steps[-1], timeout_s=0.0),))
            world.store.submit(replace(job, limits=Limits(max_hours=24, max_cost=Decimal(0)), inputs=(), plan=plan))
        Crew(world, spool, VastProcess).hire()
        await world.over.wait()
        if world.breach is not None:
            raise world.breach
        ended = [row.job for row in world.store.rows.values()]
        hours = sum((job.finished_at - job.attempts[0].started_at).total_seconds() for job in ended if job.finished_at) / 3600
        return Cost(world.asked, len(refused), hours, sum(job.phase is Phase.DONE for job in ended))

    try:
        return loop.run_until_complete(live())
    finally:
        loop.close()


@pytest.mark.timeout(1800 if LONG else 900)
def test_no_request_of_many_jobs_is_refused_for_coming_too_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs that come and end together keep to the limits among themselves; while they run, one listing does for all of them."""
    count, step_s = (100, 3600.0) if LONG else (6, 600.0)
    cost = work(count, step_s, tmp_path, monkeypatch)
    assert (cost.done, cost.refused) == (count, 0)
    while_running = step_s / Policy().instance_poll_s * (1 + count // 25)  # 25 instances a page
    around = 40 * count  # boots and ends: looked for every two seconds, for all at once
    assert cost.asked.total() <= while_running + around
    print(cost.asked, f"{cost.asked.total() / cost.hours:.1f} requests for each hour of a job")
