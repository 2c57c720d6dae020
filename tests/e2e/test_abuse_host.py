"""What a host and a step can do to a job: reboot, fill the disk, flood the log, fail, leave nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from remote_trainer.model import Job, Phase, Reason
from tests.support.containers import ContainerHost
from tests.support.rig import LONG, Rig, heavy, installation
from tests.support.sshd import SshdServer


async def _rebooted(rig: Rig, host: ContainerHost) -> Job:
    """A job that is done; its host restarted when it had a checkpoint."""
    job = await rig.submit(tool="hello@1", lines=60, delay_s=0.2, checkpoint_every=5)
    await rig.until(job, lambda seen: seen.attempt and seen.attempt.checkpoint)
    await asyncio.to_thread(host.restart)
    return await rig.ended(job)


@pytest.mark.fault("host-rebooted")
async def test_a_host_that_reboots(container_host: ContainerHost, tmp_path: Path) -> None:
    """A host that restarts in mid-step costs the work since the last checkpoint: the second attempt goes on from there."""
    async with installation(tmp_path / "rig", container_host, collect_interval_s=1) as rig:
        rig.on_host("/var/lib/remote-trainer")
        rig.worker()
        done = await _rebooted(rig, container_host)
        while len(done.attempts) == 1:  # the host was too late
            done = await _rebooted(rig, container_host)
        assert len(done.attempts) == 2
        assert done.attempts[0].reason is Reason.HOST_REBOOTED
        assert done.attempts[1].restored is not None
        second = (await rig.log(done, "greet.1", attempt=2)).decode()
        first_line = next(line for line in second.splitlines() if line.startswith("line "))
        restored_at = int(done.attempts[1].restored.unit.rpartition("-")[2])
        assert f"resuming at line {restored_at + 1}" in second
        assert first_line.startswith(f"line {restored_at + 1}/60 ")
        assert "line 60/60" in second


@pytest.mark.fault("network-cut")
@heavy
async def test_a_container_that_is_cut_off(container_host: ContainerHost, tmp_path: Path) -> None:
    """A host behind a network that drops every packet is waited for; what ran there went on."""
    async with installation(tmp_path / "rig", container_host) as rig:
        rig.on_host("/var/lib/remote-trainer")
        rig.worker()
        job = await rig.submit(tool="hello@1", lines=60, delay_s=0.2)
        await rig.log_has(job, 1, "greet.1")
        container_host.cut()
        waiting = await rig.until(job, lambda seen: seen.note)
        assert waiting.phase is Phase.EXECUTING
        await asyncio.sleep(60 if LONG else 1)
        container_host.heal()
        done = await rig.ended(job)
        assert len(done.attempts) == 1
        lines = (await rig.log(job, "greet.1")).decode().splitlines()
        assert [line for line in lines if line.startswith("line ")] == [f"line {n}/60 value {n * n}" for n in range(1, 61)]


@pytest.mark.fault("host-disk-full")
async def test_a_host_whose_disk_is_full(start_container: Callable[..., ContainerHost], tmp_path: Path) -> None:
    """A step that fills the host's disk fails with its own words, kept; the worker and the next job are not harmed."""
    host = start_container(options=("--tmpfs", "/small:size=40m"))
    async with installation(tmp_path / "rig", host) as rig:
        rig.on_host("/small/root")
        rig.worker()
        job = await rig.submit(tool="hello@1", lines=2, delay_s=0, artifact_kb=60_000)
        ended = await rig.ended(job, Phase.FAILED)
        assert ended.reason is Reason.STEP_FAILED, ended.message
        assert b"No space left" in await rig.log(job, "greet.1")
        after = await rig.submit(tool="hello@1", lines=2, delay_s=0)
        await rig.ended(after)


@pytest.mark.fault("hostile-step")
async def test_a_step_that_floods_its_log(own_sshd: SshdServer, tmp_path: Path) -> None:
    """A log of any size arrives whole."""
    async with installation(tmp_path / "rig", own_sshd) as rig:
        rig.worker()
        job = await rig.submit(lines=2, flood_kb=100_000 if LONG else 25_000)
        await rig.check(await rig.ended(job))


@pytest.mark.fault("step-fails")
async def test_steps_that_go_wrong(own_sshd: SshdServer, tmp_path: Path) -> None:
    """A step that fails, or leaves nothing of what was promised, ends the job with the reason, its log and what there is."""
    async with installation(tmp_path / "rig", own_sshd) as rig:
        rig.worker()
        failing = await rig.submit(lines=3, delay_s=0, exit_code=7, silent=True)
        silent = await rig.submit(lines=3, delay_s=0, silent=True)
        failed = await rig.ended(failing, Phase.FAILED)
        assert failed.reason is Reason.STEP_FAILED
        assert "second exited with code 7" in failed.message
        empty = await rig.ended(silent, Phase.FAILED)
        assert empty.reason is Reason.ARTIFACTS_MISSING
        assert "final" in empty.message
        for job in (failed, empty):
            assert await rig.log(job) == rig.recorded(job)
            assert await rig.artifacts(job) == rig.sums(job)
