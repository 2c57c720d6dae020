"""RELEASING: give the machine back, and see what follows.

Rules for editing: as in the package's docstring. No attempt ends while anything of it may still cost money.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from remote_trainer import policy as choices
from remote_trainer.effects import CleanHost
from remote_trainer.lifecycle.machines import (
    destroy,
    doubtful,
    look,
    made_nothing,
    settled_at,
    shows_everything,
    there,
    trace,
    traced,
)
from remote_trainer.lifecycle.rules import Decision, Moment, again, current, judged, move, new_attempt, overrun, put, wish, within
from remote_trainer.model import Attempt, Job, Phase, Reason, Verdict

P = Phase

_TERMINAL = {Verdict.SUCCEEDED: P.DONE, Verdict.FAILED: P.FAILED, Verdict.LOST: P.FAILED, Verdict.CANCELLED: P.CANCELLED}
_LOOK_S = 5.0


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
    """A rented machine: destroy whatever carries our label until listing, and records where there is doubt, show none."""
    attempt, seen = current(job), moment.seen
    if attempt.requested_at is None and attempt.instance is None:
        return _finish(job, moment)  # nothing was ever asked for
    if made_nothing(job, moment) and not there(job, moment):
        return _finish(job, moment)
    looks_up = None
    if _empty(job, moment):
        if not doubtful(job, moment) or (traced(job, moment) and not seen.traced):
            return _finish(job, moment)
        looks_up = trace(job, moment)
    news = seen.instances_at is None or any(accepted_at > seen.instances_at for accepted_at in seen.destroyed.values())
    watch = look(job, moment, 0.0 if news else _LOOK_S)
    wishes = (*(destroy(job, moment, one.id) for one in there(job, moment)), looks_up, watch)
    decision = wish(job, moment, *wishes, wake_at=moment.now + timedelta(seconds=_LOOK_S))
    if moment.after(attempt.releasing_at, moment.policy.alarm_after_s) and not decision.job.note:
        note = "the instance is not observed gone yet: it may still cost money"
        return replace(decision, job=replace(decision.job, note=note))
    return decision


def _empty(job: Job, moment: Moment) -> bool:
    """Do listings show nothing of the attempt, and is that to be believed?

    A listing that lacks what the provider has agreed to end is. Any other must not stand alone: a provider that has a bad moment shows
    an empty one. It must also be late enough to show what was asked for, where more may have been made than what we know of.
    """
    attempt, seen = current(job), moment.seen
    if seen.instances != () or seen.instances_at is None or seen.empty_since is None:
        return False
    agreed = bool(seen.destroyed) and all(one.id in seen.destroyed for one in there(job, moment))
    ended = agreed and max(seen.destroyed.values()) <= seen.instances_at
    single = attempt.ready_at is not None and not attempt.rivals and not attempt.refused
    if ended and (single or shows_everything(moment)):
        return True
    since = max(seen.empty_since, settled_at(moment))
    return shows_everything(moment) and (seen.instances_at - since).total_seconds() >= moment.policy.gone_confirm_s


def _finish(job: Job, moment: Moment) -> Decision:
    """Nothing of this attempt costs money any more: end the job, or try again where that makes sense."""
    attempt = current(job)
    verdict, reason, message = attempt.verdict or Verdict.FAILED, attempt.reason or Reason.INTERNAL, attempt.message
    job = put(job, replace(attempt, ended_at=moment.now))
    if verdict is Verdict.LOST and job.cancel_requested_at is None:
        if over := overrun(job, moment):
            reason, message = over
        elif (enough := _enough(job, attempt, moment)) is None:
            return new_attempt(job, moment)
        else:
            reason, message = enough
    if verdict is Verdict.LOST:
        verdict = Verdict.FAILED
    done = move(job, _TERMINAL[verdict], moment.now)
    return Decision(job=replace(done, verdict=verdict, reason=reason, message=message, finished_at=moment.now))


def _enough(job: Job, attempt: Attempt, moment: Moment) -> tuple[Reason, str] | None:
    """Return why there is no next attempt, None if there is one: what never got a machine is counted apart from what lost one."""
    reason, message = attempt.reason or Reason.INTERNAL, attempt.message
    if attempt.facts is None:
        tries = choices.fruitless(job)
        if tries < moment.policy.max_provisioning:
            return None
        named = reason if reason is Reason.NO_CAPACITY else Reason.PROVISIONING_FAILED
        return named, f"no usable machine after {tries} tries in a row; the last one: {message}"
    used = choices.used_up(job)
    if used < job.limits.max_attempts:
        return None
    return (
        (Reason.ATTEMPTS_EXHAUSTED, f"attempt {used} of {job.limits.max_attempts}: {message}") if used > 1 else (reason, message)
    )
