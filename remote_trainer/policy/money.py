"""What a job costs, and when its cap is reached.

Rules for editing: as in the package's docstring; money is ``Decimal``, US dollars, and rounded once, at the end.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal

from remote_trainer.model import Attempt, Job
from remote_trainer.policy.patience import FOREVER_S

BILLED_TAIL_S = 300.0  # providers charge for some minutes after the end


def attempt_cost(attempt: Attempt, now: datetime) -> Decimal:
    """Return what an attempt cost so far, US dollars: from the request to the observed end."""
    if attempt.offer is None or attempt.requested_at is None:
        return Decimal(0)
    until = attempt.ended_at or now
    hours = Decimal((until - attempt.requested_at).total_seconds()) / 3600
    return (attempt.offer.price_per_hour * max(hours, Decimal(0))).quantize(Decimal("0.000001"))


def job_cost(job: Job, now: datetime) -> Decimal:
    """Return what a job cost so far, US dollars."""
    return sum((attempt_cost(attempt, now) for attempt in job.attempts), Decimal(0))


def spent_at(job: Job) -> datetime | None:
    """Return when ``max_cost`` is reached if the current attempt goes on, None if it never is."""
    attempt = job.attempt
    if attempt is None or not job.limits.max_cost:
        return None
    left = job.limits.max_cost - sum((attempt_cost(past, past.started_at) for past in job.attempts[:-1]), Decimal(0))
    if left <= 0:
        return attempt.started_at
    if attempt.offer is None or attempt.requested_at is None or not attempt.offer.price_per_hour:
        return None
    seconds = float(left / attempt.offer.price_per_hour) * 3600
    return attempt.requested_at + timedelta(seconds=min(FOREVER_S, seconds))
