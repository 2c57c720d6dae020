"""`kill -9` of the worker at any moment: the next one goes on, nothing is started twice, no byte is lost or doubled."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from pathlib import Path

import pytest

from remote_trainer.model import Job, Phase
from remote_trainer.testing.netfault import Link
from tests.support.evidence import Tally
from tests.support.rig import LONG, Rig, heavy, installation, wait_for
from tests.support.sshd import SshdServer


def _dataset(folder: Path, *, mb: int) -> Path:
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.bin").write_bytes(os.urandom(mb * 250_000))
    return folder


# What makes a phase last, so that the kill falls into it: a narrow line for data, a long one for short dialogues.
_SLOW: dict[Phase, dict[str, float]] = {
    Phase.PROVISIONING: {"rtt_s": 0.2},
    Phase.TRANSFERRING: {"bytes_per_s": 2_000_000},
    Phase.EXECUTING: {"rtt_s": 0.15},
    Phase.FETCHING: {"bytes_per_s": 4_000_000},
    Phase.RELEASING: {"rtt_s": 0.5},
}


@pytest.mark.fault("worker-killed")
@pytest.mark.parametrize("phase", _SLOW)
async def test_a_killed_worker_is_replaced(own_sshd: SshdServer, tmp_path: Path, phase: Phase) -> None:
    """A worker killed in any phase costs a job nothing: it ends DONE, each step started once, log and artifacts exact."""
    folders = (tmp_path / f"data{number}" for number in itertools.count())
    with Link(own_sshd.host, own_sshd.port) as link:
        async with installation(tmp_path / "rig", own_sshd) as rig:
            rig.worker()
            while not await _killed_in(rig, link, phase, next(folders)):
                pass  # we looked too late


async def _killed_in(rig: Rig, link: Link, phase: Phase, folder: Path) -> bool:
    """Kill the worker of a new job, whose end must be exact; tell whether the job was in that phase."""
    if phase in (Phase.PROVISIONING, Phase.TRANSFERRING, Phase.EXECUTING):
        link.set(**_SLOW[phase])
    data = _dataset(folder, mb=4 if phase is Phase.TRANSFERRING else 1)
    job = await rig.submit(host_port=link.port, dataset=data, kb=4000 if phase is Phase.FETCHING else 64)
    if phase in (Phase.FETCHING, Phase.RELEASING):
        await rig.log_has(job, 1)
        link.set(**_SLOW[phase])
    await rig.reached(job, phase)
    rig.workers[-1].kill()
    there = (await rig.app.store.get(job.id)).phase is phase
    link.set()
    rig.worker()
    await rig.check(await rig.ended(job))
    return there


@pytest.mark.fault("worker-killed")
@heavy
async def test_kills_at_any_moment_of_a_step(own_sshd: SshdServer, tmp_path: Path) -> None:
    """While a step runs, any number of workers may be killed, with bytes of its log on their way."""
    async with installation(tmp_path / "rig", own_sshd) as rig:
        worker = rig.worker()
        job = await rig.submit(lines=120, delay_s=0.05, flood_kb=2000)
        for size in (1, 1_000_000, 2_048_000, 2_048_900):
            await rig.log_has(job, size)
            worker.kill()
            worker = rig.worker()
        await rig.check(await rig.ended(job))


@pytest.mark.fault("worker-killed")
async def test_kills_at_random(own_sshd: SshdServer, tmp_path: Path) -> None:
    """Whenever workers die and however many jobs they had, each job ends DONE and exact."""
    seed = int(os.environ.get("RT_SEED", "7"))
    rounds, count = (40, 16) if LONG else (8, 6)
    print(f"RT_SEED={seed}")
    dice = random.Random(seed)
    data = _dataset(tmp_path / "data", mb=2)
    async with installation(tmp_path / "rig", own_sshd) as rig:
        worker = rig.worker()
        given: list[Job] = []
        for number in range(rounds):
            while len(given) < count * (number + 1) // rounds:
                given.append(
                    await rig.submit(
                        dataset=data,
                        lines=dice.randint(1, 60),
                        delay_s=0.05,
                        kb=dice.randint(1, 2000),
                        flood_kb=dice.randint(0, 500),
                    )
                )
            await asyncio.sleep(dice.uniform(0.3, 2.5))  # the moment is the test's subject
            worker.kill()
            worker = rig.worker()
        for job in given:
            await rig.check(await rig.ended(job))


@pytest.mark.fault("worker-killed")
@pytest.mark.parametrize("standing_by", [False, True], ids=["started again", "standing by"])
async def test_takeover_on_the_same_machine_is_quick(
    own_sshd: SshdServer, tmp_path: Path, standing_by: bool, evidence: Tally
) -> None:
    """A worker that finds the dead holder of a lease on its own machine does not wait for the lease to run out."""
    async with installation(tmp_path / "rig", own_sshd, lease_s=600) as rig:
        workers = [rig.worker() for _ in range(2 if standing_by else 1)]
        for each in workers:
            await asyncio.to_thread(wait_for, lambda each=each: '"started"' in each.log, "the workers")
        job = await rig.submit(gated=True)
        await rig.log_has(job, 100)
        assert not [each for each in workers if "evicted_dead_worker" in each.log], "the living keep their jobs"
        (holder,) = await rig.app.store.holders()
        next(each for each in workers if f"#{each.process.pid}." in holder).kill()
        killed_at, size = time.monotonic(), len(await rig.log(job))
        if not standing_by:
            rig.worker()
        await rig.log_has(job, size + 1)
        evidence.recovered(time.monotonic() - killed_at, "standing by, same machine" if standing_by else "started again")
        await rig.let_end(job)
        await rig.check(await rig.ended(job))
