"""What could be rented for an order now, ranked as a worker would rank it, and what was passed over and why.

Rules for editing: asks the driver and the store, changes nothing; the ranking is ``policy``'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from remote_trainer.errors import UsageError
from remote_trainer.model import Limits, Offer, Plan
from remote_trainer.policy import Estimate, estimate_plan, expected_cost, fits, is_avoided, nearly_best, rank
from remote_trainer.ports import Driver, Refusal, Survey, Surveyor
from remote_trainer.service.app import App
from remote_trainer.service.preview import transfers
from remote_trainer.service.submit import Order, Sketch, find_sources, sketch
from remote_trainer.worker.market import find_failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An offer that can serve."""

    offer: Offer
    cost: Decimal  # of the whole run, US dollars, as far as it can be told
    failed: bool  # its machine failed a job lately: taken only if there is nothing else
    first: bool  # one of those that a job would take now


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """The market as an order sees it."""

    plan: Plan
    driver: str
    limits: Limits
    run: Estimate
    unmeasured: Sequence[str]  # inputs whose size is known only once they are packed
    candidates: Sequence[Candidate]  # best first
    refused: Sequence[Refusal]


async def rank_offers(app: App, order: Order, *, spot: bool = False, refused: bool = True) -> Ranking:
    """Return what could be rented for an order; its data may be missing, and is not packed.

    ``spot``: what the provider may take back, at the least bid that would win. Without ``refused`` the market is asked once only.
    """
    wanted = sketch(app.settings, order)
    if len(wanted.places.every) > 1:
        raise UsageError(f"{order.driver} names several places: ask for the offers of one")
    shipped = await transfers(wanted.recipe, find_sources(wanted.recipe, wanted.plan, order, partial=True))
    run = estimate_plan(wanted.plan, wanted.limits, sum(each.size or 0 for each in shipped))
    driver = app.driver(wanted.places.first.driver, wanted.places.first.options)
    try:
        if spot and not driver.abilities.spot:
            raise UsageError(f"{order.driver} has no spot machines: leave --spot out")
        seen = await _survey(driver, wanted, spot=spot, refused=refused)
    finally:
        await driver.close()
    failed = frozenset[str]() if driver.abilities.borrowed else await find_failed(app.store, app.clock.now())
    ranked = rank(seen.offers, run, failed)
    first = {offer.id for offer in nearly_best(ranked, run, failed)}
    return Ranking(
        plan=wanted.plan,
        driver=wanted.places.first.driver,
        limits=wanted.limits,
        run=run,
        unmeasured=[each.name for each in shipped if each.size is None],
        candidates=[
            Candidate(offer=offer, cost=expected_cost(offer, run), failed=is_avoided(offer, failed), first=offer.id in first)
            for offer in ranked
        ],
        refused=seen.refused,
    )


async def _survey(driver: Driver, wanted: Sketch, *, spot: bool, refused: bool) -> Survey:
    """Return what can serve by the driver's word and by the job's needs and limits."""
    needs = wanted.plan.resources
    if refused and isinstance(driver, Surveyor):
        seen = await driver.survey(needs, spot=spot)
    else:
        seen = Survey(offers=await driver.offers(needs, spot=spot))
    suitable: list[Offer] = []
    passed_over = list(seen.refused)
    free = replace(wanted.limits, max_cost=Decimal(0))
    for offer in seen.offers:
        reason = fits(offer, needs, wanted.limits)
        if reason:
            condition = "needs" if fits(offer, needs, free) else "max_cost"
            passed_over.append(Refusal(offer=offer.id, description=offer.description, condition=condition, reason=reason))
        else:
            suitable.append(offer)
    return Survey(offers=suitable, refused=passed_over)
