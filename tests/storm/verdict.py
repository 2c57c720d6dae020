"""What a storm must have left: every job DONE, nothing started twice, every byte in place, hosts clean; by the hosts' own record.

Rules for editing: each sentence found here is a violation of a promise; what was hit on purpose excuses exactly what it must (a killed step
runs once more), and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass

from remote_trainer.model import Job, JobId, Phase, log_stream
from remote_trainer.service import jobs as service
from tests.storm.blows import Struck
from tests.storm.ground import Ground
from tests.storm.hosts import Process, StormHost

#: A line is the most that a killed step has put into the record and not yet into its log.
_LINE_MAX = 200
_RELEASE_GRACE_S = 55.0  # a borrowed host that cannot be reached for so long keeps its folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One broken promise."""

    kind: str  # "not done", "stuck", "double start", …
    what: str
    job: JobId | None = None


async def judge(ground: Ground, jobs: Sequence[Job], struck: Sequence[Struck]) -> list[Violation]:
    """Return every violation."""
    found = [violation for host in ground.hosts for violation in _starts(host)]
    for job in jobs:
        host = _host_of(ground, job)
        found += [violation async for violation in _job(ground, host, job, struck)]
    return found


async def _job(ground: Ground, host: StormHost, job: Job, struck: Sequence[Struck]) -> AsyncIterator[Violation]:
    if not job.phase.terminal:
        yield Violation(kind="stuck", what=f"{job.phase} ({job.note})", job=job.id)
        return
    if job.phase is not Phase.DONE:
        yield Violation(kind="not done", what=f"{job.phase}: {job.reason}: {job.message}", job=job.id)
    hits = [one for one in struck if one.run is not None and _job_of(one.run[0]) == job.id]
    for violation in _repeated(host, job, hits, struck):
        yield violation
    async for violation in _logs(ground, host, job, hits):
        yield violation
    if job.phase is Phase.DONE:
        async for violation in _artifacts(ground, host, job):
            yield violation
    for label, folder in host.folders():
        if _job_of(label) == job.id and not _let_go_of(job, label):
            yield Violation(kind="left behind", what=f"{label}/{folder} on {host.box.host}", job=job.id)


def _starts(host: StormHost) -> Iterator[Violation]:
    for (label, step), times in host.starts().items():
        if times > 1:
            yield Violation(kind="double start", what=f"{label} {step} was started {times} times", job=_job_of(label))


def _repeated(host: StormHost, job: Job, hits: Sequence[Struck], struck: Sequence[Struck]) -> Iterator[Violation]:
    """Work is done again only where it was killed, or where a full disk did not let it begin."""
    starts = [run for run in host.starts() if _job_of(run[0]) == job.id]
    again = len(job.attempts) - 1 + sum(1 for _, step in starts if not step.endswith(".1"))
    full = any(one.kind == "host-disk" and one.host is host for one in struck)
    if again > len(hits) and not full:
        what = f"{len(job.attempts)} attempts, started {sorted(starts)}, hit {len(hits)} times"
        yield Violation(kind="repeated work", what=what, job=job.id)


async def _logs(ground: Ground, host: StormHost, job: Job, hits: Sequence[Struck]) -> AsyncIterator[Violation]:
    there = dict(await ground.rig.app.store.log_streams(job.id))
    killed = {one.run for one in hits}
    for (label, step), written in host.logs().items():
        if _job_of(label) != job.id:
            continue
        stream = log_stream(int(label.rpartition("-a")[2]), step)
        kept = await ground.rig.log(job, step, int(label.rpartition("-a")[2])) if stream in there else b""
        missing = len(written) - len(kept)
        cut_short = (label, step) in killed and written.startswith(kept) and 0 <= missing <= _LINE_MAX
        if kept != written and not cut_short:
            same = next(
                (at for at, (a, b) in enumerate(zip(kept, written, strict=False)) if a != b), min(len(kept), len(written))
            )
            what = f"{stream}: {len(kept)} bytes kept, {len(written)} written, the same up to {same}"
            yield Violation(kind="log bytes wrong", what=what, job=job.id)


async def _artifacts(ground: Ground, host: StormHost, job: Job) -> AsyncIterator[Violation]:
    attempt = job.attempt
    assert attempt is not None
    if attempt.manifest is None:
        yield Violation(kind="artifacts", what="no manifest", job=job.id)
        return
    kept = {}
    for artifact in attempt.manifest.artifacts:
        path = await service.download(ground.rig.app, artifact, ground.rig.folder / "downloads" / job.id)
        kept[artifact.path] = hashlib.sha256(path.read_bytes()).hexdigest()
    if kept != host.sums(attempt.label):
        yield Violation(kind="artifacts", what=f"kept {kept}, left on the host {host.sums(attempt.label)}", job=job.id)


def left_running(ground: Ground) -> list[Process]:
    """Return what still runs on the hosts, now that no worker is there: no session, no follower, no step."""
    return [process for host in ground.hosts for process in host.processes()]


def complaints(ground: Ground) -> Iterator[Violation]:
    """Yield bugs that workers have told of themselves."""
    for number, worker in enumerate(ground.rig.workers):
        for line in worker.log.splitlines():
            if '"bug"' in line or '"job_parked"' in line or line.startswith("Traceback"):
                yield Violation(kind="worker's bug", what=f"worker{number}.log: {_short(line)}")


def _short(line: str) -> str:
    try:
        said = json.loads(line)
    except ValueError:
        return line[:300]
    return str({key: said[key] for key in ("action", "effect", "job", "exception", "error") if key in said})[-1500:]


def _let_go_of(job: Job, label: str) -> bool:
    """Whether the host could not be reached for so long that the job ended without it."""
    attempt = next(attempt for attempt in job.attempts if attempt.label == label)
    if attempt.releasing_at is None or attempt.ended_at is None:
        return False
    return (attempt.ended_at - attempt.releasing_at).total_seconds() >= _RELEASE_GRACE_S


def _host_of(ground: Ground, job: Job) -> StormHost:
    return next(host for host in ground.hosts if f"@{host.box.host}:" in str(job.driver_options["host"]))


def _job_of(label: str) -> JobId:
    return JobId(label.split("-")[2])
