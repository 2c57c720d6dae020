"""Time to recover: from `kill -9` of a worker to the next line of each of its jobs' logs that can be read in the store.

    python -m bench.recover [--counts 1 10 100] [--kills 20] [--lease 10]

The jobs are real steps on one real OpenSSH host. Beside them the least that such a thing can take: a raw `ssh host tail -F` of a file,
opened again by a shell loop when it is killed; it keeps no place in the file, verifies nothing and starts nothing. With
REMOTE_TRAINER_TEST_EVIDENCE the times go to docs/reliability.json.

Rules for editing: each kill comes at a random moment after every job is followed again, so that kills do not depend on each other.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import statistics
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from bench.follow import queue
from bench.rig import Rig
from remote_trainer.model import JobId
from remote_trainer.service.app import App
from tests.support import evidence

STANDBY = "standing by, same machine"
AGAIN = "started again"
ELSEWHERE = "standing by, another machine"
FLOOR = "`ssh host tail -F` in a shell loop"

HEAD = "| situation | jobs | kills | p50 | p99 | longest |\n|---|---|---|---|---|---|"


class Sizes:
    """How much of each job's log is in the store, and when it grew."""

    def __init__(self, app: App, jobs: Sequence[JobId]) -> None:
        self._app, self._jobs = app, jobs

    async def grown(self, since: float, limit_s: float = 60.0) -> list[float]:
        """Return the seconds from ``since`` on until each log has more than it has now."""
        pending, times = {job: await self._size(job) for job in self._jobs}, list[float]()
        async with asyncio.timeout(limit_s), contextlib.aclosing(self._app.store.watch()) as wakes:
            async for _ in wakes:
                for job in [job for job, size in pending.items() if await self._size(job) > size]:
                    times.append(time.monotonic() - since)
                    del pending[job]
                if not pending:
                    break
        return times

    async def _size(self, job: JobId) -> int:
        return sum((await self._app.store.log_streams(job)).values())


@contextlib.asynccontextmanager
async def running(count: int, lease_s: float) -> AsyncIterator[tuple[Rig, Sizes]]:
    """So many jobs that write lines for ever; the fewer, the more often."""
    with Rig(max_jobs=count + 10, lease_s=lease_s) as rig:
        tool = rig.tool("endless", f"while :; do date +%s.%N; sleep {pause_s(count)}; done\n")
        async with rig.app() as app:
            jobs = await queue(app, tool, count, lambda _: rig.driver_options)
            yield rig, Sizes(app, [job.id for job in jobs])


def pause_s(count: int) -> float:
    """How long to wait after each line: a hundred lines a second are enough for this machine."""
    return max(0.1, count / 100)


async def kills(situation: str, count: int, times: int, lease_s: float) -> list[float]:
    """Kill the worker so often; return every job's time to recover from every kill."""
    found: list[float] = []
    async with running(count, lease_s) as (rig, sizes):
        machines = (f"machine{number}" if situation == ELSEWHERE else "" for number in range(times + 1))
        holder = rig.worker(machine=next(machines))
        for _ in range(times):
            await sizes.grown(time.monotonic())
            other = rig.worker(machine=next(machines)) if situation != AGAIN else None
            await asyncio.sleep(1 + random.random() * 2)  # the moment is what is varied
            killed_at = time.monotonic()
            holder.kill()
            holder = other or rig.worker(wait=False)
            found += await sizes.grown(killed_at, 60 + lease_s)
            rig.workers[-2].wait()
    return found


async def floor(count: int, times: int) -> list[float]:
    """The same with raw ssh: kill the clients, wait for each file's next line."""
    found: list[float] = []
    with Rig() as rig, contextlib.ExitStack() as stack:
        copies = [rig.folder / f"copy{number}" for number in range(count)]
        loops = [_tail(stack, rig, copy, pause_s(count)) for copy in copies]
        for _ in range(times):
            await _grown(copies, time.monotonic())
            await asyncio.sleep(random.random() * 2)
            clients = [_child(loop.pid) for loop in loops]
            killed_at = time.monotonic()
            for client in clients:
                os.kill(client, signal.SIGKILL)
            found += await _grown(copies, killed_at)
    return found


def _tail(stack: contextlib.ExitStack, rig: Rig, copy: Path, every_s: float) -> subprocess.Popen[bytes]:
    """Let something write lines into a file, and a shell loop copy them over ssh."""
    source = copy.with_suffix(".source")
    writer = subprocess.Popen(["sh", "-c", f"while :; do date +%s.%N; sleep {every_s}; done >'{source}'"])
    command = [*rig.sshd.ssh_command(), f"exec tail -n 0 -F {source}"]
    with copy.open("ab") as output:
        loop = subprocess.Popen(["sh", "-c", 'while :; do "$@"; done', "sh", *command], stdout=output, stderr=subprocess.DEVNULL)
    for process in (writer, loop):
        stack.callback(process.wait)
        stack.callback(process.kill)
    return loop


def _child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


async def _grown(files: Sequence[Path], since: float) -> list[float]:
    pending, times = {file: file.stat().st_size for file in files}, list[float]()
    async with asyncio.timeout(60):
        while pending:
            await asyncio.sleep(0.005)
            for file in [file for file, size in pending.items() if file.stat().st_size > size]:
                times.append(time.monotonic() - since)
                del pending[file]
    return times


async def main(counts: Sequence[int], times: int, lease_s: float) -> None:
    """Print the table and keep the evidence."""
    tally = evidence.Tally("worker-killed", "bench/recover.py")
    print(HEAD, flush=True)
    for count in counts:
        for situation in (FLOOR, STANDBY, AGAIN, ELSEWHERE):
            found = await (floor(count, times) if situation == FLOOR else kills(situation, count, times, lease_s))
            ordered = sorted(found)
            p99 = ordered[min(len(found) - 1, int(len(found) * 0.99))]
            print(
                f"| {situation} | {count} | {times} | {statistics.median(found):.2f} | {p99:.2f} | {ordered[-1]:.2f} |",
                flush=True,
            )
            for seconds in found:
                tally.recovered(seconds, f"{situation}, {count} job{'s' if count > 1 else ''}")
            tally.ran(times if situation != FLOOR else 0)
    evidence.keep([tally])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--lease", type=float, default=10.0)
    given = parser.parse_args()
    asyncio.run(main(given.counts, given.kills, given.lease))
