"""Looking at jobs and saying what should become of them. Readers wait for the store's change feed, never for a clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path

from remote_trainer.errors import Conflict, Incomplete, JobCancelled, JobFailed, NotFound
from remote_trainer.model import Artifact, Attempt, Event, Job, JobId, Phase
from remote_trainer.policy import job_cost, projected_cost
from remote_trainer.ports import JobQuery, Page
from remote_trainer.service.app import App
from remote_trainer.service.ledger import billed, enqueue
from remote_trainer.service.names import find_job, new_job_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A job as it is now, with what a person wants to see beside it."""

    job: Job
    at: datetime
    cost: Decimal  # US dollars so far
    projected: Decimal | None  # and of the whole job, if all goes well; None while nothing can be said
    billed: Decimal | None = None  # what the provider says so far, where it was asked
    values: Mapping[str, float]  # the newest value of each metric, ``progress`` (0 to 1) among them
    log_sizes: Mapping[str, int]  # stream → bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPiece:
    """Bytes of one stream in order."""

    stream: str
    offset: int
    data: bytes


async def list_jobs(app: App, query: JobQuery) -> Page:
    """Return one page of jobs, newest first."""
    return await app.store.find(query)


async def get_job(app: App, text: str) -> Job:
    """Return the job a person means by an id, the beginning of one, or a name."""
    return await find_job(app.store, text)


async def snapshot(app: App, job_id: JobId) -> Snapshot:
    """Return the job and its newest numbers."""
    job = await app.store.get(job_id)
    values: dict[str, float] = {}
    await _merge_metrics(app, job_id, 0, values)
    seen = _seen(app, job, values, await app.store.log_streams(job_id))
    return replace(seen, billed=await billed(app, job))


def _seen(app: App, job: Job, values: Mapping[str, float], sizes: Mapping[str, int]) -> Snapshot:
    now = app.clock.now()
    projected = projected_cost(job, values, now)
    return Snapshot(job=job, at=now, cost=job_cost(job, now), projected=projected, values=dict(values), log_sizes=sizes)


async def _merge_metrics(app: App, job_id: JobId, after: int, values: dict[str, float]) -> int:
    """Bring ``values`` up to date with all metrics after a sequence number; return the newest one."""
    while rows := await app.store.metrics(job_id, after=after):
        for _, metric in rows:
            values.update(metric.values)
        after = rows[-1][0]
    return after


async def watch_job(app: App, job_id: JobId) -> AsyncGenerator[Snapshot, None]:
    """Yield a snapshot now and at every change until the job has ended (that one is the last)."""
    values: dict[str, float] = {}
    seq = 0
    async with aclosing(app.store.watch(job_id)) as wakes:
        async for _ in wakes:
            job = await app.store.get(job_id)
            seq = await _merge_metrics(app, job_id, seq, values)
            sizes = await app.store.log_streams(job_id)
            yield _seen(app, job, values, sizes)
            if job.phase.terminal:
                return


async def read_logs(app: App, job_id: JobId, *, step: str | None = None, follow: bool = False) -> AsyncGenerator[LogPiece, None]:
    """Yield the job's step logs from their beginning, in the order the steps ran; with ``follow`` until the job has ended."""
    offsets: dict[str, int] = {}
    async with aclosing(app.store.watch(job_id)) as wakes:
        async for _ in wakes:
            ended = (await app.store.get(job_id)).phase.terminal  # asked first: what is written after it is not missed
            async for piece in _new_pieces(app, job_id, offsets, step):
                yield piece
            if ended or not follow:
                return


async def follow_job(app: App, job_id: JobId) -> AsyncGenerator[Snapshot | LogPiece, None]:
    """Yield a snapshot at every change, each followed by what the logs have grown; the last is that of the ended job, after all logs."""
    values: dict[str, float] = {}
    offsets: dict[str, int] = {}
    seq = 0
    async with aclosing(app.store.watch(job_id)) as wakes:
        async for _ in wakes:
            job = await app.store.get(job_id)
            seq = await _merge_metrics(app, job_id, seq, values)
            sizes = await app.store.log_streams(job_id)
            seen = _seen(app, job, values, sizes)
            if not job.phase.terminal:
                yield seen
            async for piece in _new_pieces(app, job_id, offsets, None):
                yield piece
            if job.phase.terminal:
                yield seen
                return


async def _new_pieces(app: App, job_id: JobId, offsets: dict[str, int], step: str | None) -> AsyncGenerator[LogPiece, None]:
    """Yield what the logs have grown since ``offsets``, and bring those up to date."""
    for stream in await app.store.log_streams(job_id):
        if not _is_log(stream, step):
            continue
        while data := await app.store.read_log(job_id, stream, offset=offsets.get(stream, 0)):
            yield LogPiece(stream=stream, offset=offsets.get(stream, 0), data=data)
            offsets[stream] = offsets.get(stream, 0) + len(data)


async def tail(app: App, job_id: JobId, *, limit: int = 1 << 16) -> bytes:
    """Return the end of the log of the step that ran last."""
    streams = [name for name in await app.store.log_streams(job_id) if _is_log(name, None)]
    if not streams:
        return b""
    size = (await app.store.log_streams(job_id))[streams[-1]]
    return await app.store.read_log(job_id, streams[-1], offset=max(0, size - limit), limit=limit)


def _is_log(stream: str, step: str | None) -> bool:
    """Is this the log of a step (and of the one asked for, by name or as ``name.try``), not a copied metrics file?"""
    run = stream.partition("/")[2]
    name, _, number = run.rpartition(".")
    return number.isdigit() and (step is None or step in (name, run))


async def events(app: App, job_id: JobId) -> list[Event]:
    """Return everything that happened to the job."""
    found: list[Event] = []
    while more := await app.store.events(job_id, after=found[-1].seq if found else 0):
        found += more
    return found


async def wait_job(app: App, job_id: JobId) -> Job:
    """Return the job once it has ended; raises JobFailed or JobCancelled unless it is DONE."""
    job = await app.store.get(job_id)
    async with aclosing(watch_job(app, job_id)) as snapshots:
        async for seen in snapshots:
            job = seen.job
    raise_unless_done(job)
    return job


def raise_unless_done(job: Job) -> None:
    """Turn a bad end into the error whose exit code says so."""
    if job.phase is Phase.CANCELLED:
        raise JobCancelled(f"job {job.id} was cancelled: {job.message}")
    if job.phase is Phase.FAILED:
        raise JobFailed(f"job {job.id} failed ({job.reason}): {job.message}")


async def cancel(app: App, job_id: JobId) -> Job:
    """Note the wish to cancel; the job ends CANCELLED, what there is of artifacts is kept. Conflict if it has ended."""
    await app.store.request_cancel(job_id)
    return await app.store.get(job_id)


async def retry(app: App, job_id: JobId) -> Job:
    """Queue the same plan, inputs and limits again as a new job, which resumes from the old one's newest checkpoint."""
    old = await ended_job(app, job_id)
    fresh = again(old, app.clock.now())
    return await enqueue(app, replace(fresh, retry_of=old.id))


async def ended_job(app: App, job_id: JobId) -> Job:
    """Return a job that has ended. Conflict if it has not."""
    old = await app.store.get(job_id)
    if not old.phase.terminal:
        raise Conflict(f"job {old.id} is still {old.phase}: cancel it first, or wait for it")
    return old


def again(old: Job, now: datetime) -> Job:
    """Return a job that has not begun, with the plan, inputs, places and limits of an earlier one."""
    new_id = new_job_id(now)
    return Job(
        id=new_id,
        name=old.name if old.name != old.id else new_id,
        plan=old.plan,
        driver=old.driver,
        driver_options=old.driver_options,
        wishes=old.wishes,
        provision=old.provision,
        fallbacks=old.fallbacks,
        created_at=now,
        since=now,
        tenant=old.tenant,
        inputs=old.inputs,
        limits=old.limits,
        priority=old.priority,
        evaluation_of=old.evaluation_of,
    )


# ----------------------------------------------------------------------------------------------------------- artifacts


def kept_attempt(job: Job) -> Attempt:
    """Return the last attempt that kept anything. NotFound if none did."""
    for attempt in reversed(job.attempts):
        if attempt.manifest is not None and attempt.manifest.artifacts:
            return attempt
    raise NotFound(f"job {job.id} ({job.phase}) has kept no artifacts" + ("" if job.phase.terminal else " yet"))


async def links(app: App, artifact: Artifact, *, expires_s: int = 3600) -> str:
    """Return a link to download an artifact without credentials."""
    return await app.objects.presign(artifact.key, expires_s=expires_s)


async def download(app: App, artifact: Artifact, folder: Path) -> Path:
    """Write an artifact below a folder, verified; an equal file that is there stays. Incomplete if its path leaves the folder."""
    target = await asyncio.to_thread(_target_of, artifact, folder)
    await app.objects.get(artifact.key, target, sha256=artifact.sha256)
    return target


def _target_of(artifact: Artifact, folder: Path) -> Path:
    target = (folder / artifact.path).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise Incomplete(f"artifact {artifact.path!r} would be written outside {folder}")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def elapsed_s(job: Job, now: datetime) -> float:
    """Return the seconds since the job was submitted, or that it took."""
    return ((job.finished_at or now) - job.created_at).total_seconds()
