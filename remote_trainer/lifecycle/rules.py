"""What all rules share: the table of moves, the decision, and small questions about a job.

Rules for editing: as in the package's docstring; nothing here knows a single phase's business.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from remote_trainer import policy as choices
from remote_trainer.effects import (
    Destroy,
    Effect,
    FindInstance,
    Seen,
    Severity,
    Trouble,
)
from remote_trainer.errors import InvariantBroken
from remote_trainer.model import (
    Attempt,
    Instance,
    InstanceState,
    Job,
    JobId,
    Phase,
    Reason,
    Verdict,
)
from remote_trainer.policy import Policy
from remote_trainer.ports import Abilities

P = Phase

_DOUBT_S = 5.0  # between two looks at a listing that lacked our instance

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
    if len(after.attempts) != len(before.attempts):
        # What was seen of the last attempt says nothing of this one: another host, other steps of the same names.
        return Seen(since=now)
    if after.phase is P.RELEASING and before.phase is not P.RELEASING:
        # The listing that made an instance pass for gone is not the one that ends the job.
        return replace(seen, instances=None, instances_at=None, missing_since=None)
    return seen


def listed(seen: Seen, job: Job, found: tuple[Instance, ...], asked_at: datetime) -> Seen:
    """Return what a complete listing of our label adds to what was seen."""
    mine = job.attempt.instance if job.attempt is not None else None
    lacks = mine is not None and all(one.id != mine.id for one in found)
    since = (seen.missing_since or asked_at) if lacks else None
    return replace(seen, instances=found, instances_at=asked_at, missing_since=since)


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


def ours(job: Job, moment: Moment) -> Instance | None:
    """Return our instance as the newest listing shows it, None if that is unknown or it is not listed."""
    mine = current(job).instance
    return next((found for found in moment.seen.instances or () if mine is not None and found.id == mine.id), None)


def settled_at(moment: Moment) -> datetime:
    """Return from when on a listing shows whatever the attempt's request may have made.

    Counted on this worker's clock alone, since another one's may go wrong: from the answer to its own request, or from when it took
    the job: a request of an earlier holder was sent before that, or is not sent any more (``Machine._check_in_time``).
    """
    lag_s = moment.abilities.visibility_lag_s + moment.policy.lag_margin_s
    return (moment.seen.answered_at or moment.seen.since) + timedelta(seconds=lag_s)


def gone(job: Job, moment: Moment) -> bool:
    """Do complete listings, later than the lag allows, lack our instance for a while, or show that it was stopped for good?

    One listing alone is not believed: a provider that has a bad moment shows an empty one, and a destroy would follow.
    """
    attempt, seen = current(job), moment.seen
    if attempt.instance is None or attempt.instance.borrowed or seen.instances is None or seen.instances_at is None:
        return False
    found = ours(job, moment)
    if found is not None:
        return found.state in (InstanceState.STOPPED, InstanceState.BROKEN)
    missing_s = (seen.instances_at - (seen.missing_since or seen.instances_at)).total_seconds()
    return seen.instances_at >= settled_at(moment) and missing_s >= moment.policy.gone_confirm_s


def look(job: Job, moment: Moment, every_s: float) -> FindInstance | None:
    """Return the wish to list our instances when the last listing is that old; none for borrowed machines."""
    seen_at = moment.seen.instances_at
    if moment.seen.missing_since is not None:
        every_s = min(every_s, _DOUBT_S)
    if moment.abilities.borrowed or (seen_at is not None and 0 <= (moment.now - seen_at).total_seconds() < every_s):
        return None
    return FindInstance(current(job).label, seen_at)


def surplus(job: Job, moment: Moment) -> tuple[Destroy, ...]:
    """Return the wish to end what carries our label beside our instance: a request that was given up took effect after all."""
    mine = current(job).instance
    if mine is None or mine.borrowed:
        return ()
    return tuple(destroy(job, moment, found.id) for found in moment.seen.instances or () if found.id != mine.id)


def destroy(job: Job, moment: Moment, instance_id: str) -> Destroy:
    """Return the wish to end an instance; asked again every half minute that it is still listed."""
    attempt = current(job)
    return Destroy(attempt.label, instance_id, round=int((moment.now - attempt.started_at).total_seconds() // 30))


def soon(job: Job, moment: Moment, *deadlines: datetime | None) -> datetime | None:
    """Return when a job needs a look although nothing happened: at a deadline, a limit, or the next listing of a rented instance."""
    poll_s = moment.policy.instance_poll_s if moment.seen.missing_since is None else _DOUBT_S
    poll = None if moment.abilities.borrowed else moment.now + timedelta(seconds=poll_s)
    reached = choices.limit(job)
    times = [at for at in (reached[0] if reached else None, poll, *deadlines) if at is not None]
    return min((at for at in times if at > moment.now), default=None)


def within(since: datetime | None, seconds: float) -> datetime | None:
    """Return when a patience that began at ``since`` is over."""
    return since + timedelta(seconds=min(seconds, choices.FOREVER_S)) if since is not None else None


def given_up_at(moment: Moment, since: datetime | None, seconds: float) -> datetime | None:
    """Return when a machine that does not get ready is changed for another one.

    Never where it is borrowed: waiting costs nothing, and the next attempt would get the same one. The job's limits hold all the same.
    """
    return None if moment.abilities.borrowed else within(since, seconds)
