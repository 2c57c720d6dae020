"""How long a job was without its worker: from `kill -9`, or from the moment a worker stopped, to the next log line in the store.

Rules for editing: who drove a job is read from the store's own table, as no worker can be asked; a job whose step ended meanwhile
had no next line and is no sample.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from remote_trainer.errors import StoreUnavailable
from remote_trainer.model import JobId, Phase
from tests.storm.blows import Dealer, Struck
from tests.storm.ground import Ground

_PATIENCE_S = 60.0

#: Blows that keep any job's lines from the store.
_EVERYBODYS = ("kill", "freeze", "clock", "disk", "store")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """One job that went on: by whom, and whether nothing else was broken meanwhile."""

    seconds: float
    situation: str
    alone: bool


@dataclass
class Watcher:
    """Measures every recovery of a storm."""

    ground: Ground
    dealer: Dealer | None = None
    found: list[Recovery] = field(default_factory=list)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def hurt(self, struck: Struck) -> None:
        """Begin to watch the jobs of a worker that was just killed or stopped."""
        self._tasks.append(asyncio.create_task(self._watch(struck)))

    async def end(self) -> None:
        """Wait for the last ones."""
        await asyncio.gather(*self._tasks)

    async def _watch(self, struck: Struck) -> None:
        assert struck.worker is not None
        mine = f"#{struck.worker.process.pid}."
        with contextlib.suppress(StoreUnavailable, sqlite3.Error):
            held = [job_id for job_id, holder in (await holders(self.ground)).items() if mine in holder]
            async with asyncio.TaskGroup() as group:
                for job_id in held:
                    group.create_task(self._time(struck, job_id))

    async def _time(self, struck: Struck, job_id: JobId) -> None:
        store = self.ground.rig.app.store
        with contextlib.suppress(StoreUnavailable, sqlite3.Error, TimeoutError):
            job = await store.get(job_id)
            before = sum((await store.log_streams(job_id)).values())
            if job.phase is not Phase.EXECUTING or not before:
                return
            async with asyncio.timeout(_PATIENCE_S), contextlib.aclosing(store.watch(job_id)) as wakes:
                async for _ in wakes:
                    if sum((await store.log_streams(job_id)).values()) > before:
                        break
                    if (await store.get(job_id)).phase is not Phase.EXECUTING:
                        return
            now = time.monotonic()
            holder = (await holders(self.ground)).get(job_id, "")
            self._note(struck, job.driver_options["host"], holder, now)

    def _note(self, struck: Struck, host: str, holder: str, now: float) -> None:
        by = next((w for w in self.ground.rig.workers if f"#{w.process.pid}." in holder), None)
        if by is None or by is struck.worker:
            return  # given back already, or it was awake again before anybody noticed
        if struck.kind == "freeze":
            situation = "storm: worker frozen"
        elif self.ground.started[by.process.pid] > struck.began:
            situation = "storm: worker killed, started again"
        else:
            situation = "storm: worker killed, another one standing by"
        assert self.dealer is not None
        others = (other for other in self.dealer.struck if other is not struck and other.lasted_in(struck.began, now))
        alone = not any(other.kind in _EVERYBODYS or (other.host and f"@{other.host.box.host}:" in host) for other in others)
        self.found.append(Recovery(seconds=now - struck.began, situation=situation, alone=alone))


async def holders(ground: Ground) -> Mapping[JobId, str]:
    """Return who holds each job's lease."""
    if ground.database is None:
        return await asyncio.to_thread(_sqlite_holders, ground.jobs_file)
    from pymongo import AsyncMongoClient

    client: Any
    async with AsyncMongoClient(ground.database.uri) as client:
        try:
            rows = client["storm"]["jobs"].find({"holder": {"$ne": None}}, {"holder": 1})
            return {JobId(row["_id"]): row["holder"] async for row in rows}
        except Exception as error:
            raise StoreUnavailable(str(error)) from error


def _sqlite_holders(path: str) -> dict[JobId, str]:
    with contextlib.closing(sqlite3.connect(path, timeout=10)) as base:
        return dict(base.execute("SELECT id, holder FROM jobs WHERE holder IS NOT NULL").fetchall())
