"""Several workers on one store: a job is driven by one at a time, and who was replaced changes nothing any more."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from remote_trainer.model import Phase
from tests.support.rig import heavy, installation
from tests.support.sshd import SshdServer


@pytest.mark.fault("worker-replaced")
async def test_workers_share_the_jobs(own_sshd: SshdServer, tmp_path: Path) -> None:
    """Three workers on one store: each job is driven by one of them, from its first phase to its last."""
    async with installation(tmp_path / "rig", own_sshd, max_jobs=4) as rig:
        workers = [rig.worker() for _ in range(3)]
        given = [await rig.submit(lines=20, delay_s=0.05) for _ in range(12)]
        for job in given:
            done = await rig.ended(job)
            await rig.check(done)
            drivers = [worker for worker in workers if f'"job": "{job.id}"' in worker.log]
            assert len(drivers) == 1
            phases = [event.data["to"] for event in await rig.events(job) if event.kind == "phase"]
            assert phases == ["provisioning", "transferring", "executing", "fetching", "releasing", "done"]
        assert all(worker.process.poll() is None for worker in workers)


@pytest.mark.fault("worker-frozen")
async def test_a_frozen_worker_changes_nothing_when_it_wakes(own_sshd: SshdServer, tmp_path: Path) -> None:
    """A worker that slept longer than its lease finds its job taken: it lets go, and neither store nor host takes anything from it."""
    async with installation(tmp_path / "rig", own_sshd, lease_s=1.5) as rig:
        first = rig.worker()
        given = [await rig.submit(lines=160, delay_s=0.05) for _ in range(3)]
        for job in given:
            await rig.log_has(job, 1)
        first.freeze()
        frozen = {job.id: len(await rig.log(job)) for job in given}
        second = rig.worker()
        for job in given:
            await rig.log_has(job, frozen[job.id] + 200)
        first.thaw()
        for job in given:
            await rig.check(await rig.ended(job))
        assert first.process.poll() is None, "the worker lives on, without the jobs"
        for job in given:
            assert f'"job": "{job.id}"' in second.log
            assert _phases_logged(first.log, job.id) == ["provisioning", "transferring", "executing"]


@pytest.mark.fault("worker-frozen")
@heavy
async def test_workers_that_take_turns_at_sleeping(own_sshd: SshdServer, tmp_path: Path) -> None:
    """However often the jobs change hands, with the loser still alive, each ends exact."""
    async with installation(tmp_path / "rig", own_sshd, lease_s=1) as rig:
        workers = [rig.worker(), rig.worker()]
        given = [await rig.submit(lines=200, delay_s=0.05) for _ in range(4)]
        for job in given:
            await rig.log_has(job, 1)
        for turn in range(4):
            sleeper = workers[turn % 2]
            sleeper.freeze()
            await asyncio.sleep(1.6)  # longer than the lease
            sleeper.thaw()
        for job in given:
            await rig.check(await rig.ended(job))


@pytest.mark.fault("worker-replaced")
async def test_a_drained_worker_hands_over_at_once(own_sshd: SshdServer, tmp_path: Path) -> None:
    """SIGTERM: the worker gives its leases back and ends; the step goes on, and the next worker has it long before the lease is over."""
    async with installation(tmp_path / "rig", own_sshd, lease_s=600) as rig:
        first = rig.worker()
        given = [await rig.submit(lines=80, delay_s=0.05) for _ in range(4)]
        for job in given:
            await rig.log_has(job, 1)
        began = time.monotonic()
        first.drain()
        ended = time.monotonic()
        assert await rig.app.store.holders() == []
        sizes = {job.id: len(await rig.log(job)) for job in given}
        rig.worker()
        for job in given:
            await rig.log_has(job, sizes[job.id] + 1)
        print(f"drained in {ended - began:.2f} s, adopted {time.monotonic() - ended:.2f} s later")
        for job in given:
            await rig.check(await rig.ended(job))


@pytest.mark.fault("worker-replaced")
async def test_a_drain_while_everything_is_under_way(own_sshd: SshdServer, tmp_path: Path) -> None:
    """A worker may be replaced by the next one at any moment, as a deployment does, before or after the old one is asked to end."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "big.bin").write_bytes(os.urandom(8_000_000))
    async with installation(tmp_path / "rig", own_sshd) as rig:
        worker = rig.worker()
        given = []
        for _ in range(5):
            given.append(await rig.submit(dataset=data, lines=20, delay_s=0.05, kb=500))
            await rig.until(given[-1], lambda seen: seen.phase is not Phase.QUEUED)
            fresh = rig.worker()
            worker.drain()
            worker = fresh
        for job in given:
            await rig.check(await rig.ended(job))


def _phases_logged(log: str, job_id: str) -> list[str]:
    lines = [line for line in log.splitlines() if f'"job": "{job_id}"' in line and '"action": "phase"' in line]
    return [line.partition("training.remote.")[2].partition('"')[0] for line in lines]
