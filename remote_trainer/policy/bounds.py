"""When a job may not go on, and when nothing claims its machine any more.

Rules for editing: as in the package's docstring; moments are computed from what is saved, never from what is remembered.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import pairwise, takewhile

from remote_trainer.model import Job, Reason
from remote_trainer.policy.forecast import spent_at
from remote_trainer.policy.patience import FOREVER_S, Policy

_DEADMAN_MIN_S = 3600.0


def deadline(job: Job) -> datetime | None:
    """Return when ``max_hours`` is over: counted from the first attempt's start."""
    if not job.attempts or not job.limits.max_hours:
        return None
    return job.attempts[0].started_at + timedelta(seconds=min(FOREVER_S, job.limits.max_hours * 3600))


def deadman_s(job: Job, now: datetime) -> float:
    """Return after how long a silence of all workers the host stops a step that starts now: not before the job's own deadline."""
    end = deadline(job)
    return max(_DEADMAN_MIN_S, (end - now).total_seconds() if end else 0.0)


def limit(job: Job) -> tuple[datetime, Reason] | None:
    """Return the moment from which a job may not go on spending, and which of its limits that is; None without limits."""
    known = [(deadline(job), Reason.TIME_LIMIT), (spent_at(job), Reason.COST_LIMIT)]
    return min(((at, reason) for at, reason in known if at is not None), default=None, key=lambda reached: reached[0])


def used_up(job: Job) -> int:
    """Return how many attempts got as far as a machine that serves: those that ``max_attempts`` bounds."""
    return sum(attempt.facts is not None for attempt in job.attempts)


def fruitless(job: Job) -> int:
    """Return how often in a row, up to now, a machine was tried to get in vain: attempts without one, and offers that they were refused."""
    since = list(takewhile(lambda attempt: attempt.facts is None, reversed(job.attempts)))
    return sum(1 + len(attempt.refused) for attempt in since)


def evictions(job: Job) -> int:
    """Return how many spot machines were taken away from a job."""
    return sum(attempt.reason is Reason.EVICTED for attempt in job.attempts)


def switched_off_at(job: Job, policy: Policy) -> datetime | None:
    """Return when a machine of the current attempt is to end by itself, should all of us be gone; None without limits.

    Counted as if it were paid in full from the request on: a switch that is set while it boots may never be moved. Its rivals are
    given back soon; one that cannot be moved must not end the machine that is kept because of them.
    """
    attempt = job.attempt
    if attempt is None:
        return None
    paid = replace(attempt, ready_at=attempt.ready_at or attempt.requested_at, rivals=())
    reached = limit(replace(job, attempts=(*job.attempts[:-1], paid)))
    return reached[0] + timedelta(seconds=policy.reap_overtime_s) if reached is not None else None


@dataclass(frozen=True, slots=True)
class Unclaimed:
    """That a machine is nobody's."""

    why: str
    since: datetime | None = None  # as far as that is known


def unclaimed(job: Job | None, label: str, now: datetime, policy: Policy) -> Unclaimed | None:
    """Return why a job does not claim the machine of that label; None if it does.

    Only a live attempt claims, and not for ever once the job is over its limits.
    """
    if job is None:
        return Unclaimed("the store knows no such job")
    if job.phase.terminal:
        return Unclaimed(f"its job has ended: {job.phase}", job.finished_at)
    if job.attempt is None or job.attempt.label != label:
        after = next((later.started_at for past, later in pairwise(job.attempts) if past.label == label), None)
        return Unclaimed("its attempt is over" if after else "no attempt of its job has that label", after)
    reached = limit(job)
    if reached is None:
        return None
    until = reached[0] + timedelta(seconds=policy.reap_overtime_s)
    return Unclaimed(f"its job is long past its limit: {reached[1]}", until) if now >= until else None
