"""What a storm deals out, and what counts as broken in it: a judge that cannot say no proves nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from remote_trainer.model import Attempt, Job, LogChunk, Phase
from remote_trainer.ports import Change
from remote_trainer.store.sqlite import SqliteStore
from remote_trainer.testing.store_peer import make_job
from tests.storm import schedule, verdict
from tests.storm.blows import Struck
from tests.storm.hosts import StormHost

LABEL = "rt-abc123-jone-a1"
LINES = b"line 1\nline 2\n"


class Ground:
    """One host's record on disk, and a real store; no host, no worker."""

    def __init__(self, folder: Path, store: SqliteStore, job: Job) -> None:
        (folder / "record").mkdir()
        self.host = StormHost(cast(Any, SimpleNamespace(host="box")), folder / "record", listener=0)
        self.hosts = [self.host]
        self.rig = SimpleNamespace(app=SimpleNamespace(store=store), log=self.log)
        self.store, self.job = store, job

    async def log(self, job: Job, step: str, attempt: int) -> bytes:
        return await self.store.read_log(job.id, f"a{attempt}/{step}")

    def record(self, step: str, log: bytes, *, starts: int = 1) -> None:
        with (self.host.record / "starts").open("a") as file:
            file.write(f"{LABEL} {step} 77\n" * starts)
        (self.host.record / f"{LABEL}.{step}.log").write_bytes(log)

    async def judged(self, *struck: Struck, job: Job | None = None) -> set[str]:
        return {one.kind for one in await verdict.judge(cast(Any, self), [job or self.job], struck)}


@pytest.fixture
async def ground(tmp_path: Path) -> AsyncIterator[Ground]:
    """A job that is over, whose log is in the store."""
    store = SqliteStore(tmp_path / "jobs.db")
    await store.migrate()
    job = replace(make_job("jone"), driver_options={"host": "root@box:22"})
    await store.submit(job)
    (lease,) = await store.claim("me", lease_s=60, limit=1)
    chunk = LogChunk(stream="a1/train.1", offset=0, data=LINES)
    await store.save([Change(job_id=job.id, token=lease.token, logs=(chunk,))])
    attempt = Attempt(number=1, label=LABEL, started_at=datetime.now(UTC))
    yield Ground(tmp_path, store, replace(job, phase=Phase.FAILED, attempts=(attempt,)))
    await store.close()


def hit(kind: str, step: str = "train.1", host: StormHost | None = None) -> Struck:
    return Struck(kind=kind, began=0.0, host=host, run=(LABEL, step))


async def test_a_job_must_be_done(ground: Ground) -> None:
    """A job that failed is told as such, one that has not ended as stuck."""
    ground.record("train.1", LINES)
    assert await ground.judged() == {"not done"}
    assert await ground.judged(job=replace(ground.job, phase=Phase.EXECUTING)) == {"stuck"}


async def test_a_second_start_is_noticed(ground: Ground) -> None:
    """Two starts of one run are a double start, whatever was hit."""
    ground.record("train.1", LINES, starts=2)
    assert "double start" in await ground.judged(hit("both"))


async def test_work_is_repeated_only_where_it_was_killed(ground: Ground) -> None:
    """A second run needs a step that was killed."""
    ground.record("train.1", LINES)
    ground.record("train.2", b"")
    assert "repeated work" in await ground.judged()
    assert "repeated work" not in await ground.judged(hit("step"))


@pytest.mark.parametrize("written", [LINES + b"line 3\n", LINES[:-1], LINES.replace(b"2", b"7"), b""])
async def test_a_log_that_differs_is_noticed(ground: Ground, written: bytes) -> None:
    """A byte missing, too many or changed is a wrong log."""
    ground.record("train.1", written)
    assert "log bytes wrong" in await ground.judged()


async def test_a_killed_step_may_lack_its_last_line(ground: Ground) -> None:
    """What a step has recorded and was killed before printing is no loss; more than that, or other bytes, are."""
    ground.record("train.1", LINES + b"line 3\n")
    assert "log bytes wrong" not in await ground.judged(hit("step"))
    assert "log bytes wrong" in await ground.judged(hit("step", "other.1"))
    ground.record("train.1", LINES + b"line" * 1000, starts=0)
    assert "log bytes wrong" in await ground.judged(hit("step"))


def test_a_seed_is_a_schedule() -> None:
    """The same seed deals the same blows to the same jobs; another seed deals others; every kind of blow is dealt."""
    one, same, other = (schedule.make(seed, jobs=20, kills=6) for seed in (7, 7, 8))
    assert one == same != other
    assert {blow.kind for blow in one.blows} == set(schedule.KINDS)
    assert sum(blow.kind == "kill" for blow in one.blows) == 6
