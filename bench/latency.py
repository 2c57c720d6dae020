"""How long a job waits for us: submit to start, to the first log line, to DONE; ten at once; a log line's way; a raw ssh beside it.

    python -m bench.latency [--rounds 15]

The store is the embedded one, the worker a process of its own, the host a loopback OpenSSH server. Times on the host and here are of one
clock. "open" is a job on a host that the worker is connected to, "new" the first job of a fresh worker.

Rules for editing: medians of rounds; every figure is read where a user would read it (the store), not inside the worker.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.follow import queue
from bench.rig import Rig
from remote_trainer.model import Job
from remote_trainer.service import jobs
from remote_trainer.service.app import App
from remote_trainer.service.submit import Order, submit

_SLEEPER = "date +%s.%N\nsleep 2\n"
_QUICK = "date +%s.%N\n"
_TALKER = """\
i=0
while [ $i -lt 200 ]; do
  date +%s.%N
  sleep 0.05
  i=$((i + 1))
done
"""


async def one(app: App, rig: Rig, tool: str) -> tuple[float, float, float, float]:
    """Run a job; return seconds from its being queued to start on the host, to its first line in the store, to DONE; and to queue it."""
    began = time.time()
    job = await submit(app, Order(tool=tool, driver="ssh", driver_options=rig.driver_options))
    submitted = time.time()
    first, text = await first_line(app, job)
    ended = await jobs.wait_job(app, job.id)
    done = time.time()
    assert ended.phase == "done", ended.message
    return float(text.split()[0]) - submitted, first - submitted, done - submitted, submitted - began


async def first_line(app: App, job: Job) -> tuple[float, str]:
    """Return when the first line could be read, and it."""
    async for piece in jobs.read_logs(app, job.id, follow=True):
        return time.time(), piece.data.decode()
    raise AssertionError(f"job {job.id} ended without a line")


async def lines(app: App, rig: Rig, tool: str) -> list[float]:
    """Return for each line of a talking job the seconds from its writing to its reading."""
    job = await submit(app, Order(tool=tool, driver="ssh", driver_options=rig.driver_options))
    found: list[float] = []
    rest = ""
    async for piece in jobs.read_logs(app, job.id, follow=True):
        now = time.time()
        *whole, rest = (rest + piece.data.decode()).split("\n")
        found += [now - float(line) for line in whole]
    return found[5:]


async def at_once(app: App, rig: Rig, tool: str, count: int) -> float:
    """Return the seconds until ``count`` jobs submitted together are all DONE."""
    began = time.time()
    submitted = await queue(app, tool, count, lambda _: rig.driver_options)
    await asyncio.gather(*(jobs.wait_job(app, job.id) for job in submitted))
    return time.time() - began


def timed(command: Sequence[str], rounds: int) -> list[float]:
    """Return the seconds of each round of a command."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
        times.append(time.perf_counter() - began)
    return times


def row(name: str, values: Sequence[float], target: str) -> None:
    """Print one line of the table."""
    ordered = sorted(values)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    print(f"| {name} | {statistics.median(ordered):.3f} | {ordered[0]:.3f} | {p99:.3f} | {target} |", flush=True)


async def main(rounds: int) -> None:
    """Print the table."""
    with Rig() as rig:
        quick, sleeper, talker = (rig.tool(n, s) for n, s in (("quick", _QUICK), ("sleeper", _SLEEPER), ("talker", _TALKER)))
        print("| seconds | median | min | p99 | target |\n|---|---|---|---|---|", flush=True)
        row("cold `ssh host true`", timed([*rig.sshd.ssh_command(), "true"], rounds), "")
        row("`run-training --help`", timed([str(Path(sys.executable).with_name("run-training")), "--help"], rounds), "0.4")
        async with rig.app() as app:
            fresh = []
            for _ in range(min(5, rounds)):
                worker = rig.worker()
                fresh.append(await one(app, rig, quick))
                worker.terminate()
                worker.wait(30)
            row("checking and queueing a job, login to the host included", [f[3] for f in fresh], "")
            row("submit → process started, new connection", [f[0] for f in fresh], "0.30")
            rig.worker()
            await one(app, rig, quick)
            opened = [await one(app, rig, quick) for _ in range(rounds)]
            row("submit → process started, connection open", [f[0] for f in opened], "0.15")
            row("submit → first log line in the store", [f[1] for f in opened], "0.40")
            row("job that does nothing: submit → DONE", [f[2] for f in opened], "")
            row("2 s job: submit → DONE", [(await one(app, rig, sleeper))[2] for _ in range(max(3, rounds // 3))], "2.6")
            row("10 such jobs at once: all DONE", [await at_once(app, rig, sleeper, 10) for _ in range(3)], "3.5")
            row("100 jobs that do nothing: all DONE", [await at_once(app, rig, quick, 100)], "")
            row("log line written → readable", await lines(app, rig, talker), "0.030, p99 0.100")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    asyncio.run(main(parser.parse_args().rounds))
