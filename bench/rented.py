"""What rented machines cost beside the training: paid idle before and after it, requests to the provider, memory of the worker.

    python -m bench.rented [--counts 1 10] [--late 0 45] [--window 60]

The provider is the simulated Vast.ai, its instances real OpenSSH servers on this machine with the real supervisor, the worker a process of
its own as users run it, with the provider's published limits. The simulated clock runs faster, so that a cold host boots in seconds; what
is measured are real seconds. ``--late``: for so many simulated seconds after "running" the SSH port of each instance refuses.

A hundred jobs (``--counts 100``) take a quarter of an hour: the provider allows one search in six seconds.

Rules for editing: moments are the provider's own record, the step's own clock and the store's events; never the worker's word.
"""

from __future__ import annotations

import argparse
import asyncio
import getpass
import os
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from bench.rig import Rig, Usage
from remote_trainer.model import Job, Phase
from remote_trainer.service import jobs
from remote_trainer.service.app import App
from remote_trainer.service.submit import Order, submit
from remote_trainer.testing.vast import demo
from remote_trainer.testing.vast.instances import Timings
from remote_trainer.testing.vast.local import LocalMachines
from remote_trainer.testing.vast.server import SimVast

SPEED = 20.0
BOOT = Timings(scheduled_s=5, created_s=5, loading_s=240, destroy_s=7)
_PATIENCE_S = 3000.0

_TOOL = """\
date +%s.%N
mkdir -p "$RT_OUTPUT/final"
head -c 100000 /dev/urandom >"$RT_OUTPUT/final/result.bin"
while [ ! -e {go} ]; do sleep 2; done
"""
_OUTPUTS = "outputs:\n  - {name: final, kind: final, glob: final/result.bin}\n"


class FastClock:
    """Runs faster than the machine's."""

    def __init__(self) -> None:
        self._zero = time.time()

    def now(self) -> float:
        return self._zero + (time.time() - self._zero) * SPEED

    def real(self, at: float) -> float:
        """Return when that was by the machine's clock."""
        return self._zero + (at - self._zero) / SPEED


@dataclass
class Round:
    """One number of jobs."""

    count: int
    late_s: float
    ready: list[float] = field(default_factory=list)  # seconds from SSH readiness to the training's start
    kept: list[float] = field(default_factory=list)  # from the last verified artifact to the accepted destroy
    calls: Counter[str] = field(default_factory=Counter)  # while all were running
    window_s: float = 0.0
    life: Counter[str] = field(default_factory=Counter)  # from first to last
    memory_mb: float = 0.0  # of the worker, for each job that came after the first

    def __str__(self) -> str:
        hourly = sum(self.calls.values()) / (self.count * self.window_s / 3600)
        most = max(self.calls.values(), default=0) / self.window_s
        return (
            f"| {self.count} | {self.late_s:g} s | {spread(self.ready)} | {spread(self.kept)} | {hourly:.1f} | {most:.2f} "
            f"| {sum(self.life.values()) / self.count:.1f} | {self.memory_mb:.2f} MB |"
        )


HEAD = (
    "| jobs | SSH comes after | idle before: median, most | idle after: median, most | calls per job-hour | busiest endpoint, a second "
    "| calls of a whole life | memory per job |\n|---|---|---|---|---|---|---|---|"
)


def spread(values: Sequence[float]) -> str:
    """Return median and most."""
    return f"{statistics.median(values):.2f} s, {max(values):.2f} s"


def kinds(requests: Sequence[tuple[str, str]]) -> Counter[str]:
    """Count requests by what the provider limits each by."""
    return Counter(f"{method} {'/'.join(part for part in path.split('/') if not part.isdigit())}" for method, path in requests)


async def measured(app: App, rig: Rig, sim: SimVast, clock: FastClock, plan: Round, window_s: float) -> None:
    """Run the jobs of one round."""
    go = rig.folder / f"go-{plan.count}-{plan.late_s:g}"
    tool = rig.tool(f"idle-{plan.count}-{plan.late_s:g}".replace(".", "-"), _TOOL.format(go=go), _OUTPUTS)
    if plan.late_s:
        sim.faults.arm("boot-refused", times=plan.count, seconds=plan.late_s)
    worker, since = Usage(rig.workers[0].pid), len(sim.requests)
    options = {"user": getpass.getuser()}
    order = Order(tool=tool, driver="vastai", driver_options=options)
    submitted = [await submit(app, order)]
    await until(app, submitted, Phase.EXECUTING)
    first = worker.memory_mb()
    submitted += [await submit(app, order) for _ in range(plan.count - 1)]
    await until(app, submitted, Phase.EXECUTING)
    await asyncio.sleep(15)  # until the last job has settled, too
    plan.memory_mb = (worker.memory_mb() - first) / max(1, plan.count - 1)
    before, began = len(sim.requests), time.monotonic()
    await asyncio.sleep(window_s)
    plan.calls, plan.window_s = kinds(sim.requests[before:]), time.monotonic() - began
    await asyncio.to_thread(go.touch)
    await until(app, submitted, Phase.DONE)
    plan.life = kinds(sim.requests[since:])
    moments = {(entry.label, entry.what): clock.real(entry.at) for entry in sim.record.entries()}
    for job in submitted:
        await note(app, job, plan, moments)


async def note(app: App, job: Job, plan: Round, moments: dict[tuple[str, str], float]) -> None:
    """Add what one job waited."""
    done = await app.store.get(job.id)
    assert done.attempt is not None and done.attempt.number == 1, done.attempts
    label = done.attempt.label
    text = await app.store.read_log(job.id, "a1/run.1")
    kept = next(event.at for event in await jobs.events(app, job.id) if event.data.get("to") == "releasing")
    plan.ready.append(float(text.split()[0]) - moments[label, "running"] - plan.late_s / SPEED)
    plan.kept.append(moments[label, "ended"] - kept.timestamp())


async def until(app: App, wanted: Sequence[Job], phase: Phase) -> None:
    """Wait until each job has reached a phase."""
    deadline = time.monotonic() + _PATIENCE_S
    left = list(wanted)
    while left:
        seen = await app.store.get(left[-1].id)
        if seen.phase is phase:
            left.pop()
            continue
        assert not seen.phase.terminal and time.monotonic() < deadline, f"{seen.id}: {seen.phase}, {seen.message or seen.note}"
        await asyncio.sleep(0.5)


async def main(counts: Sequence[int], late: Sequence[float], window_s: float) -> None:
    """Print the table."""
    clock = FastClock()
    offers = [demo.offer(number, dph_base=0.3 + number / 10_000) for number in range(1000, 1040 + max(counts))]
    with Rig(max_jobs=max(counts)) as rig:
        machines = LocalMachines(Path(rig.folder / "instances"))
        with SimVast(offers, machines=machines, clock=clock, timings=BOOT, credit=Decimal(10_000)) as sim:
            os.environ["VAST_URL"], os.environ["VAST_API_KEY"] = sim.url, sim.key
            os.environ["REMOTE_TRAINER_LOG_FORMAT"] = "json"
            async with rig.app() as app:
                rig.worker()
                print(HEAD, flush=True)
                for count in counts:
                    for late_s in late:
                        plan = Round(count, late_s)
                        await measured(app, rig, sim, clock, plan, window_s)
                        print(plan, flush=True)
                        print(f"<!-- {dict(plan.calls)}; whole lives: {dict(plan.life)} -->", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--late", type=float, nargs="+", default=[0, 45])
    parser.add_argument("--window", type=float, default=60)
    given = parser.parse_args()
    asyncio.run(main(given.counts, given.late, given.window))
