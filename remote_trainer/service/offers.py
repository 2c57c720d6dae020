"""What could be rented for an order now, ranked as a worker would rank it, and what was passed over and why.

Rules for editing: asks the driver and the store, changes nothing; the ranking is ``policy``'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from remote_trainer.model import Limits, Offer, Place, Plan
from remote_trainer.policy import (
    Estimate,
    Lot,
    estimate_plan,
    expected_cost,
    fits,
    is_avoided,
    nearly_best,
    needs,
    rank,
    too_dear,
    with_bid,
)
from remote_trainer.ports import Driver, Refusal, Survey, Surveyor
from remote_trainer.recipe.presets import wants_facts
from remote_trainer.service.app import App
from remote_trainer.service.data import count
from remote_trainer.service.models import with_disk
from remote_trainer.service.preview import Transfer, transfers
from remote_trainer.service.submit import Order, Sketch, find_sources, plan_for, sketch
from remote_trainer.worker.market import find_failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An offer that can serve."""

    offer: Offer  # a spot offer at the price that would be bid
    place: int  # which of the order's places
    cost: Decimal  # of the whole run, US dollars, as far as it can be told
    failed: bool  # its machine failed a job lately: taken only if there is nothing else
    first: bool  # one of those that a job would take now


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """The market as an order sees it."""

    plan: Plan
    driver: str  # as it was ordered
    places: int
    limits: Limits
    run: Estimate
    unmeasured: Sequence[str]  # inputs whose size is known only once they are packed
    candidates: Sequence[Candidate]  # best first
    refused: Sequence[Refusal]


async def rank_offers(app: App, order: Order, *, refused: bool = True) -> Ranking:
    """Return what could be rented for an order; its data may be missing, and is not packed.

    Without ``refused`` less is asked of the market.
    """
    wanted = await _sketch_with_data(app, order)
    shipped = await transfers(wanted.recipe, find_sources(wanted.recipe, wanted.plan, order, partial=True))
    sizes = {each.name: each.size or 0 for each in shipped}
    wanted = replace(wanted, plan=with_disk(wanted.plan, sizes).plan)
    run, strategy = _estimate(wanted, shipped), wanted.places.first.provision.strategy
    failed = await find_failed(app.store, app.clock.now())
    lots: list[Lot] = []
    passed_over: list[Refusal] = []
    for index, place in enumerate(wanted.places.every):
        driver = app.driver(place.driver, place.options)
        try:
            seen = _affordable(app, order, wanted, run, await _survey(driver, wanted, place, refused=refused))
        finally:
            await driver.close()
        avoid = frozenset[str]() if driver.abilities.borrowed else failed
        lots += [Lot(offer=offer, place=index, avoided=is_avoided(offer, avoid)) for offer in seen.offers]
        passed_over += seen.refused
    ranked = rank(lots, run, strategy)
    first = nearly_best(ranked, run, strategy)
    return Ranking(
        plan=wanted.plan,
        driver=order.driver,
        places=len(wanted.places.every),
        limits=wanted.limits,
        run=run,
        unmeasured=[each.name for each in shipped if each.size is None],
        candidates=[
            Candidate(
                offer=lot.offer, place=lot.place, cost=expected_cost(lot.offer, run), failed=lot.avoided, first=lot in first
            )
            for lot in ranked
        ],
        refused=passed_over,
    )


async def _sketch_with_data(app: App, order: Order) -> Sketch:
    """Return the sketch with the plan that its data, if there is any, makes of it."""
    wanted = sketch(app.settings, order)
    dataset = find_sources(wanted.recipe, wanted.plan, order, partial=True).get("dataset")
    facts = None
    if dataset is not None and wants_facts(wanted.recipe, wanted.given):
        facts = await count(app.settings, dataset)
    return replace(wanted, plan=plan_for(wanted, facts))


def _estimate(wanted: Sketch, shipped: Sequence[Transfer]) -> Estimate:
    return estimate_plan(wanted.plan, wanted.limits, sum(each.size or 0 for each in shipped))


async def _survey(driver: Driver, wanted: Sketch, place: Place, *, refused: bool) -> Survey:
    """Return what can serve at a place by its driver's word and by the job's needs and limits."""
    wishes, terms = needs(wanted.plan, place), place.provision
    if refused and isinstance(driver, Surveyor):
        seen = await driver.survey(wishes)
    else:
        seen = Survey(offers=await driver.offers(wishes))
    offers = list(seen.offers)
    if terms.spot and driver.abilities.spot:
        offers += [with_bid(offer, terms.bid_margin, wanted.limits) for offer in await driver.offers(wishes, spot=True)]
    suitable: list[Offer] = []
    passed_over = list(seen.refused)
    free = replace(wanted.limits, max_cost=Decimal(0))
    for offer in offers:
        reason = fits(offer, wishes, wanted.limits)
        if reason:
            condition = "needs" if fits(offer, wishes, free) else "max_cost"
            passed_over.append(Refusal(offer=offer.id, description=offer.description, condition=condition, reason=reason))
        else:
            suitable.append(offer)
    return Survey(offers=suitable, refused=passed_over)


def _affordable(app: App, order: Order, wanted: Sketch, run: Estimate, seen: Survey) -> Survey:
    """Return what the job's cap, the installation's and the tenant's budget leave of it."""
    left, spending = wanted.limits.max_cost or None, app.settings.spending
    why = {offer.id: too_dear(offer, run, spending, tenant=order.tenant, left=left) for offer in seen.offers}
    dear = [
        Refusal(offer=offer.id, description=offer.description, condition="spending", reason=why[offer.id])
        for offer in seen.offers
        if why[offer.id]
    ]
    return Survey(offers=[offer for offer in seen.offers if not why[offer.id]], refused=[*seen.refused, *dear])
