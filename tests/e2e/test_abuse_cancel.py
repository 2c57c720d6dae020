"""Cancelling at any moment: no process is left, what there is of artifacts is kept, and the job is CANCELLED."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from remote_trainer.errors import Conflict
from remote_trainer.model import Job, Phase
from remote_trainer.service import jobs
from remote_trainer.testing.netfault import Link
from tests.support.rig import Rig, installation, wait_for
from tests.support.sshd import SshdServer

_SLOW: dict[Phase, dict[str, float]] = {
    Phase.PROVISIONING: {"rtt_s": 0.2},
    Phase.TRANSFERRING: {"bytes_per_s": 500_000},
    Phase.EXECUTING: {},
    Phase.FETCHING: {"bytes_per_s": 1_000_000},
    Phase.RELEASING: {"rtt_s": 0.4},
}


async def _cancel_in(rig: Rig, link: Link, phase: Phase, data: Path) -> None:
    rounds = itertools.count()
    while not await _cancelled_in(rig, link, phase, data.with_name(f"{data.name}{next(rounds)}")):
        link.set()  # we looked too late


async def _cancelled_in(rig: Rig, link: Link, phase: Phase, data: Path) -> bool:
    """Cancel a new job; tell whether it was in that phase then, and CANCELLED."""
    data.mkdir()
    (data / "big.bin").write_bytes(os.urandom(2_000_000))
    early = phase in (Phase.PROVISIONING, Phase.TRANSFERRING)
    if early:
        link.set(**_SLOW[phase])
    running = phase is Phase.EXECUTING
    job = await rig.submit(
        host_port=link.port,
        dataset=data,
        lines=10_000 if running else 8,
        stubborn=running,
        kb=4000 if phase is Phase.FETCHING else 64,
    )
    if not early:
        await rig.log_has(job, 50)
        link.set(**_SLOW[phase])
    await rig.reached(job, phase)
    with contextlib.suppress(Conflict):  # it has just ended
        await jobs.cancel(rig.app, job.id)
    there = (await rig.app.store.get(job.id)).phase is phase
    ended = await rig.until(job, lambda seen: seen.phase.terminal)
    if not there or ended.phase is Phase.DONE:  # in the very moment of its end nobody hears the wish any more
        return False
    assert ended.phase is Phase.CANCELLED, f"{ended.phase}: {ended.message}{rig.story()}"
    await _kept(rig, ended, phase)
    return True


async def _kept(rig: Rig, ended: Job, phase: Phase) -> None:
    starts = {step: times for (job_id, step), times in rig.started().items() if job_id == ended.id}
    match phase:
        case Phase.PROVISIONING | Phase.TRANSFERRING:
            assert starts == {}
        case Phase.EXECUTING:
            assert starts == {"first.1": 1, "second.1": 1}
            assert await rig.artifacts(ended) == rig.sums(ended)
            assert (await rig.log(ended)).startswith(b"line 1 ")
            # A stopped step may have noted a line that it could not print any more.
            assert rig.recorded(ended).startswith(await rig.log(ended))
        case _:
            assert await rig.log(ended) == rig.recorded(ended)
            assert await rig.artifacts(ended) == rig.sums(ended)


@pytest.mark.fault("cancelled")
async def test_cancel_in_each_phase(own_sshd: SshdServer, tmp_path: Path) -> None:
    """A job cancelled in any phase ends CANCELLED with what it has left kept, and nothing of it runs any more."""
    async with installation(tmp_path / "rig", own_sshd) as rig:
        worker = rig.worker()
        with ExitStack() as links:
            async with asyncio.TaskGroup() as all_phases:
                for phase in _SLOW:
                    link = links.enter_context(Link(own_sshd.host, own_sshd.port))
                    all_phases.create_task(_cancel_in(rig, link, phase, tmp_path / phase), name=phase)
        worker.drain()
        wait_for(lambda: own_sshd.programs() == [], "the end of everything the jobs had started")


@pytest.mark.fault("cancelled")
async def test_cancel_while_queued(own_sshd: SshdServer, tmp_path: Path) -> None:
    """A job that no worker has taken yet is cancelled by the first one that comes, and nothing is started."""
    async with installation(tmp_path / "rig", own_sshd) as rig:
        job = await rig.submit()
        await jobs.cancel(rig.app, job.id)
        rig.worker()
        await rig.ended(job, Phase.CANCELLED)
        assert rig.started() == {}
        with pytest.raises(Conflict):
            await jobs.cancel(rig.app, job.id)


@pytest.mark.fault("cancelled")
async def test_cancel_while_the_worker_is_dead(own_sshd: SshdServer, tmp_path: Path) -> None:
    """A wish to cancel that nobody was there to hear is carried out by the next worker."""
    async with installation(tmp_path / "rig", own_sshd) as rig:
        worker = rig.worker()
        job = await rig.submit(lines=10_000, stubborn=True)
        await rig.log_has(job, 50)
        worker.kill()
        await jobs.cancel(rig.app, job.id)
        worker = rig.worker()
        ended = await rig.ended(job, Phase.CANCELLED)
        await _kept(rig, ended, Phase.EXECUTING)
        worker.drain()
        wait_for(lambda: own_sshd.programs() == [], "the end of everything the job had started")


@pytest.mark.fault("cancelled")
async def test_cancel_while_the_host_is_cut_off(own_sshd: SshdServer, tmp_path: Path) -> None:
    """A job on a host that cannot be reached is stopped when it can be; until then it says what it waits for."""
    with Link(own_sshd.host, own_sshd.port) as link:
        async with installation(tmp_path / "rig", own_sshd) as rig:
            worker = rig.worker()
            job = await rig.submit(host_port=link.port, lines=10_000, stubborn=True)
            await rig.log_has(job, 50)
            link.cut()
            await jobs.cancel(rig.app, job.id)
            waiting = await rig.until(job, lambda seen: seen.note)
            assert waiting.phase is Phase.EXECUTING
            link.heal()
            ended = await rig.ended(job, Phase.CANCELLED)
            await _kept(rig, ended, Phase.EXECUTING)
            worker.drain()
            wait_for(lambda: own_sshd.programs() == [], "the end of everything the job had started")


@pytest.mark.fault("hostile-step")
async def test_a_step_that_hangs_is_stopped(own_sshd: SshdServer, tmp_path: Path) -> None:
    """A step past its own limit is ended with everything it started, and the job says so."""
    async with installation(tmp_path / "rig", own_sshd) as rig:
        worker = rig.worker()
        job = await rig.submit(tool="limited@1", lines=10_000, stubborn=True)
        ended = await rig.ended(job, Phase.FAILED)
        assert ended.reason == "step_timeout"
        assert "longer than its timeout of 2 s" in ended.message
        assert rig.started()[ended.id, "second.1"] == 1
        if await rig.log(ended):  # it may have had no time for a line
            await _kept(rig, ended, Phase.EXECUTING)
        worker.drain()
        wait_for(lambda: own_sshd.programs() == [], "the end of everything the job had started")
