"""Every worker dies in some phase of a job, and none ever comes back: the account at the simulated Vast.ai ends empty all the same.

Two nets hold then, each for itself: the provider's own scheduler, and the watchman on the machine. What neither can reach is said here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

import pytest

from remote_trainer.model import Limits
from remote_trainer.testing.sim.crew import POLICY, Crew
from remote_trainer.testing.sim.faults import NOTHING, Profile
from remote_trainer.testing.sim.life import a_job
from remote_trainer.testing.sim.loop import VirtualLoop
from remote_trainer.testing.sim.vastmachine import Watched
from remote_trainer.testing.sim.vastservice import OURS, Service
from remote_trainer.testing.sim.vastworker import VastProcess
from remote_trainer.testing.sim.vastworld import VastWorld
from remote_trainer.testing.vast.routes import Request

FORSAKEN = Profile(name="forsaken", about="", faults=NOTHING, share=0, vastai=True, nets=True)
HOUR_S = 3600.0
OVERTIME_H = POLICY.reap_overtime_s / HOUR_S
LAST_H = 1.0  # what was never guarded ends itself so long after that
PRICE = Decimal("0.1")  # an hour of the dearest offer, with its disk
UNGUARDED = ("rented, nobody has heard of it", "rented, not guarded")
LIMITS = Limits(max_hours=1.5, max_cost=Decimal("0.50"))


class Lost(Exception):
    """A request that never arrives: whoever sent it is dead."""


@dataclass(frozen=True, slots=True)
class Point:
    """When all workers die: at a request before it arrives, at a line of the world's story, or at an event of the service."""

    request: Callable[[VastWorld, Request], bool] = lambda world, request: False
    line: str = "\0"


def _rents(world: VastWorld, request: Request) -> bool:
    return request.method == "PUT" and "/asks/" in request.path


def _schedules(world: VastWorld, request: Request) -> bool:
    return request.method == "POST" and "schedule_job" in request.path


def _is_guarded(world: VastWorld, request: Request) -> bool:
    return bool(world.service.schedule.jobs)


POINTS: Mapping[str, Point] = {
    "before the request to rent": Point(request=_rents),
    "rented, nobody has heard of it": Point(line="vastai: offer"),
    "rented, not guarded": Point(request=_schedules),
    "booting": Point(request=_is_guarded),
    "transferring": Point(line="provisioning -> transferring"),
    "executing": Point(line="runs for"),
    "fetching": Point(line="executing -> fetching"),
    "releasing": Point(line="fetching -> releasing"),
    "destroyed, not seen to be gone": Point(line="vastai: 77"),
}


class Forsaken(VastWorld):
    """A calm world, up to a point."""

    point = Point()
    crew: Crew
    left = False

    def leave(self) -> None:
        if not self.left:
            self.left = True
            self.crew.leave()

    def meet(self, request: Request) -> None:
        if self.point.request(self, request) and not self.left:
            self.leave()
            raise Lost
        super().meet(request)

    def say(self, text: str) -> None:
        super().say(text)
        if self.point.line in text:
            self.leave()


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of it."""

    left: int  # instances of ours
    hours: float  # from the death of all until the last was gone
    cost: Decimal
    strangers: int


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def forsake(point: Point, spool: Path, *, patience_s: float = 8 * HOUR_S, back: bool = False, boots: bool = True) -> Ended:
    """Live until the point, and on without anybody; with `back` somebody comes at last."""
    loop = VirtualLoop()  # type: ignore[abstract]
    world = Forsaken(1, FORSAKEN, loop)
    world.point = point

    async def live() -> Ended:
        world.crew = Crew(world, spool, VastProcess)
        if not boots:
            world.service.faults.arm("boot-forever", label=OURS)
        job = a_job(world, 1)
        world.store.submit(replace(job, limits=LIMITS, inputs=(), plan=replace(job.plan, steps=job.plan.steps[-1:])))
        world.crew.hire()
        while not world.left:
            await asyncio.sleep(1)
        since = world.now
        await _until_empty(world, patience_s)
        if back:
            world.crew.hire()
            await _until_empty(world, HOUR_S)
        there = [number for number in world.service.strangers if number in world.service.live]
        world.service.tick()
        return Ended(len(_ours(world)), (world.now - since) / HOUR_S, world.service.cost(OURS), len(there))

    try:
        return loop.run_until_complete(live())
    finally:
        loop.close()


def _ours(world: VastWorld) -> list[int]:
    return [contract.id for contract in world.service.live.values() if contract.label.startswith(OURS)]


async def _until_empty(world: VastWorld, patience_s: float) -> None:
    ends = world.now + patience_s
    while world.now < ends and _ours(world):
        await asyncio.sleep(10)


def _no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Service, "_fire", lambda self, job: None)


def _nobody_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watched, "leave", lambda self: False)
    monkeypatch.setattr(Watched, "_look", lambda self: None)
    monkeypatch.setattr(Watched, "_last_resort", lambda self, start: None)


@pytest.mark.fault("nobody-speaks")
@pytest.mark.parametrize("name", POINTS)
def test_the_account_ends_empty_whenever_all_workers_die_for_good(name: str, tmp_path: Path) -> None:
    """Nothing of ours is left, nothing of strangers' is touched, and no more is paid than the limits and four hours more."""
    ended = forsake(POINTS[name], tmp_path)
    assert (ended.left, ended.strangers) == (0, 3)
    assert ended.hours <= LIMITS.max_hours + OVERTIME_H + LAST_H + 0.05
    assert ended.cost <= min(PRICE * Decimal(LIMITS.max_hours + OVERTIME_H + LAST_H + 0.05), LIMITS.max_cost)


@pytest.mark.fault("nobody-speaks")
@pytest.mark.parametrize("name", POINTS)
def test_the_machine_alone_ends_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should the provider's scheduler never act, what runs on the machine sees to its end, unless it never ran."""
    _no_scheduler(monkeypatch)
    assert forsake(POINTS[name], tmp_path).left == 0


@pytest.mark.fault("nobody-speaks")
@pytest.mark.parametrize("name", POINTS)
def test_the_scheduler_alone_ends_what_is_known(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within three hours of the limit; only between the request to rent and the call of the scheduler nobody but the machine itself can."""
    _nobody_on_the_machine(monkeypatch)
    ended = forsake(POINTS[name], tmp_path)
    assert ended.left == (1 if name in UNGUARDED else 0)
    assert ended.left or ended.hours <= LIMITS.max_hours + OVERTIME_H + 1


@pytest.mark.fault("nobody-speaks")
def test_what_nobody_heard_of_and_never_ran_is_left_until_somebody_comes_back(tmp_path: Path) -> None:
    """The one case without a net: it costs its disk alone, and the first worker that comes finds it by its label and returns it."""
    point = POINTS["rented, nobody has heard of it"]
    left = forsake(point, tmp_path, boots=False)
    assert left.left == 1
    assert left.cost < Decimal("0.02")  # eight hours of a small disk
    assert forsake(point, tmp_path, boots=False, back=True).left == 0
