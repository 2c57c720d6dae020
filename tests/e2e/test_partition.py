"""A host is cut off for longer than the lease, and a worker dies meanwhile: what runs there is adopted again, whatever it did.

Every job of the test is in another situation when the packets stop: running on, ending behind the silence, cancelled, not yet begun,
with its inputs or its outputs under way. Steps end when the test says so, through a folder that it shares with the host.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from remote_trainer.model import Job, JobId, Phase
from remote_trainer.service import jobs
from remote_trainer.service.names import new_job_id
from remote_trainer.testing.netfault import Link
from tests.support.containers import ContainerHost
from tests.support.evidence import Tally
from tests.support.rig import LONG, Rig, WorkerProcess, installation, wait_for

LEASE_S = 1.5
#: Longer than the lease, and in the heavy round than others wait before they give a host up: 145 s.
CUT_S = 170.0 if LONG else 5.0


@dataclass
class Jobs:
    """One job for each situation."""

    running: Job
    ending: Job
    cancelled: Job
    shipping: Job
    fetching: Job

    @property
    def all(self) -> list[Job]:
        return list(vars(self).values())


@asynccontextmanager
async def _host_and_rig(start_container: Callable[..., ContainerHost], folder: Path) -> AsyncIterator[tuple[ContainerHost, Rig]]:
    """A host that shares the test's folder, so that a step there can see that it may end."""
    host = start_container(options=("--volume", f"{folder}:{folder}"))
    async with installation(folder / "rig", host, lease_s=LEASE_S, connect_timeout_s=20 if LONG else 5) as rig:
        rig.on_host("/var/lib/remote-trainer")
        yield host, rig


async def _submit(rig: Rig, link: Link, dataset: Path | None = None, **settings: object) -> Job:
    return await rig.submit(host_port=link.port, dataset=dataset, gated=True, lines=0, **settings)


async def _situations(rig: Rig, links: Sequence[Link], data: Path) -> Jobs:
    """Bring a job into each situation; what is under way would take a minute."""
    ship, fetch, plain = links
    ship.set(bytes_per_s=100_000)
    running, ending, cancelled = [await _submit(rig, plain, stubborn=stubborn) for stubborn in (False, False, True)]
    shipping, fetching = await _submit(rig, ship, data), await _submit(rig, fetch, kb=6000)
    for job in (running, ending, cancelled, fetching):
        await rig.log_has(job, 1)
    fetch.set(bytes_per_s=100_000)
    await rig.let_end(fetching)
    await asyncio.gather(rig.phase(shipping, Phase.TRANSFERRING), rig.phase(fetching, Phase.FETCHING))
    return Jobs(running, ending, cancelled, shipping, fetching)


async def _new(rig: Rig, like: Job) -> Job:
    """Queue a job while its host cannot be asked for anything."""
    job_id = JobId(new_job_id(rig.app.clock.now()))
    fresh = replace(like, id=job_id, name=job_id, created_at=rig.app.clock.now())
    await rig.app.store.submit(fresh)
    return fresh


@pytest.mark.fault("long-partition")
@pytest.mark.timeout(900 + 3 * CUT_S)
@pytest.mark.parametrize("how", ["host", "way"] if LONG else ["host"])
async def test_a_host_cut_off_for_long(
    start_container: Callable[..., ContainerHost], tmp_path: Path, evidence: Tally, how: str
) -> None:
    """Each job of a host that was away for longer than the lease and a worker's life ends as if it had not been: once, and exact."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "big.bin").write_bytes(os.urandom(6_000_000))
    async with _host_and_rig(start_container, tmp_path) as (host, rig):
        worker = rig.worker()
        with ExitStack() as stack:
            links = [stack.enter_context(Link(host.host, host.port)) for _ in range(3)]
            given = await _situations(rig, links, tmp_path / "data")
            broken: Sequence[ContainerHost | Link] = [host] if how == "host" else links
            for each in broken:
                each.cut()
            before = {job.id: (await rig.app.store.get(job.id)).phase for job in given.all}
            worker.kill()  # first: it still knows what the host is, and would begin a new job's transfer
            fresh = await _new(rig, given.running)
            await jobs.cancel(rig.app, given.cancelled.id)
            await asyncio.sleep(LEASE_S)  # a worker of another machine would have had to wait for that
            await _silence(rig, rig.worker(), given, fresh)
            assert {job.id: (await rig.app.store.get(job.id)).phase for job in given.all} == before, rig.story()
            assert (await rig.app.store.get(fresh.id)).phase is Phase.PROVISIONING
            for link in links:
                link.set()
            for each in broken:
                each.heal()
            await _ends(rig, given, fresh, evidence)


async def _silence(rig: Rig, worker: WorkerProcess, given: Jobs, fresh: Job) -> None:
    """Let the silence last; one step ends behind it."""
    begun = time.monotonic()
    await rig.let_end(given.ending)
    await asyncio.to_thread(
        wait_for, lambda: "final/result.bin" in rig.sums(given.ending), "the end of a step behind the silence"
    )
    ids = {job.id for job in (*given.all, fresh)}
    await asyncio.to_thread(wait_for, lambda: _in_trouble(worker) >= ids, "vain tries of the new worker for every job")
    await asyncio.sleep(max(0.0, CUT_S - (time.monotonic() - begun)))


def _in_trouble(worker: WorkerProcess) -> set[str]:
    lines = [line for line in worker.log.splitlines() if '"trouble"' in line and line.endswith("}")]
    return {json.loads(line)["job"] for line in lines}


async def _ends(rig: Rig, given: Jobs, fresh: Job, evidence: Tally) -> None:
    """Everything ends as it should, after one attempt and one start of each step."""
    healed_at, size = time.monotonic(), len(await rig.log(given.running))
    await rig.log_has(given.running, size + 1)
    evidence.recovered(time.monotonic() - healed_at, f"host reachable again after {CUT_S:g} s")
    cancelled = await rig.ended(given.cancelled, Phase.CANCELLED)
    assert rig.recorded(cancelled).startswith(await rig.log(cancelled))
    assert rig.started()[cancelled.id, "second.1"] == 1
    for job in (given.shipping, fresh):
        await rig.log_has(job, 1)
    await rig.let_end(given.running, given.shipping, fresh)
    for job in (given.running, given.ending, given.shipping, given.fetching, fresh):
        done = await rig.ended(job)
        assert len(done.attempts) == 1
        await rig.check(done)
    evidence.ran(len(given.all) + 1)
