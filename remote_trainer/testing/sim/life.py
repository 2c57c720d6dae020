"""One life: the world of a seed, the jobs in it, the workers that drive them; from submit until every job has ended and nothing is left.

Rules for editing: everything that happens follows from the seed and the profile.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from remote_trainer.model import (
    SCHEMA,
    Chunk,
    Input,
    Job,
    JobId,
    Limits,
    Output,
    OutputKind,
    Place,
    Plan,
    PlannedStep,
    Provision,
    Retries,
    Strategy,
)
from remote_trainer.testing.sim.blows import Blows
from remote_trainer.testing.sim.crew import Crew, Process
from remote_trainer.testing.sim.faults import Profile, profile_of
from remote_trainer.testing.sim.host import LAST
from remote_trainer.testing.sim.loop import EPOCH, VirtualLoop
from remote_trainer.testing.sim.vastworker import VastProcess
from remote_trainer.testing.sim.vastworld import VastBlows, VastWorld
from remote_trainer.testing.sim.world import World

#: A life must be over so long after the last fault: three attempts with all their timeouts, and the longest time a host is cut off.
PATIENCE_S = 5 * 3600.0
_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it


@dataclass(frozen=True, slots=True)
class Lived:
    """How a life went."""

    seed: int
    profile: str
    jobs: tuple[Job, ...]
    ended_s: float
    dealt: Counter[str]
    checked: Counter[str]
    trace: tuple[str, ...]
    broken: str = ""


def live(seed: int, profile: Profile | None = None, *, tell: bool = False) -> Lived:
    """Live one seed; a promise that does not hold is told in ``broken``."""
    profile = profile or profile_of(seed)
    random.seed(seed)  # the runner's jitter
    loop = VirtualLoop()  # type: ignore[abstract]  # it has what the workers use
    world = (VastWorld if profile.vastai else World)(seed, profile, loop, tell=tell)
    spool = Path(tempfile.mkdtemp(prefix="remote-trainer-sim-", dir=_MEMORY if _MEMORY.is_dir() else None))
    broken = ""
    try:
        loop.run_until_complete(_live(world, spool))
    except AssertionError as error:
        broken = str(world.breach or error)
    finally:
        loop.close()
        shutil.rmtree(spool, ignore_errors=True)
    jobs = tuple(row.job for row in world.store.rows.values())
    return Lived(seed, profile.name, jobs, loop.now, world.dealt, world.checked, tuple(world.trace or ()), broken)


async def _live(world: World, spool: Path) -> None:
    crew = Crew(world, spool, VastProcess if isinstance(world, VastWorld) else Process)
    jobs = [a_job(world, number) for number in range(1, world.dice.choice(world.profile.jobs) + 1)]
    for job in jobs:
        world.store.submit(job)
    for number in range(world.dice.choice((2, 2, 2, 3))):
        crew.hire(older=world.profile.versions and number == 1)
    blows = VastBlows(world, crew) if isinstance(world, VastWorld) else Blows(world, crew)
    blows.begin([job.id for job in jobs])
    try:
        async with asyncio.timeout(world.quiet_s + world.exodus_s + PATIENCE_S):
            await world.over.wait()
            await _nothing_left(world)
        world.check_end()
    except TimeoutError:
        row = next(row for row in world.store.rows.values() if not row.job.phase.terminal)
        raise world.broken(
            f"{row.job.id} never ends: {row.job.phase}, {row.job.note!r}, attempts {len(row.job.attempts)}"
        ) from None
    if world.breach:
        raise world.breach
    for error in world.loop.trouble:
        if isinstance(error, AssertionError):
            raise error


async def _nothing_left(world: World) -> None:
    """Wait until nothing costs money, nor can any more: with a reaper that takes a while."""
    while world.breach is None and world.profile.nets and (world.provider.alive() or world.now < world.provider.busy_until):
        world.promises.check_money()
        await asyncio.sleep(10)
    world.promises.check_money()


def a_job(world: World, number: int) -> Job:
    """Return a small job with limits that sometimes bind."""
    dice = world.dice
    retries = Retries(max=dice.choice((0, 2)), backoff_s=5)
    timeout_s = dice.choice((0.0, 0.0, 0.0, 12.0))
    steps = dice.choice((1, 1, 2))
    planned = tuple(
        PlannedStep(name=f"s{n}", run=LAST if n == steps else "true", retries=retries, timeout_s=timeout_s, stop_grace_s=10)
        for n in range(1, steps + 1)
    )
    outputs = (
        Output(name="model", kind=dice.choice((OutputKind.FINAL, OutputKind.ARTIFACT)), glob="model.bin"),
        Output(name="checkpoints", kind=OutputKind.CHECKPOINT, glob="ckpt-*", marker="done", keep=dice.choice((1, 2))),
        Output(name="samples", kind=OutputKind.ARTIFACT, glob="samples.txt"),
    )
    hours = 1.0 if world.exodus_s else 0.1 if world.doomed else dice.choice((24.0, 24.0, 24.0, 0.05))
    if world.profile.market:
        hours = min(hours, 2.0)  # one that queues waits for a machine that it can pay until then
    limits = Limits(max_hours=hours, max_cost=Decimal(dice.choice(("0", "0", "0.05"))))
    dataset = Input(name="dataset", source="d", digest="d" * 64, size=1, files=1, chunks=(Chunk(sha256="c" * 64, size=1),))
    placed = _anywhere(world) if world.profile.market else {"driver": "sim"}
    return Job(
        id=JobId(f"j{number}"),
        name=f"j{number}",
        plan=Plan(tool="t@1", parameters={}, steps=planned, outputs=outputs),
        created_at=EPOCH,
        since=EPOCH,
        inputs=(dataset,) if dice.random() < 0.5 else (),
        limits=limits,
        reserved=Decimal("0.05"),
        schema=dice.choice((SCHEMA, SCHEMA - 1)) if world.profile.versions else SCHEMA,
        **placed,
    )


def _anywhere(world: World) -> dict[str, Any]:
    """Return where a job may run, and how it gets its machines."""
    dice = world.dice
    terms = Provision(
        strategy=dice.choice(tuple(Strategy)),
        race=dice.choice((1, 1, 2, 3)),
        spot=dice.choice((True, True, False)),
        raise_bid=dice.choice((True, False)),
        max_evictions=dice.choice((0, 1, 2, 9)),
    )
    names = dice.choice((("sim",), ("sim", "lab"), ("lab", "sim"), ("sim", "sim")))
    others = tuple(Place(driver=name, provision=terms) for name in names[1:])
    return {"driver": names[0], "fallbacks": others, "provision": terms}
