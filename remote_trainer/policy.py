"""Pure choices: how long to wait, how often to try, which offer to take, when to give up.

Rules for editing: values in, values out; no clock, no randomness (a random number between 0 and 1 is an argument). Each number that a
user may want to change is a field of ``Policy`` with its unit in the name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import pairwise

from remote_trainer.model import Attempt, Job, Limits, Offer, Plan, Reason, Resources, Retries

#: Ten years: longer waits are the same as none ending, and dates end somewhere.
FOREVER_S = 10 * 366 * 86400.0

_BILLED_TAIL_S = 300.0  # providers charge for some minutes after the end
_FEW, _NEARLY = 5, Decimal("1.1")  # so many offers, and so much dearer than the cheapest, are as good as it
_DEADMAN_MIN_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The patience of one installation; seconds throughout."""

    provision_timeout_s: float = 1800.0  # until a rented machine must be usable; a borrowed one has until the job's limits
    transfer_timeout_s: float = 6 * 3600.0  # the same for its inputs
    fetch_timeout_s: float = 6 * 3600.0  # for results of a job that succeeded; on a borrowed machine until its limits, if later
    fetch_partial_timeout_s: float = 600.0  # for what a failed or cancelled job left
    fetch_overtime_s: float = 3600.0  # for results of a rented machine once a limit of the job is reached
    stop_timeout_s: float = 900.0  # after a step's own grace: a host that does not confirm its end by then is given up
    release_grace_s: float = 60.0  # how long a borrowed host may keep us from ending the job
    gone_confirm_s: float = 20.0  # for so long listings must lack a rented instance before it counts as gone
    instance_poll_s: float = 30.0  # how often a rented instance is looked for while all is well
    lag_margin_s: float = 15.0  # on top of the driver's own visibility lag
    reap_every_s: float = 60.0  # how often is looked for rented machines that no attempt claims
    reap_grace_s: float = 120.0  # how long such a machine must have been seen before it is destroyed
    reap_unknown_s: float = 3600.0  # the same for a machine of a job that the store does not know: it may be an old copy
    reap_overtime_s: float = 2 * 3600.0  # so long after a job's limit nothing of it is claimed any more, whatever it says
    retry_base_s: float = 0.25
    retry_max_s: float = 30.0
    unreachable_note_s: float = 10.0  # silence for that long is worth telling the user


def backoff_s(count: int, *, base_s: float, max_s: float, jitter: float = 0.5) -> float:
    """Return the wait before try ``count + 1``: doubling, capped, times 0.75 to 1.25 by ``jitter`` (0 to 1)."""
    exponent = min(max(count - 1, 0), 30)  # 2.0 ** 30 is past every cap; larger ones overflow
    return float(min(max_s, base_s * 2.0**exponent)) * (0.75 + jitter / 2)


def step_retry_at(retries: Retries, failures: int, exit_code: int, ended_at: datetime) -> datetime | None:
    """Return when a step that failed ``failures`` times may run again, None for never."""
    if failures > retries.max or (retries.on_exit and exit_code not in retries.on_exit):
        return None
    wait_s = backoff_s(failures, base_s=retries.backoff_s, max_s=retries.backoff_max_s)
    return ended_at + timedelta(seconds=min(FOREVER_S, wait_s))


def fits(offer: Offer, wanted: Resources, limits: Limits) -> str:
    """Return why an offer cannot serve, or an empty string. What an offer does not tell (0) is found out at bootstrap."""
    have = offer.resources
    for name in ("gpus", "vram_gb", "disk_gb", "ram_gb"):
        there, need = getattr(have, name), getattr(wanted, name)
        if there and there < need:
            return f"{name}: has {there}, {need} wanted"
    if limits.max_cost and offer.price_per_hour > limits.max_cost:
        return f"one hour costs {offer.price_per_hour} of the {limits.max_cost} that the job may cost"
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a run is expected to take, as far as that is known: only good for comparing offers."""

    hours: float = 1.0  # on a GPU of speed 1
    gb_in: float = 0.0  # GB (10^9 bytes) of inputs
    gb_out: float = 1.0  # and of artifacts


def estimate(job: Job) -> Estimate:
    """Return what is known of a job before it runs."""
    return estimate_plan(job.plan, job.limits, sum(given.size for given in job.inputs))


def estimate_plan(plan: Plan, limits: Limits, size: int) -> Estimate:
    """Return what is known of a job that is not submitted yet; ``size`` is that of its inputs, bytes."""
    hours = plan.expected_hours or min(Estimate().hours, limits.max_hours or Estimate().hours)
    return Estimate(hours=hours, gb_in=size / 10**9)


def expected_cost(offer: Offer, run: Estimate) -> Decimal:
    """Return what the whole run is expected to cost on an offer, US dollars: rent, boot and the provider's tail, and bandwidth."""
    hours = run.hours / max(offer.speed, 0.01) + (offer.boot_s + _BILLED_TAIL_S) / 3600
    bandwidth = offer.price_per_gb_in * Decimal(str(run.gb_in)) + offer.price_per_gb_out * Decimal(str(run.gb_out))
    return (offer.price_per_hour * Decimal(str(hours)) + bandwidth).quantize(Decimal("0.000001"))


def choose_offer(offers: Sequence[Offer], run: Estimate, avoid: frozenset[str], dice: float) -> Offer | None:
    """Return one of the few offers that are expected to cost least; None if there is none.

    ``dice``, 0 to 1, chooses among those that cost nearly the same, so that not everybody takes the same broken one.
    """
    few = nearly_best(rank(offers, run, avoid), run, avoid)
    return few[min(int(dice * len(few)), len(few) - 1)] if few else None


def rank(offers: Sequence[Offer], run: Estimate, avoid: frozenset[str]) -> list[Offer]:
    """Return offers by what they are expected to cost; those of machines (or with ids) in ``avoid`` come last: they failed somebody."""
    return sorted(offers, key=lambda offer: (is_avoided(offer, avoid), expected_cost(offer, run), offer.id))


def nearly_best(ranked: Sequence[Offer], run: Estimate, avoid: frozenset[str]) -> list[Offer]:
    """Return the few of the ranked offers that are as good as the first."""
    if not ranked:
        return []
    first = ranked[0]
    equals = [offer for offer in ranked if is_avoided(offer, avoid) == is_avoided(first, avoid)]
    return [offer for offer in equals[:_FEW] if expected_cost(offer, run) <= expected_cost(first, run) * _NEARLY]


def is_avoided(offer: Offer, avoid: frozenset[str]) -> bool:
    """Is it an offer, or on a machine, that failed somebody?"""
    return offer.id in avoid or offer.machine in avoid


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


def deadline(job: Job) -> datetime | None:
    """Return when ``max_hours`` is over: counted from the first attempt's start."""
    if not job.attempts or not job.limits.max_hours:
        return None
    return job.attempts[0].started_at + timedelta(seconds=min(FOREVER_S, job.limits.max_hours * 3600))


def deadman_s(job: Job, now: datetime) -> float:
    """Return after how long a silence of all workers the host stops a step that starts now: not before the job's own deadline."""
    end = deadline(job)
    return max(_DEADMAN_MIN_S, (end - now).total_seconds() if end else 0.0)


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


def limit(job: Job) -> tuple[datetime, Reason] | None:
    """Return the moment from which a job may not go on spending, and which of its limits that is; None without limits."""
    known = [(deadline(job), Reason.TIME_LIMIT), (spent_at(job), Reason.COST_LIMIT)]
    return min(((at, reason) for at, reason in known if at is not None), default=None, key=lambda reached: reached[0])


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
