"""What all rules share: the table of moves, the decision, and small questions about a job.

Rules for editing: as in the package's docstring; nothing here knows a single phase's business.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from remote_trainer import policy as choices
from remote_trainer.effects import (
    Effect,
    PrepareHost,
    Seen,
    Severity,
    Trouble,
)
from remote_trainer.errors import InvariantBroken
from remote_trainer.model import (
    Attempt,
    Job,
    JobId,
    Phase,
    Reason,
    Verdict,
)
from remote_trainer.policy import Policy
from remote_trainer.ports import Abilities

P = Phase

DOUBT_S = 5.0  # between two looks at a listing that lacked our instance

#: Every legal move and what causes it. docs/lifecycle.md is made from this table.
TRANSITIONS: dict[tuple[Phase, Phase], str] = {
    (P.QUEUED, P.PROVISIONING): "a worker claimed the job; attempt and label are saved before anything is rented",
    (P.QUEUED, P.CANCELLED): "cancelled before anything was rented",
    (P.PROVISIONING, P.TRANSFERRING): "the host is bootstrapped and has what the plan needs",
    (P.PROVISIONING, P.RELEASING): "cancelled, no suitable machine, or out of time",
    (P.TRANSFERRING, P.EXECUTING): "all inputs are verified on the host",
    (P.TRANSFERRING, P.RELEASING): "cancelled, the instance is gone, or the transfer cannot succeed",
    (P.EXECUTING, P.FETCHING): "the last step ended, a step failed for good, was stopped, or was lost",
    (P.EXECUTING, P.RELEASING): "the instance is gone: nothing is left to fetch",
    (P.FETCHING, P.RELEASING): "every output is verified in the object store, or cannot be had",
    (P.RELEASING, P.PROVISIONING): "the attempt was lost, its instance is gone: next attempt",
    (P.RELEASING, P.DONE): "the instance is observed gone and all artifacts are verified",
    (P.RELEASING, P.FAILED): "the instance is observed gone",
    (P.RELEASING, P.CANCELLED): "the instance is observed gone",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The job to save, the effects wished for once it is saved, and when to look again if nothing happens."""

    job: Job
    effects: tuple[Effect, ...] = ()
    wake_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What every rule is given besides the job."""

    seen: Seen
    now: datetime
    policy: Policy
    abilities: Abilities
    deployment: str

    def after(self, since: datetime | None, seconds: float) -> bool:
        """Is ``since`` at least that many seconds ago?"""
        return since is not None and (self.now - since).total_seconds() >= seconds


def label_of(deployment: str, job: Job, number: int) -> str:
    """Return the label under which attempt ``number`` rents: known before the request."""
    return f"{prefix_of(deployment)}{job.id}-a{number}"


def prefix_of(deployment: str) -> str:
    """Return what every label of an installation begins with."""
    return f"rt-{deployment}-"


def job_of(deployment: str, label: str) -> JobId | None:
    """Return the job that a label of this installation speaks of; None if it has another form."""
    prefix = prefix_of(deployment)
    job, _, number = label.removeprefix(prefix).rpartition("-a")
    return JobId(job) if label.startswith(prefix) and job and number.isdecimal() else None


def attempt_of(deployment: str, label: str) -> int | None:
    """Return the number of the attempt that a label of this installation speaks of; None if it has another form."""
    return int(label.rpartition("-a")[2]) if job_of(deployment, label) else None


def move(job: Job, phase: Phase, now: datetime) -> Job:
    """Return the job in another phase; a move that is not in the table is a bug of ours."""
    if (job.phase, phase) not in TRANSITIONS:
        raise InvariantBroken(f"job {job.id}: no move leads from {job.phase} to {phase}; please report this")
    return replace(job, phase=phase, since=now, note="")


def current(job: Job) -> Attempt:
    """Return the current attempt of a job that must have one."""
    if job.attempt is None:
        raise InvariantBroken(f"job {job.id} is in phase {job.phase} without an attempt; please report this")
    return job.attempt


def put(job: Job, attempt: Attempt) -> Job:
    """Return the job with its current attempt replaced."""
    return replace(job, attempts=(*job.attempts[:-1], attempt))


def new_attempt(job: Job, moment: Moment) -> Decision:
    """Begin the next attempt: number and label are saved before anything is asked for."""
    number = len(job.attempts) + 1
    attempt = Attempt(number=number, label=label_of(moment.deployment, job, number), started_at=moment.now)
    return again(replace(move(job, P.PROVISIONING, moment.now), attempts=(*job.attempts, attempt)))


def again(job: Job) -> Decision:
    """Save and decide once more at once: the shell ticks again whenever the job changed."""
    return Decision(job=job)


def judged(attempt: Attempt, verdict: Verdict, reason: Reason, message: str) -> Attempt:
    """Return the attempt with a verdict; the first one stays, save that a cancel overrules everything."""
    if attempt.verdict is None or (verdict is Verdict.CANCELLED and attempt.verdict is not verdict):
        return replace(attempt, verdict=verdict, reason=reason, message=message)
    return attempt


def release(job: Job, moment: Moment, verdict: Verdict, reason: Reason, message: str) -> Decision:
    """End the attempt without looking for outputs."""
    attempt = replace(judged(current(job), verdict, reason, message), releasing_at=moment.now)
    return again(move(put(job, attempt), P.RELEASING, moment.now))


def fetch(job: Job, moment: Moment, verdict: Verdict, reason: Reason, message: str) -> Decision:
    """End the attempt and bring its outputs home first."""
    attempt = replace(judged(current(job), verdict, reason, message), fetching_at=moment.now)
    return again(move(put(job, attempt), P.FETCHING, moment.now))


def wish(job: Job, moment: Moment, *effects: Effect | None, wake_at: datetime | None = None) -> Decision:
    """Return the effects whose last failure is long enough ago, and a note on the first that has to wait."""
    ready: list[Effect] = []
    note, times = "", [wake_at] if wake_at else []
    for effect in effects:
        if effect is None:
            continue
        trouble = moment.seen.troubles.get(type(effect))
        if trouble is None or moment.now >= trouble.retry_at:
            ready.append(effect)
        else:
            times.append(trouble.retry_at)
        if trouble is not None and not note and (trouble.count > 2 or moment.after(job.since, moment.policy.unreachable_note_s)):
            note = trouble.message
    job = job if note == job.note else replace(job, note=note)
    return Decision(job=job, effects=tuple(ready), wake_at=min(times, default=None))


def overrun(job: Job, moment: Moment) -> tuple[Reason, str] | None:
    """Return why the job may not go on spending, or None."""
    reached = choices.limit(job)
    if reached is None or moment.now < reached[0]:
        return None
    if reached[1] is Reason.TIME_LIMIT:
        return reached[1], f"max_hours of {job.limits.max_hours:g} h is over"
    return reached[1], f"cost {choices.job_cost(job, moment.now):.4f} reached max_cost {job.limits.max_cost}"


def forget(seen: Seen, before: Job, after: Job, now: datetime) -> Seen:
    """Return what is still worth knowing once a job was saved so."""
    if len(after.attempts) != len(before.attempts) or after.attempt is None or before.attempt is None:
        # What was seen of the last attempt says nothing of this one: another host, other steps of the same names.
        return Seen(since=now) if after.attempts != before.attempts else seen
    if after.phase is P.RELEASING and before.phase is not P.RELEASING:
        # The listing that made an instance pass for gone is not the one that ends the job.
        return replace(seen, instances=None, instances_at=None, missing_since=None, empty_since=None, traced_at=None)
    if before.attempt.requested_at is not None and after.attempt.requested_at is None:
        # What was asked for made nothing: everything about it is the past, but for how often that went wrong.
        fresh = Seen(since=seen.since, answered_at=seen.answered_at)
        return replace(fresh, troubles={kind: known for kind, known in seen.troubles.items() if kind is not PrepareHost})
    mine, was = after.attempt.instance, before.attempt.instance
    if was is not None and mine is not None and mine.id != was.id:
        return replace(seen, host=None, missing_since=None).with_trouble(PrepareHost, None)
    return seen


def standing(job: Job, moment: Moment) -> Decision:
    """A bug of ours keeps the rules from moving the job: its machine is kept for a human, as long as limits and user allow."""
    message = f"internal error, the job stands still and its machine is kept: {moment.seen.broken}"
    if job.cancel_requested_at is not None:
        return release(job, moment, Verdict.CANCELLED, Reason.CANCELLED_BY_USER, f"cancelled by the user; {message}")
    if over := overrun(job, moment):
        return release(job, moment, Verdict.FAILED, over[0], f"{over[1]}; {message}")
    note = f"{message}; report it, then restart the worker or cancel the job"
    return Decision(job=replace(job, note=note), wake_at=soon(job, moment))


def hopeless(moment: Moment, *kinds: type[Effect]) -> Trouble | None:
    """Return the first failure among these effects that no repetition can mend."""
    for kind in kinds:
        trouble = moment.seen.troubles.get(kind)
        if trouble is not None and trouble.severity is not Severity.RETRY:
            return trouble
    return None


def verdict_of(trouble: Trouble) -> Verdict:
    """Return how an attempt ends that met such a failure."""
    return Verdict.FAILED if trouble.severity is Severity.FATAL else Verdict.LOST


def soon(job: Job, moment: Moment, *deadlines: datetime | None) -> datetime | None:
    """Return when a job needs a look although nothing happened: at a deadline, a limit, or the next listing of a rented instance."""
    poll_s = moment.policy.instance_poll_s if moment.seen.missing_since is None else DOUBT_S
    poll = None if moment.abilities.borrowed else moment.now + timedelta(seconds=poll_s)
    reached = choices.limit(job)
    times = [at for at in (reached[0] if reached else None, poll, *deadlines) if at is not None]
    return min((at for at in times if at > moment.now), default=None)


def within(since: datetime | None, seconds: float) -> datetime | None:
    """Return when a patience that began at ``since`` is over."""
    return since + timedelta(seconds=min(seconds, choices.FOREVER_S)) if since is not None else None


def given_up_at(job: Job, moment: Moment, since: datetime | None, seconds: float) -> datetime | None:
    """Return when a machine that does not get ready is changed for another one.

    Never where it is borrowed and there is no other place: waiting costs nothing, and the next attempt would get the same one. The job's
    limits hold all the same.
    """
    return None if moment.abilities.borrowed and not job.fallbacks else within(since, seconds)
