"""Which offer to take: those that fit, by what the whole run is expected to cost there.

Rules for editing: as in the package's docstring.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from remote_trainer.model import Job, Limits, Offer, Plan, Resources
from remote_trainer.policy.money import BILLED_TAIL_S

_FEW, _NEARLY = 5, Decimal("1.1")  # so many offers, and so much dearer than the cheapest, are as good as it


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
    hours = run.hours / max(offer.speed, 0.01) + (offer.boot_s + BILLED_TAIL_S) / 3600
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
