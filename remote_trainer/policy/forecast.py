"""What a job will cost, and when its cap is reached.

Rules for editing: as in money.py. What a job still needs once it may spend no more (its step's end, its artifacts) counts as spent.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal

from remote_trainer.model import Attempt, Job, Offer, Phase
from remote_trainer.policy.choice import Estimate, estimate, expected_cost, traffic_cost
from remote_trainer.policy.money import BILLED_TAIL_S, cost_of_job, job_cost, rentals
from remote_trainer.policy.patience import FOREVER_S

FETCH_S = (
    300.0  # between the moment at which a job may spend no more, and its machine's end: stopping, and fetching what there is
)
_MICRO = Decimal("0.000001")
_TRUSTED = 0.01  # progress below says nothing about how long it takes


def spent_at(job: Job) -> datetime | None:
    """Return when ``max_cost`` is reached if the current attempt goes on, None if it never is.

    What is billed after the end, and what it takes to fetch the artifacts, still fits into it then.
    """
    attempt = job.attempt
    if attempt is None or not job.limits.max_cost:
        return None
    if attempt.offer is None or attempt.requested_at is None:
        return None if job_cost(job, attempt.started_at) < job.limits.max_cost else attempt.started_at
    begun = max(attempt.requested_at, attempt.ready_at or attempt.requested_at)
    left = job.limits.max_cost - cost_of_job(job, begun).exact - _to_come(job, attempt)
    if left <= 0:
        return attempt.started_at
    hourly = Decimal(0)
    for rental in rentals(attempt):
        if rental.gone_at is None:
            hourly += rental.disk_per_hour + (rental.machine_per_hour if rental.ready_at is not None else 0)
    return begun + timedelta(seconds=min(FOREVER_S, float(left / hourly) * 3600)) if hourly else None


def _to_come(job: Job, attempt: Attempt) -> Decimal:
    """Return what an attempt will cost beyond what it has cost, even if it is stopped at once."""
    if attempt.offer is None:
        return Decimal(0)
    total, seconds = Decimal(0), FETCH_S if attempt.releasing_at is None else 0.0
    for rental in rentals(attempt):
        if rental.gone_at is None:
            tail_s = BILLED_TAIL_S if rental.ready_at is None else 0.0  # else it is counted already
            total += rental.machine_per_hour * Decimal(seconds + tail_s) / 3600 + rental.disk_per_hour * Decimal(seconds) / 3600
    return total + _traffic_to_come(job, attempt, attempt.offer)


def _traffic_to_come(job: Job, attempt: Attempt, offer: Offer) -> Decimal:
    if attempt.releasing_at is not None:
        return Decimal(0)
    run = estimate(job)
    inwards = max(0.0, run.gb_in - attempt.bytes_in / 10**9) if attempt.executing_at is None else 0.0
    outwards = max(0.0, run.gb_out - attempt.bytes_out / 10**9)
    return offer.price_per_gb_in * Decimal(str(inwards)) + offer.price_per_gb_out * Decimal(str(outwards))


def projected_cost(job: Job, values: Mapping[str, float], now: datetime) -> Decimal | None:
    """Return what the whole job will have cost if all goes well, US dollars; None while nothing can be said.

    ``values`` are the newest metrics. Never more than what its limits allow.
    """
    so_far = job_cost(job, now)
    attempt = job.attempt
    if job.phase.terminal or job.phase is Phase.RELEASING:
        return so_far
    if attempt is None or attempt.offer is None:
        return None
    left_s = seconds_left(job, values, now)
    if left_s is None:
        return None
    if job.limits.max_hours:
        ends = job.attempts[0].started_at + timedelta(seconds=min(FOREVER_S, job.limits.max_hours * 3600))
        left_s = min(left_s, max(0.0, (ends - now).total_seconds()))
    hourly = sum((each.machine_per_hour + each.disk_per_hour for each in rentals(attempt) if each.gone_at is None), Decimal(0))
    whole = (so_far + hourly * Decimal(left_s) / 3600 + _to_come(job, attempt)).quantize(_MICRO)
    return min(whole, max(so_far, job.limits.max_cost)) if job.limits.max_cost else whole


def seconds_left(job: Job, values: Mapping[str, float], now: datetime) -> float | None:
    """Return how long the current attempt's steps still take: by their own word, by their progress, or by what the tool expects."""
    attempt = job.attempt
    if attempt is None or job.phase is Phase.FETCHING:
        return 0.0
    ran_s = (now - attempt.executing_at).total_seconds() if attempt.executing_at is not None else 0.0
    if job.phase is Phase.EXECUTING:
        progress = values.get("progress", 0.0)
        if values.get("eta_s", 0.0) > 0:
            return values["eta_s"]
        if _TRUSTED <= progress <= 1.0:
            return ran_s * (1 - progress) / progress
    if not job.plan.expected_hours or attempt.offer is None:
        return None
    return max(0.0, job.plan.expected_hours * 3600 / max(attempt.offer.speed, 0.01) - ran_s)


def needed(offer: Offer, run: Estimate) -> Decimal:
    """Return what must be there to spend before an offer is worth renting: the expected run, or an hour of it if that is less."""
    hour = offer.price_per_hour * Decimal(str(1 + (offer.boot_s + BILLED_TAIL_S + FETCH_S) / 3600))
    return min(expected_cost(offer, run), (hour + traffic_cost(offer, run)).quantize(_MICRO))
