"""Which offer to take: those that fit, by what the job's strategy counts.

Rules for editing: as in the package's docstring.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_UP, Decimal
from typing import Any

from remote_trainer.model import Job, Limits, Offer, Place, Plan, Resources, Strategy
from remote_trainer.policy.money import BILLED_TAIL_S

_FEW, _NEARLY = 5, 1.1  # so many offers, and so much dearer (or slower) than the best, are as good as it
_PROMISED, _OURS_MBIT = 0.5, 500.0  # of the bandwidth a machine promises, so much is there; and our own end has no more
_STEP = Decimal("0.0001")  # of a bid, US dollars an hour


def fits(offer: Offer, wanted: Resources, limits: Limits) -> str:
    """Return why an offer cannot serve, or an empty string. What an offer does not tell (0) is found out at bootstrap."""
    have = offer.resources
    for name in ("gpus", "vram_gb", "disk_gb", "ram_gb"):
        there, need = getattr(have, name), getattr(wanted, name)
        if there and there < need:
            return f"{name}: has {there}, {need} wanted"
    if limits.max_cost and offer.price_per_hour > limits.max_cost:
        return f"one hour costs {offer.price_per_hour} of the {limits.max_cost} that the job may cost"
    if offer.most_per_hour and offer.price_per_hour > offer.most_per_hour:
        return f"an hour costs {offer.price_per_hour}, {offer.most_per_hour} at most is wished for"
    return ""


def needs(plan: Plan, place: Place) -> Resources:
    """Return what a machine of that place must have: what the plan needs, and what the place's profile wishes for besides."""
    names = ("gpus", "vram_gb", "disk_gb", "ram_gb")
    return Resources(**{name: max(getattr(plan.resources, name), getattr(place.resources, name)) for name in names})


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


def expected_hours(offer: Offer, run: Estimate) -> float:
    """Return how long the whole run is expected to take on an offer: boot, moving the data, and training."""
    moving_s = 8000 * (run.gb_in + run.gb_out) / min(_OURS_MBIT, offer.mbit * _PROMISED) if offer.mbit > 0 else 0.0
    return run.hours / max(offer.speed, 0.01) + (offer.boot_s + moving_s) / 3600


def expected_cost(offer: Offer, run: Estimate) -> Decimal:
    """Return what the whole run is expected to cost on an offer, US dollars: rent, boot and the provider's tail, and bandwidth."""
    hours = expected_hours(offer, run) + BILLED_TAIL_S / 3600
    return (offer.price_per_hour * Decimal(str(hours)) + traffic_cost(offer, run)).quantize(Decimal("0.000001"))


def traffic_cost(offer: Offer, run: Estimate) -> Decimal:
    """Return what it is expected to cost to bring everything there and back, US dollars."""
    return offer.price_per_gb_in * Decimal(str(run.gb_in)) + offer.price_per_gb_out * Decimal(str(run.gb_out))


# ------------------------------------------------------------------------------------------------------- among offers


@dataclass(frozen=True, slots=True, kw_only=True)
class Lot:
    """An offer that can serve, and where."""

    offer: Offer
    place: int = 0  # which of the job's places
    avoided: bool = False  # it failed somebody: taken if there is nothing else


def pick(lots: Sequence[Lot], run: Estimate, strategy: Strategy, *, dice: float, count: int = 1) -> list[Lot]:
    """Return the lot to take, and after it as many rivals of other machines as make ``count``, if there are so many.

    ``dice``, 0 to 1, chooses among those that are nearly as good as the best, so that not everybody takes the same broken one. Rivals are
    of the same place.
    """
    ranked = rank(lots, run, strategy)
    few = nearly_best(ranked, run, strategy)
    if not few:
        return []
    chosen = [few[min(int(dice * len(few)), len(few) - 1)]]
    for lot in ranked:
        if len(chosen) < count and lot.place == chosen[0].place and all(_elsewhere(lot.offer, one.offer) for one in chosen):
            chosen.append(lot)
    return chosen[: max(1, count)]


def _elsewhere(offer: Offer, other: Offer) -> bool:
    return offer.id != other.id and (not offer.machine or offer.machine != other.machine)


def rank(lots: Sequence[Lot], run: Estimate, strategy: Strategy) -> list[Lot]:
    """Return lots, the best first; those that are avoided come last."""
    return sorted(lots, key=lambda lot: _rank(lot, run, strategy))


def _rank(lot: Lot, run: Estimate, strategy: Strategy) -> tuple[Any, ...]:
    """Return what lots are sorted by. Of two that cost the same, the one that nobody can take away comes first."""
    by_place = lot.place if strategy in (Strategy.PREFERRED, Strategy.QUEUE) else 0
    cost = expected_cost(lot.offer, run)
    measure = (expected_hours(lot.offer, run), cost) if strategy is Strategy.FASTEST else (cost,)
    return (lot.avoided, by_place, *measure, lot.offer.spot, lot.place, lot.offer.id)


def nearly_best(ranked: Sequence[Lot], run: Estimate, strategy: Strategy) -> Sequence[Lot]:
    """Return the few of the ranked lots that are as good as the first: as sure, and of the same place, too."""
    if not ranked:
        return ()
    first, measure = ranked[0], _measure(strategy)
    most = measure(first.offer, run) * _NEARLY
    alike = [lot for lot in ranked if (lot.avoided, lot.offer.spot, lot.place) == (first.avoided, first.offer.spot, first.place)]
    return [lot for lot in alike[:_FEW] if measure(lot.offer, run) <= most]


def _measure(strategy: Strategy) -> Callable[[Offer, Estimate], float]:
    return expected_hours if strategy is Strategy.FASTEST else lambda offer, run: float(expected_cost(offer, run))


def is_avoided(offer: Offer, avoid: frozenset[str]) -> bool:
    """Is it an offer, or on a machine, that failed somebody?"""
    return offer.id in avoid or (bool(offer.machine) and offer.machine in avoid)


# ---------------------------------------------------------------------------------------------------------------- spot


def with_bid(offer: Offer, margin: Decimal, limits: Limits) -> Offer:
    """Return a spot offer at the price that we bid: so much more than the least that wins, but no more than may be spent an hour."""
    return replace(offer, price_per_hour=_bid(offer, offer.price_per_hour - offer.disk_per_hour, margin, limits))


def raised(offer: Offer, least: Decimal, margin: Decimal, limits: Limits) -> Offer | None:
    """Return a rented spot offer with a higher bid once others would pay ``least``; None if ours is enough, or may not grow."""
    if not offer.spot or not least or least <= offer.price_per_hour - offer.disk_per_hour:
        return None
    price = _bid(offer, least, margin, limits)
    return replace(offer, price_per_hour=price) if price > max(offer.price_per_hour, least + offer.disk_per_hour) else None


def _bid(offer: Offer, least: Decimal, margin: Decimal, limits: Limits) -> Decimal:
    """Return the price an hour, disk included; never less than what would win, which then does not fit."""
    caps = [cap for cap in (offer.most_per_hour, limits.max_cost) if cap]
    wished = (least * margin).quantize(_STEP, ROUND_UP) + offer.disk_per_hour
    return max(least + offer.disk_per_hour, min([wished, *caps]))
