"""Asks the drivers of a job's places what there is, and picks by the job's strategy.

Rules for editing: what is better than what is decided in ``policy.choice``; here it is asked for, and what was passed over is told. A
place that cannot answer is passed over only when it has had its chances: the next one may cost more.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from remote_trainer import log
from remote_trainer.effects import ChooseOffer, Seen
from remote_trainer.errors import DriverError, NoCapacity, RemoteTrainerError, SpendingHeld, TransportError, UsageError
from remote_trainer.model import Job, Offer, Place, Strategy
from remote_trainer.policy import Lot, estimate, evictions, fits, is_avoided, needs, pick, with_bid
from remote_trainer.ports import Driver
from remote_trainer.worker.market import failed_offers
from remote_trainer.worker.shop import Shop

_log = log.get()

_CHANCES = 3  # so often a place that is only disturbed is asked again before another one is taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What to ask for: the offer and its rivals, all of one place."""

    place: int
    offer: Offer
    rivals: tuple[Offer, ...] = ()


@dataclass(frozen=True, slots=True)
class _Answer:
    """What one place has."""

    lots: Sequence[Lot] = ()
    passed: int = 0  # offers that do not fit
    dear: Sequence[str] = ()  # why offers that fit are not to be rented for this job
    error: RemoteTrainerError | None = None


async def choose(shop: Shop, job: Job, seen: Seen) -> Choice:
    """Return the choice. NoCapacity if no place has a machine that fits; else the error of one that could not answer.

    SpendingHeld if there are machines, and at no place is money left for them now: one that costs nothing is taken rather than waited.
    """
    held: dict[int, SpendingHeld] = {}
    while True:
        try:
            found = await _choose(shop, job, seen, without=held.keys())
        except RemoteTrainerError:
            if held:
                raise next(iter(held.values())) from None
            raise
        place = job.places[found.place]
        try:
            found = await _affordable(shop, job, found)
        except SpendingHeld as error:
            held[found.place] = error
            if len(held) == len(job.places):
                raise next(iter(held.values())) from None
            continue
        if job.fallbacks:
            _log.info(
                log.event("provisioning"), action="place_chosen", place=found.place, driver=place.driver, offer=found.offer.id
            )
        return found


async def _affordable(shop: Shop, job: Job, found: Choice) -> Choice:
    """Return the choice with as many rivals as there is money for. SpendingHeld if there is none for one machine."""
    place = job.places[found.place]
    driver = shop.driver(place.driver, place.options)
    for count in range(len(found.rivals), 0, -1):
        with contextlib.suppress(SpendingHeld):
            await shop.gates.check(job, (found.offer, *found.rivals[:count]), driver)
            return replace(found, rivals=found.rivals[:count])
    await shop.gates.check(job, (found.offer,), driver)
    return replace(found, rivals=())


async def _choose(shop: Shop, job: Job, seen: Seen, *, without: Collection[int]) -> Choice:
    """Return the choice among all places but some."""
    attempt, strategy = job.attempts[-1], job.provision.strategy
    patient = ChooseOffer not in seen.troubles or seen.troubles[ChooseOffer].count < _CHANCES
    answers: list[_Answer] = []
    for batch in _batches(job, strategy):
        batched = await asyncio.gather(*(_ask(shop, job, index) for index in batch if index not in without))
        for answer in batched:
            if patient and answer.error is not None and answer.error.transient:
                raise answer.error
        answers += batched
        if any(not lot.avoided for answer in batched for lot in answer.lots):
            break  # the places that come later are not better, and need not be asked
    lots = [lot for answer in answers for lot in answer.lots]
    dice = random.Random(f"{attempt.label} {len(attempt.refused)}").random()  # noqa: S311 - spreads workers over offers, keeps no secret
    chosen = pick(lots, estimate(job), strategy, dice=dice, count=max(place.provision.race for place in job.places))
    if not chosen:
        raise _nothing(job, answers)
    place = chosen[0].place
    first, *rivals = [lot.offer for lot in chosen[: max(1, job.places[place].provision.race)]]
    return Choice(place=place, offer=first, rivals=tuple(rivals))


def _batches(job: Job, strategy: Strategy) -> Sequence[Sequence[int]]:
    """Return the places in the order they are asked in; those of one batch together."""
    every = range(len(job.places))
    return [every] if strategy in (Strategy.CHEAPEST, Strategy.FASTEST) else [(index,) for index in every]


async def _ask(shop: Shop, job: Job, index: int) -> _Answer:
    """Return what one place has, or why it cannot say."""
    place = job.places[index]
    try:
        driver = shop.driver(place.driver, place.options)
        offers = await _offers(driver, job, place)
    except (DriverError, TransportError, UsageError) as error:
        if job.fallbacks:
            _log.warning(log.event("provisioning"), action="place_failed", place=index, driver=place.driver, error=str(error))
        return _Answer(error=error)
    if not driver.abilities.borrowed:
        avoid = await shop.market.avoid(job)
    else:
        avoid = failed_offers(job) if job.fallbacks else frozenset()
    wanted = needs(job.plan, place)
    suitable = [offer for offer in offers if not fits(offer, wanted, replace(job.limits, max_cost=Decimal(0)))]
    dear = {offer.id: fits(offer, wanted, job.limits) or shop.gates.refusal(job, offer) for offer in suitable}
    lots = [Lot(offer=offer, place=index, avoided=is_avoided(offer, avoid)) for offer in suitable if not dear[offer.id]]
    return _Answer(lots=lots, passed=len(offers) - len(suitable), dear=list(filter(None, dear.values())))


async def _offers(driver: Driver, job: Job, place: Place) -> Sequence[Offer]:
    """Return what is for rent on demand and, where that is wished for and still wise, what somebody may take back from us."""
    wanted, terms = needs(job.plan, place), place.provision
    found = list(await driver.offers(wanted))
    if terms.spot and driver.abilities.spot and evictions(job) < terms.max_evictions:
        found += [with_bid(offer, terms.bid_margin, job.limits) for offer in await driver.offers(wanted, spot=True)]
    return found


def _nothing(job: Job, answers: Sequence[_Answer]) -> RemoteTrainerError:
    """Return what to raise where no place has a machine."""
    errors = [answer.error for answer in answers if answer.error is not None]
    disturbed = next((error for error in errors if error.transient), None)
    if disturbed is not None or len(errors) == len(answers):
        return disturbed or errors[0]
    words = "; ".join(_words(job, index, answer) for index, answer in enumerate(answers))
    return NoCapacity(f"{words}: ask for less, or use another driver", driver=job.driver, operation="offers")


def _words(job: Job, index: int, answer: _Answer) -> str:
    place = job.places[index]
    if answer.error is not None:
        return f"driver {place.driver} cannot say what it has: {answer.error}"
    if answer.dear:
        return f"driver {place.driver} has machines that fit, {len(answer.dear)} of them, and all are too dear: {answer.dear[0]}"
    return f"driver {place.driver} has no machine that fits {needs(job.plan, place)} among {answer.passed} offers"
