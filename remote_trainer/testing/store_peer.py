"""Another process at the same store, for the contract suite: ``python -m remote_trainer.testing.store_peer URL VERB ARGUMENTS``.

It says each thing on a line of its own once the store has acknowledged it. Rules for editing: one short coroutine per verb.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal

from remote_trainer.errors import Overdrawn
from remote_trainer.model import Entry, EntryKind, Event, Job, JobId, LogChunk, Plan, PlannedStep, Token
from remote_trainer.ports import Change, Store
from remote_trainer.store.open import open_store


def make_job(job_id: str, *, name: str = "", tenant: str = "default", priority: int = 0, age: int = 0) -> Job:
    """Return a queued job with a plan of one step; ``age`` is in seconds."""
    return Job(
        id=JobId(job_id),
        name=name or job_id,
        tenant=tenant,
        priority=priority,
        driver="local",
        plan=Plan(tool="echo@1", parameters={"text": "hä"}, steps=(PlannedStep(name="say", run="echo hä\n"),)),
        created_at=datetime.fromtimestamp(1_800_000_000 - age, UTC),
    )


def one_write(job_id: JobId, token: Token, number: int) -> Change:
    """Return the ``number``-th write of a series: an event, and eight bytes of log that say which."""
    return Change(
        job_id=job_id,
        token=token,
        events=(Event(at=datetime.now(UTC), kind="note", message=str(number)),),
        logs=(LogChunk(stream="a1/say.1", offset=number * 8, data=b"%07d\n" % number),),
    )


async def claim_all(store: Store, holder: str) -> None:
    """Say ``job token`` for each job claimed, until none is left."""
    while leases := await store.claim(holder, lease_s=60, limit=3):
        for lease in leases:
            print(lease.job.id, lease.token, flush=True)


async def submit(store: Store, job_id: str) -> None:
    """Submit a job."""
    await store.submit(make_job(job_id))
    print(job_id, flush=True)


async def save(store: Store, job_id: str, token: str, count: str) -> None:
    """Make a series of writes, one after the other."""
    for number in range(int(count)):
        if await store.save([one_write(JobId(job_id), Token(int(token)), number)]):
            print("stale", flush=True)
            return
        print(number, flush=True)


async def draw(store: Store, tenant: str, amount: str, count: str) -> None:
    """Submit jobs that each draw so much on the tenant's account; say of each whether it was drawn or refused."""
    for number in range(int(count)):
        job = make_job(f"peer{number}", tenant=tenant)
        reserve = Entry(
            id=f"reserve/{job.id}", tenant=tenant, kind=EntryKind.RESERVE, amount=-Decimal(amount), at=job.created_at, job=job.id
        )
        try:
            await store.submit(job, [reserve])
        except Overdrawn:
            print("refused", flush=True)
        else:
            print("drawn", flush=True)


VERBS: dict[str, Callable[..., Awaitable[None]]] = {"claim_all": claim_all, "submit": submit, "save": save, "draw": draw}


@asynccontextmanager
async def peer(url: str, verb: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start a peer; it is killed when the block is left. Its stdout is a stream of lines."""
    command = [sys.executable, "-m", "remote_trainer.testing.store_peer", url, verb, *arguments]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def main(url: str, verb: str, *arguments: str) -> None:
    """Do one verb."""
    store = open_store(url)
    try:
        await VERBS[verb](store, *arguments)
    finally:
        await store.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
