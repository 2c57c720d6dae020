"""The phases around a machine: QUEUED, PROVISIONING, TRANSFERRING, RELEASING."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from remote_trainer import policy as choices
from remote_trainer.effects import (
    ChooseOffer,
    CleanHost,
    Create,
    FindCheckpoint,
    Guard,
    PrepareHost,
    ShipInputs,
)
from remote_trainer.lifecycle.rules import (
    Decision,
    Moment,
    again,
    current,
    destroy,
    given_up_at,
    gone,
    hopeless,
    judged,
    look,
    move,
    new_attempt,
    ours,
    overrun,
    put,
    release,
    settled_at,
    soon,
    surplus,
    verdict_of,
    wish,
    within,
)
from remote_trainer.model import (
    Attempt,
    Instance,
    InstanceState,
    Job,
    Phase,
    Reason,
    StepRun,
    Verdict,
)

P = Phase

_TERMINAL = {Verdict.SUCCEEDED: P.DONE, Verdict.FAILED: P.FAILED, Verdict.LOST: P.FAILED, Verdict.CANCELLED: P.CANCELLED}


def queued(job: Job, moment: Moment) -> Decision:
    """Begin the first attempt, or end at once."""
    if job.cancel_requested_at is None:
        return new_attempt(job, moment)
    done = move(job, P.CANCELLED, moment.now)
    return Decision(
        job=replace(
            done,
            verdict=Verdict.CANCELLED,
            reason=Reason.CANCELLED_BY_USER,
            message="cancelled before anything was started",
            finished_at=moment.now,
        )
    )


def provisioning(job: Job, moment: Moment) -> Decision:
    """Get a machine and make sure that it can serve."""
    attempt, seen = current(job), moment.seen
    if job.cancel_requested_at is not None:
        return release(job, moment, Verdict.CANCELLED, Reason.CANCELLED_BY_USER, "cancelled while provisioning")
    if over := overrun(job, moment):
        return release(job, moment, Verdict.FAILED, *over)
    if trouble := hopeless(moment, ChooseOffer, Create, Guard, PrepareHost):
        return release(job, moment, verdict_of(trouble), trouble.reason, trouble.message)
    ends = given_up_at(moment, attempt.started_at, moment.policy.provision_timeout_s)
    if ends is not None and moment.now >= ends:
        message = f"no usable machine within {moment.policy.provision_timeout_s:g} s" + (f": {job.note}" if job.note else "")
        return release(job, moment, Verdict.LOST, Reason.PROVISIONING_FAILED, message)
    if attempt.instance is None:
        return _renting(job, moment)
    if attempt.instance.state is not InstanceState.READY:
        return _booting(job, moment, attempt.instance)
    guard = _guard(job, moment)
    if seen.host is None or guard is not None:
        if gone(job, moment):
            return release(job, moment, Verdict.LOST, Reason.INSTANCE_GONE, "the provider says that the instance is gone")
        prepare = PrepareHost(attempt.label) if seen.host is None else None
        wishes = (guard, prepare, look(job, moment, moment.policy.instance_poll_s), *surplus(job, moment))
        return wish(job, moment, *wishes, wake_at=_provisioned_by(job, moment))
    pinned = replace(attempt.instance, host_key=attempt.instance.host_key or seen.host.host_key)
    return again(move(put(job, replace(attempt, facts=seen.host, instance=pinned)), P.TRANSFERRING, moment.now))


def _guard(job: Job, moment: Moment) -> Guard | None:
    """Return the wish to have the instance ended by the provider, where it can: nothing is done with one before that is certain."""
    reached = choices.limit(job)
    if not moment.abilities.scheduler or moment.seen.guarded or reached is None:
        return None
    return Guard(current(job).label, reached[0] + timedelta(seconds=moment.policy.reap_overtime_s))


def _provisioned_by(job: Job, moment: Moment) -> datetime | None:
    return soon(job, moment, given_up_at(moment, current(job).started_at, moment.policy.provision_timeout_s))


def _renting(job: Job, moment: Moment) -> Decision:
    """No instance is known: choose, ask once, or look for what an earlier request may have made."""
    attempt, seen = current(job), moment.seen
    found = next((one for one in (*(seen.instances or ()), *filter(None, [seen.created])) if one.label == attempt.label), None)
    if found is not None:
        return again(put(job, _met(attempt, found, moment)))
    if attempt.requested_at is None:
        if seen.offer is None:
            return wish(job, moment, ChooseOffer(), wake_at=_provisioned_by(job, moment))
        asked = replace(attempt, offer=seen.offer, requested_at=moment.now)
        return Decision(job=put(job, asked), effects=(Create(attempt.label),))
    if moment.abilities.borrowed:
        return wish(job, moment, Create(attempt.label), wake_at=_provisioned_by(job, moment))  # asking again is free
    if seen.instances is not None and _shows_everything(moment):
        return again(put(job, replace(attempt, offer=None, requested_at=None)))
    return wish(job, moment, look(job, moment, 5.0), wake_at=moment.now + timedelta(seconds=5))


def _met(attempt: Attempt, instance: Instance, moment: Moment) -> Attempt:
    """Return the attempt with its instance as it was just seen; when it was first ready, the provider began to charge for it."""
    ready_at = attempt.ready_at or (moment.now if instance.state is InstanceState.READY else None)
    return replace(attempt, instance=instance, ready_at=ready_at)


def _shows_everything(moment: Moment) -> bool:
    """Is the last listing late enough to show whatever we have asked for, and nothing of it still on its way?"""
    seen_at = moment.seen.instances_at
    return seen_at is not None and seen_at >= settled_at(moment) and not moment.seen.creating


def _booting(job: Job, moment: Moment, instance: Instance) -> Decision:
    """The instance is there and not ready yet: keep looking."""
    now_seen = ours(job, moment)
    if now_seen is not None and now_seen.state is not instance.state:
        return again(put(job, _met(current(job), replace(now_seen, host_key=instance.host_key), moment)))
    if instance.state in (InstanceState.BROKEN, InstanceState.STOPPED) or gone(job, moment):
        message = f"instance {instance.id} will not become ready: {instance.message or 'the provider dropped it'}"
        return release(job, moment, Verdict.LOST, Reason.PROVISIONING_FAILED, message)
    return wish(job, moment, _guard(job, moment), look(job, moment, 5.0), wake_at=moment.now + timedelta(seconds=5))


def transferring(job: Job, moment: Moment) -> Decision:
    """Bring the inputs and the checkpoint to resume from to the host."""
    attempt, seen = current(job), moment.seen
    if job.cancel_requested_at is not None:
        return release(job, moment, Verdict.CANCELLED, Reason.CANCELLED_BY_USER, "cancelled while transferring")
    if over := overrun(job, moment):
        return release(job, moment, Verdict.FAILED, *over)
    if gone(job, moment):
        return release(job, moment, Verdict.LOST, Reason.INSTANCE_GONE, "the provider says that the instance is gone")
    if trouble := hopeless(moment, ShipInputs):
        return release(job, moment, verdict_of(trouble), trouble.reason, trouble.message)
    ends = given_up_at(moment, job.since, moment.policy.transfer_timeout_s)
    if ends is not None and moment.now >= ends:
        message = f"inputs not on the host within {moment.policy.transfer_timeout_s:g} s" + (f": {job.note}" if job.note else "")
        return release(job, moment, Verdict.LOST, Reason.TRANSFER_FAILED, message)
    if not seen.resume_known:
        return wish(job, moment, FindCheckpoint(), wake_at=soon(job, moment, ends))
    if not seen.shipped:
        wishes = (ShipInputs(attempt.label, seen.resume), look(job, moment, moment.policy.instance_poll_s), *surplus(job, moment))
        return wish(job, moment, *wishes, wake_at=soon(job, moment, ends))
    first = StepRun(name=job.plan.steps[0].name, number=1, started_at=moment.now)
    running = replace(attempt, restored=seen.resume, executing_at=moment.now, steps=(first,))
    return again(move(put(job, running), P.EXECUTING, moment.now))


def releasing(job: Job, moment: Moment) -> Decision:
    """Give the machine back; only then can the job end."""
    attempt, seen = current(job), moment.seen
    if job.cancel_requested_at is not None and attempt.verdict is not Verdict.CANCELLED:
        cancelled = judged(attempt, Verdict.CANCELLED, Reason.CANCELLED_BY_USER, "cancelled by the user")
        return again(put(job, cancelled))
    if moment.abilities.borrowed:
        nothing_there = attempt.instance is None or attempt.facts is None
        if nothing_there or seen.cleaned or moment.after(attempt.releasing_at, moment.policy.release_grace_s):
            return _finish(job, moment)
        return wish(job, moment, CleanHost(attempt.label), wake_at=within(attempt.releasing_at, moment.policy.release_grace_s))
    return _returning(job, moment)


def _returning(job: Job, moment: Moment) -> Decision:
    """A rented machine: destroy whatever carries our label until a complete, late enough listing shows none."""
    attempt, seen = current(job), moment.seen
    if attempt.requested_at is None and attempt.instance is None:
        return _finish(job, moment)  # nothing was ever asked for
    if _shows_everything(moment) and seen.instances == ():
        return _finish(job, moment)
    known = (attempt.instance, seen.created, *(seen.instances or ()))
    there = dict.fromkeys(one.id for one in known if one is not None and one.label == attempt.label)
    wishes = (*(destroy(job, moment, one) for one in there), look(job, moment, 5.0))
    decision = wish(job, moment, *wishes, wake_at=moment.now + timedelta(seconds=5))
    if moment.after(attempt.releasing_at, 300) and not decision.job.note:
        note = "the instance is not observed gone yet: it may still cost money"
        return replace(decision, job=replace(decision.job, note=note))
    return decision


def _finish(job: Job, moment: Moment) -> Decision:
    """Nothing of this attempt costs money any more: end the job, or try again where that makes sense."""
    attempt = current(job)
    verdict, reason, message = attempt.verdict or Verdict.FAILED, attempt.reason or Reason.INTERNAL, attempt.message
    job = put(job, replace(attempt, ended_at=moment.now))
    if verdict is Verdict.LOST and job.cancel_requested_at is None:
        if over := overrun(job, moment):
            verdict, (reason, message) = Verdict.FAILED, over
        elif attempt.number < job.limits.max_attempts:
            return new_attempt(job, moment)
        elif attempt.number > 1:
            reason, message = Reason.ATTEMPTS_EXHAUSTED, f"attempt {attempt.number} of {job.limits.max_attempts}: {message}"
    if verdict is Verdict.LOST:
        verdict = Verdict.FAILED
    done = move(job, _TERMINAL[verdict], moment.now)
    return Decision(job=replace(done, verdict=verdict, reason=reason, message=message, finished_at=moment.now))
