"""The way to the host breaks, in silence or with a reset: nothing is restarted, nothing is lost, and the job says what it waits for."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from remote_trainer.model import Job, Phase
from remote_trainer.testing.netfault import Link
from tests.support.rig import LONG, Rig, installation
from tests.support.sshd import SshdServer

#: How long the way is broken. The requirement is a minute; what happens after the break was noticed does not depend on it.
CUT_S = 60.0 if LONG else 5.0

_SLOW: dict[Phase, dict[str, float]] = {
    Phase.PROVISIONING: {"rtt_s": 0.2},
    Phase.TRANSFERRING: {"bytes_per_s": 2_000_000},
    Phase.EXECUTING: {"rtt_s": 0.1},
    Phase.FETCHING: {"bytes_per_s": 4_000_000},
    Phase.RELEASING: {"rtt_s": 0.4},
}


async def _into(rig: Rig, link: Link, phase: Phase, data: Path) -> Job:
    """Bring a job into a phase that lasts."""
    early = phase in (Phase.PROVISIONING, Phase.TRANSFERRING, Phase.EXECUTING)
    if early:
        link.set(**_SLOW[phase])
    lines, kb = (60, 64) if phase is Phase.EXECUTING else (10, 4000)
    job = await rig.submit(host_port=link.port, dataset=data, lines=lines, kb=kb if phase is Phase.FETCHING else 64)
    if not early:
        await rig.log_has(job, 1)
        link.set(**_SLOW[phase])
    await rig.reached(job, phase)
    return job


async def _break_and_heal(rig: Rig, link: Link, phase: Phase, data: Path, how: str) -> None:
    rounds = itertools.count()
    while not await _broken_in(rig, link, phase, data.with_name(f"{data.name}{next(rounds)}"), how):
        pass  # we looked too late


async def _broken_in(rig: Rig, link: Link, phase: Phase, data: Path, how: str) -> bool:
    """Break the way of a new job, whose end must be exact; tell whether the job was in that phase until it was whole again."""
    data.mkdir()
    (data / "name").write_text(data.name)  # nothing that is on the host already
    for number in range(4):
        (data / f"{number}.bin").write_bytes(os.urandom(1_000_000))
    job = await _into(rig, link, phase, data)
    broken_at = time.monotonic()
    link.cut() if how == "cut" else link.reset()
    waiting = await rig.until(job, lambda seen: seen.note or seen.phase is not phase)
    there = waiting.phase is phase
    if there:
        assert f"127.0.0.1:{link.port}" in waiting.note
        await asyncio.sleep(max(0.0, CUT_S - (time.monotonic() - broken_at)))
    link.set()
    link.heal()
    await rig.check(await rig.ended(job))
    return there


@pytest.mark.fault("network-cut")
@pytest.mark.timeout(900 + 2 * CUT_S)
@pytest.mark.parametrize("how", ["cut", "reset"] if LONG else ["cut"])
async def test_the_connection_breaks(own_sshd: SshdServer, tmp_path: Path, how: str) -> None:
    """A connection that is silent or refused for a while, in any phase, costs time only; the job's note says why it waits."""
    async with installation(tmp_path / "rig", own_sshd) as rig:
        rig.worker()
        with ExitStack() as links:
            async with asyncio.TaskGroup() as all_phases:
                for phase in _SLOW:
                    link = links.enter_context(Link(own_sshd.host, own_sshd.port))
                    all_phases.create_task(_break_and_heal(rig, link, phase, tmp_path / phase, how), name=phase)


@pytest.mark.fault("network-cut")
async def test_what_was_waited_for_is_over(own_sshd: SshdServer, tmp_path: Path) -> None:
    """A connection that comes and goes all the time is opened again at once each time, and the note goes when it is there."""
    with Link(own_sshd.host, own_sshd.port) as link:
        async with installation(tmp_path / "rig", own_sshd) as rig:
            rig.worker()
            job = await rig.submit(host_port=link.port, gated=True)
            for _ in range(8):
                await rig.log_has(job, len(await rig.log(job)) + 1)
                link.reset()
                link.heal()
                await rig.log_has(job, len(rig.recorded(job)) + 1)
            first = [line for line in rig.workers[0].log.splitlines() if '"FollowStep"' in line and '"count": 1,' in line]
            assert len(first) >= 8, f"each break is taken for the first one{rig.story()}"
            link.reset()
            await rig.until(job, lambda seen: seen.note)
            link.heal()
            healed = await rig.until(job, lambda seen: not seen.note)
            assert healed.phase is Phase.EXECUTING
            await rig.let_end(job)
            await rig.check(await rig.ended(job))
