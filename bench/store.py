"""What the store costs: claims, saves, a thousand log lines at once, and how fast news travel between processes.

    python bench/store.py                       # SQLite in a temporary folder on this disk
    python bench/store.py mongodb://host/bench   # a MongoDB; the database should be empty

CPU is this process's; wake latency is from before another process's save to this process having read it.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from remote_trainer.model import Event, JobId, Lease, LogChunk, Token
from remote_trainer.ports import Change, Store
from remote_trainer.store.open import open_store
from remote_trainer.testing.store_peer import make_job

LINE = b"step 1200/3000 loss 0.1234 lr 1e-4 3.21 it/s eta 0:09:21\n"
IDLE_S = 10.0


def show(what: str, value: str) -> None:
    print(f"{what:<58} {value}", flush=True)


def spread(samples: Sequence[float]) -> str:
    """Median and 99th percentile of seconds, in ms."""
    cuts = statistics.quantiles(samples, n=100)
    return f"p50 {cuts[49] * 1e3:.1f} ms, p99 {cuts[98] * 1e3:.1f} ms"


async def submits(store: Store, jobs: int) -> None:
    begun = time.perf_counter()
    for number in range(jobs):
        await store.submit(make_job(f"job{number:05d}", age=jobs - number))
    show("submit, one at a time", f"{jobs / (time.perf_counter() - begun):,.0f}/s")


async def claims(url: str, jobs: int, stores: int) -> list[Lease]:
    """Claim one at a time, from several connections at once."""
    opened = [open_store(url) for _ in range(stores)]
    taken: list[Lease] = []

    async def claim(store: Store, holder: str) -> None:
        while leases := await store.claim(holder, lease_s=3600, limit=1):
            taken.extend(leases)

    begun = time.perf_counter()
    await asyncio.gather(*(claim(store, f"w{number}") for number, store in enumerate(opened)))
    show(f"claim, one at a time, {stores} connection(s)", f"{jobs / (time.perf_counter() - begun):,.0f}/s")
    assert len({lease.job.id for lease in taken}) == len(taken) == jobs
    await asyncio.gather(*(store.release({lease.job.id: lease.token for lease in taken}) for store in opened[:1]))
    await asyncio.gather(*(store.close() for store in opened))
    return taken


async def saves(store: Store, lease: Lease, count: int) -> None:
    took = []
    for number in range(count):
        event = Event(at=datetime.now(UTC), kind="note", message=str(number))
        begun = time.perf_counter()
        await store.save([Change(job_id=lease.job.id, token=lease.token, job=lease.job, events=(event,))])
        took.append(time.perf_counter() - begun)
    show("save of one job's document and an event", f"{count / sum(took):,.0f}/s, {spread(took)}")


async def batches(store: Store, leases: Sequence[Lease], rounds: int) -> None:
    wall, cpu = [], []
    for number in range(rounds):
        chunk = LogChunk(stream="a1/train.1", offset=number * len(LINE), data=LINE)
        changes = [Change(job_id=lease.job.id, token=lease.token, logs=(chunk,)) for lease in leases]
        begun, spent = time.perf_counter(), time.process_time()
        assert not await store.save(changes)
        wall.append(time.perf_counter() - begun)
        cpu.append(time.process_time() - spent)
    what = f"one save of a log line of each of {len(leases)} jobs"
    show(what, f"{spread(wall)}; CPU p50 {statistics.median(cpu) * 1e3:.1f} ms, least {min(cpu) * 1e3:.1f} ms")


async def renewals(store: Store, leases: Sequence[Lease], rounds: int) -> None:
    tokens = {lease.job.id: lease.token for lease in leases}
    took = []
    for _ in range(rounds):
        begun = time.perf_counter()
        await store.renew("bench", tokens, lease_s=3600)
        took.append(time.perf_counter() - begun)
    show(f"renewal of {len(leases)} leases in one write", spread(took))


async def wakes(store: Store, url: str, lease: Lease, count: int) -> None:
    """Another process saves the time; see how long it takes until it has been read here."""
    command = [sys.executable, __file__, url, "--write", lease.job.id, str(lease.token), "--count", str(count)]
    delays: list[float] = []
    after = 0
    seen = await store.events(lease.job.id)
    after = seen[-1].seq if seen else 0
    writer = await asyncio.create_subprocess_exec(*command)
    async for _ in store.watch(lease.job.id):
        for event in await store.events(lease.job.id, after=after):
            after = event.seq
            delays.append(time.time() - float(event.message))
        if len(delays) >= count:
            break
    await writer.wait()
    show("another process saves -> read here after a wake", spread(delays))


async def write(url: str, job_id: str, token: str, count: int) -> None:
    store = open_store(url)
    for _ in range(count):
        event = Event(at=datetime.now(UTC), kind="note", message=repr(time.time()))
        await store.save([Change(job_id=JobId(job_id), token=Token(int(token)), events=(event,))])
        await asyncio.sleep(0.02)
    await store.close()


async def idle(store: Store) -> None:
    watch = store.watch()
    await anext(watch)
    await anext(watch)  # the follower has begun
    waiting = asyncio.create_task(anext(watch, None), name="idle")
    spent = time.process_time()
    await asyncio.sleep(IDLE_S)
    show("a watch while nothing happens", f"{(time.process_time() - spent) / IDLE_S:.3%} of a core")
    waiting.cancel()
    await asyncio.wait([waiting])


async def bench(url: str, jobs: int) -> None:
    store = open_store(url)
    show(f"{platform.machine()}, Python {platform.python_version()}", await store.migrate())
    await submits(store, jobs)
    await claims(url, jobs, 1)
    await claims(url, jobs, 4)
    begun = time.perf_counter()
    leases = await store.claim("bench", lease_s=3600, limit=jobs)
    show(f"claim of {jobs} jobs at once", f"{(time.perf_counter() - begun) * 1e3:.0f} ms")
    await saves(store, leases[0], 300)
    await batches(store, leases, 100)
    await renewals(store, leases, 20)
    await wakes(store, url, leases[1], 200)
    await idle(store)
    await store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?", help="the store; a temporary SQLite file if not given")
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--count", type=int, default=200, help=argparse.SUPPRESS)
    parser.add_argument("--write", nargs=2, help=argparse.SUPPRESS)  # the other process of `wakes`
    given = parser.parse_args()
    if given.write:
        asyncio.run(write(given.url, *given.write, given.count))
        return
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        asyncio.run(bench(given.url or f"{folder}/store/jobs.db", given.jobs))


if __name__ == "__main__":
    main()
