"""What running jobs cost one worker: its CPU when they are silent and when each writes a line a second, its memory, a line's way.

    python -m bench.follow [--counts 10 100 1000] [--hosts one each] [--seconds 30]

The worker is a process of its own on the embedded store; CPU is that process's user + system time over wall time, from /proc, in per
cent of one core. The host side is the stand-in of standin.py, with all jobs on one host or each on a host of its own.

Rules for editing: a figure is the worker's own; what the host side and the reader of the log cost beside it is not in it.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from bench.rig import Rig, StandIn, Usage
from remote_trainer.model import Job
from remote_trainer.service import jobs
from remote_trainer.service.app import App
from remote_trainer.service.names import new_job_id
from remote_trainer.service.submit import Order, submit

_OUTPUTS = """\
outputs:
  - {name: samples, glob: 'samples/*.png'}
  - {name: lora, kind: final, glob: 'final/*.safetensors'}
"""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    count: int
    hosts: str
    taken_s: float
    idle: float  # per cent of a core
    busy: float
    memory_mb: float
    delays: tuple[float, ...]

    def __str__(self) -> str:
        delays = sorted(self.delays) or [float("nan")]
        p50, p99 = statistics.median(delays) * 1e3, delays[int(len(delays) * 0.99)] * 1e3
        return (
            f"| {self.count} | {self.hosts} | {self.taken_s:.1f} s | {self.idle:.1f} % | {self.busy:.1f} % | {self.memory_mb:.0f} MB "
            f"| {p50:.0f} / {p99:.0f} ms |"
        )


HEAD = (
    "| running jobs | hosts | all followed after | idle | a line a second each | memory | line written → in the store, p50 / p99 |\n"
    "|---|---|---|---|---|---|---|"
)


async def queue(app: App, tool: str, count: int, options: Callable[[int], Mapping[str, Any]]) -> list[Job]:
    """Queue ``count`` jobs of a tool; ``options`` are those of the driver for each."""
    first = await submit(app, Order(tool=tool, driver="ssh", driver_options=options(0)))
    made = [first]
    for number in range(1, count):
        job_id = new_job_id(app.clock.now())
        made.append(replace(first, id=job_id, name=job_id, driver_options=options(number)))
        await app.store.submit(made[-1])
    return made


async def until(reached: Callable[[], bool], limit_s: float) -> float:
    """Return the seconds until something is so."""
    began = time.monotonic()
    while not reached():
        if time.monotonic() - began > limit_s:
            raise TimeoutError(f"not within {limit_s} s")
        await asyncio.sleep(0.05)
    return time.monotonic() - began


async def delays(app: App, job: Job, seconds: float) -> tuple[float, ...]:
    """Return for each line of a job that comes now how long it took until it could be read."""
    began, found, rest = time.time(), list[float](), ""
    async with aclosing(jobs.read_logs(app, job.id, follow=True)) as pieces:
        async for piece in pieces:
            now = time.time()
            *whole, rest = (rest + piece.data.decode()).split("\n")
            found += [now - float(line) for line in whole if float(line) > began]
            if now - began > seconds:
                break
    return tuple(found)


async def measure(count: int, each: bool, seconds: float) -> Row:
    """Run one round."""
    with Rig(max_jobs=count + 10) as rig, StandIn(rig.folder) as hosts:
        tool = rig.tool("endless", "true\n", _OUTPUTS)
        async with rig.app() as app:
            queued = await queue(app, tool, count, lambda number: hosts.driver_options(number if each else 0))
            began = time.monotonic()
            worker = Usage(rig.worker().pid)
            await until(lambda: hosts.follows()[0] == count, 30 + count / 20)
            taken = time.monotonic() - began
            await asyncio.sleep(12)  # the first heartbeats are over
            idle = await worker.percent(seconds)
            hosts.rate(1)
            await asyncio.sleep(3)
            busy, written = await asyncio.gather(worker.percent(seconds), delays(app, queued[count // 2], seconds))
            return Row(count, "one each" if each else "one", taken, idle, busy, worker.memory_mb(), written)


async def main(counts: list[int], hosts: list[str], seconds: float) -> None:
    """Print the table."""
    print(HEAD, flush=True)
    for kind in hosts:
        for count in counts:
            print(await measure(count, kind == "each", seconds), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--hosts", choices=["one", "each"], nargs="+", default=["one", "each"])
    parser.add_argument("--seconds", type=float, default=30.0)
    given = parser.parse_args()
    asyncio.run(main(given.counts, given.hosts, given.seconds))
