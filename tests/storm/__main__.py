"""`python -m tests.storm`: many jobs, several workers, container hosts, and by seed everything that goes wrong; exits 1 if a promise broke.

The seed decides what is dealt and when; real processes decide what it meets. The folder is kept when something broke.

Rules for editing: this module only brings the parts in order; what is dealt is in schedule.py, what is judged in verdict.py.
"""

from __future__ import annotations

from tests.support import environment

environment.scrub()

import argparse  # noqa: E402 - libraries read the environment when they are imported
import asyncio  # noqa: E402
import contextlib  # noqa: E402
import os  # noqa: E402
import random  # noqa: E402
import resource  # noqa: E402
import shutil  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from pathlib import Path  # noqa: E402

from remote_trainer.errors import RemoteTrainerError  # noqa: E402
from remote_trainer.model import Job  # noqa: E402
from remote_trainer.ports import JobQuery  # noqa: E402
from remote_trainer.service.submit import Order, submit  # noqa: E402
from tests.storm import ground as grounds  # noqa: E402
from tests.storm import report, schedule, verdict  # noqa: E402
from tests.storm.blows import Dealer  # noqa: E402
from tests.storm.ground import Ground  # noqa: E402
from tests.storm.hosts import ROOT  # noqa: E402
from tests.storm.recovery import Watcher  # noqa: E402
from tests.storm.schedule import Schedule, Wish  # noqa: E402
from tests.storm.verdict import Violation  # noqa: E402
from tests.support import evidence  # noqa: E402
from tests.support.rig import LONG  # noqa: E402

STORES: tuple[schedule.Store, ...] = ("sqlite", "mongo")

#: Once nothing goes wrong any more, a job that does not change for so long, seconds, is stuck.
_CALM_S = 120.0
#: How long three workers take to start together on two quiet cores; where it takes longer, so does everything.
_START_S = 3.0
#: A follower whose client vanished ends itself after two minutes of silence.
_SILENCE_S = 150.0
_SETTLED_S = 10.0
#: From here on a storm is long, seconds.
_LONG_S = 100.0


def main() -> int:
    """Run the storms that were asked for."""
    options = _options()
    stores = STORES if options.store == "both" else [options.store]
    if reason := next(filter(None, map(grounds.missing, stores)), None):
        print(f"no storm here: {reason}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends us must not leave hosts and workers behind
    return max([_one(options, store) for store in stores])


def _one(options: argparse.Namespace, store: schedule.Store) -> int:
    """Run one storm; returns 1 if a promise broke."""
    folder = Path(tempfile.mkdtemp(prefix="storm-"))
    plan = schedule.make(options.seed, jobs=options.jobs, kills=options.kills)
    print(
        f"storm: SEED={options.seed} STORE={store} JOBS={options.jobs} KILLS={options.kills} WORKERS={options.workers}"
        f" on {options.hosts} hosts, {plan.span_s:.0f} s, {folder}",
        flush=True,
    )
    result = asyncio.run(_storm(folder, plan, options, store))
    print(report.table(result), flush=True)
    _keep_evidence(result, store)
    if not result.violations:
        shutil.rmtree(folder, ignore_errors=True)
        return 0
    print(f"\nBROKEN, with SEED={options.seed} STORE={store}; everything is in {folder}")
    for violation in result.violations:
        print(f"  {violation.kind}: {violation.what}" + (f" (job {violation.job})" if violation.job else ""))
    print((folder / "story").read_text(), flush=True)
    return 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.storm", description=__doc__)
    parser.add_argument("--jobs", type=int, default=200 if LONG else 20)
    parser.add_argument("--kills", type=int, default=100 if LONG else 6, help="of workers; other blows are dealt in proportion")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--hosts", type=int, default=3)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--store", choices=(*STORES, "both"), default="both" if LONG else "sqlite")
    return parser.parse_args()


async def _storm(folder: Path, plan: Schedule, options: argparse.Namespace, store: schedule.Store) -> report.Result:
    async with grounds.prepared(folder, store=store, workers=options.workers, host_count=options.hosts) as ground:
        plan = schedule.stretched(plan, await ground.begin() / _START_S)
        began = time.monotonic()
        watcher = Watcher(ground)
        dealer = watcher.dealer = Dealer(ground, store, watcher.hurt)
        async with asyncio.TaskGroup() as group:
            submitted = [group.create_task(_submit(ground, began, number, wish)) for number, wish in enumerate(plan.wishes)]
            for blow in plan.blows:
                group.create_task(_later(began + blow.at_s, dealer.deal(blow)))
        jobs = await _ended(ground, [task.result() for task in submitted])
        await watcher.end()
        took_s = time.monotonic() - began
        deaths = sum(slot.deaths for slot in ground.slots)
        violations = [
            *await verdict.judge(ground, jobs, dealer.struck),
            *await _emptied(ground, plan),
            *verdict.complaints(ground),
        ]
        (folder / "story").write_text(await _story(ground, dealer, jobs, began, violations))
        return report.Result(
            jobs=jobs,
            struck=dealer.struck,
            missed=dealer.missed,
            recoveries=watcher.found,
            violations=violations,
            deaths=deaths,
            took_s=took_s,
            cpu_s=_cpu_s(),
        )


async def _later(when: float, work: object) -> None:
    await asyncio.sleep(max(0.0, when - time.monotonic()))
    await work  # type: ignore[misc]


async def _submit(ground: Ground, began: float, number: int, wish: Wish) -> Job:
    """Submit as a patient user does: a store that is away is asked again, after a look whether the job is there already."""
    await asyncio.sleep(max(0.0, began + wish.at_s - time.monotonic()))
    host = ground.hosts[int(wish.host * len(ground.hosts))]
    given = {"record": host.record, "lines": wish.lines, "delay_s": wish.delay_s, "kb": wish.kb, "flood_kb": wish.flood_kb}
    order = Order(
        tool="stormed@1",
        driver="ssh",
        driver_options={
            "host": f"{host.box.user}@{host.box.host}:{host.box.port}",
            "identity": str(host.box.key_path),
            "host_key": host.box.host_key_public,
            "root": ROOT,
        },
        dataset=str(ground.dataset),
        settings=[f"{name}={value}" for name, value in given.items()],
        name=f"storm-{number}",
        max_attempts=10,
    )
    while True:
        with contextlib.suppress(RemoteTrainerError, OSError):
            page = await ground.rig.app.store.find(JobQuery(name=order.name))
            return page.jobs[0] if page.jobs else await submit(ground.rig.app, order)
        await asyncio.sleep(0.5)


async def _ended(ground: Ground, given: Sequence[Job]) -> list[Job]:
    """Wait until every job has ended, or nothing has changed for long: how fast things go depends on the machine."""
    store = ground.rig.app.store
    seen, until = None, 0.0
    while True:
        jobs = [await store.get(job.id) for job in given]
        open_jobs = [job for job in jobs if not job.phase.terminal]
        now = [(job, sum((await store.log_streams(job.id)).values())) for job in open_jobs]
        if now != seen:
            seen, until = now, time.monotonic() + _CALM_S
        if not open_jobs or time.monotonic() > until:
            return jobs
        await asyncio.sleep(0.5)


async def _emptied(ground: Ground, plan: Schedule) -> list[Violation]:
    """Let the workers go, and see what stays on the hosts. Only a long storm waits for followers whose clients vanished."""
    badly = [code for code in await asyncio.to_thread(ground.drain) if code]
    patience_s = _SILENCE_S if plan.span_s > _LONG_S else _SETTLED_S
    until = time.monotonic() + patience_s
    while (left := verdict.left_running(ground)) and time.monotonic() < until:
        await asyncio.sleep(0.5)
        if plan.span_s <= _LONG_S and not any(process.label for process in left):
            left = []
            break
    return [
        *(Violation(kind="worker's bug", what=f"a drained worker ended with {code}") for code in badly),
        *(Violation(kind="left running", what=f"{process.command} (pid {process.inner})") for process in left),
    ]


async def _story(ground: Ground, dealer: Dealer, jobs: Sequence[Job], began: float, violations: Sequence[Violation]) -> str:
    """Everything a person needs who looks into a violation: the blows, the events of the jobs concerned, the workers' last words."""
    lines = ["\nblows"]
    for one in dealer.struck:
        until = "" if one.until is None else f" to {one.until - began:.2f}"
        lines.append(f"  {one.began - began:7.2f}{until}  {one.kind}: {one.what}")
    for job in (job for job in jobs if any(violation.job == job.id for violation in violations)):
        lines.append(
            f"\njob {job.id} {job.name} on {job.driver_options['host']}: {job.phase} {job.reason} {job.message} {job.note}"
        )
        lines += [f"  {event.at:%H:%M:%S.%f}  {event.kind}: {event.message}" for event in await ground.rig.events(job)]
    for number, worker in enumerate(ground.rig.workers):
        lines.append(f"\n--- worker {number}\n{worker.log[-3000:]}")
    return "\n".join(lines)


def _keep_evidence(result: report.Result, store: str) -> None:
    tally = evidence.Tally("storm", f"tests/storm, {store}", runs=len(result.jobs), violations=len(result.violations))
    for one in result.recoveries:
        tally.recovered(one.seconds, one.situation if one.alone else f"{one.situation}, amid other faults")
    evidence.keep([tally])


def _cpu_s() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


if __name__ == "__main__":
    code = main()
    shutil.rmtree(os.environ["HOME"], ignore_errors=True)
    sys.exit(code)
