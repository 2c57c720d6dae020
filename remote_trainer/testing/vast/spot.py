"""Who has which GPU: whoever rents on demand before any bid, of bids the highest; and prices that move.

Rules for editing: only ``settle`` says who has a GPU now; whatever may change that calls it for the offer.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from remote_trainer.testing.vast import life

if TYPE_CHECKING:
    from remote_trainer.testing.vast.instances import Instance
    from remote_trainer.testing.vast.provider import Provider

_LEAST_STEP = 0.001  # by so much another bid must be higher


@dataclass(slots=True)
class Moves:
    """How the least bids move: every so often each is drawn anew around where it began, never above the price on demand."""

    every_s: float
    swing: float  # 0.3: between 70 % and 130 %
    dice: random.Random
    next_at: float
    began: dict[int, float]

    def step(self, offers: dict[int, dict[str, Any]]) -> None:
        """Draw every least bid anew."""
        for number, least in self.began.items():
            if number in offers:
                drawn = least * self.dice.uniform(1 - self.swing, 1 + self.swing)
                offers[number]["min_bid"] = round(min(drawn, float(offers[number]["dph_base"])), 4)


@dataclass(slots=True)
class Spot:
    """What others do in the market."""

    demand: dict[int, float] = field(default_factory=dict)  # offers that others rent on demand, until when
    moves: Moves | None = None

    def let_move(self, sim: Provider, *, every_s: float, swing: float = 0.3, seed: int = 1) -> None:
        """Let the least bids move from now on, the same way for the same seed."""
        began = {number: float(row["min_bid"]) for number, row in sim.market.offers.items()}
        self.moves = Moves(every_s, swing, random.Random(seed), sim.now + every_s, began)  # noqa: S311 - a market, no secret

    def next_due(self) -> float | None:
        """Return when something happens."""
        ends = (until for until in self.demand.values() if until < math.inf)
        return min((*ends, *(() if self.moves is None else (self.moves.next_at,))), default=None)

    def do(self, sim: Provider, now: float) -> None:
        """Do what is due."""
        for number in [number for number, until in self.demand.items() if until <= now]:
            del self.demand[number]
            settle(sim, number)
        if self.moves is not None and self.moves.next_at <= now:
            self.moves.next_at = now + self.moves.every_s
            self.moves.step(sim.market.offers)
            for number in {int(each.offer["id"]) for each in sim.live.values() if each.bid is not None}:
                settle(sim, number)


def floor(sim: Provider, offer_id: int, *, besides: Instance | None = None) -> float:
    """Return the least bid that would win an offer now."""
    bids = [each.bid for each in _bidders(sim, offer_id) if each is not besides and not each.queued and each.bid is not None]
    least = float(sim.market.offers[offer_id]["min_bid"])
    return round(max(least, max(bids) + _LEAST_STEP), 4) if bids else least


def _taken(sim: Provider, offer_id: int) -> bool:
    """Does anybody have it on demand?"""
    holders = (each for each in _of(sim, offer_id) if each.bid is None and each.intended == "running")
    return offer_id in sim.spot.demand or any(holders)


def settle(sim: Provider, offer_id: int) -> None:
    """Take a GPU from who must give it up, and give it to who waits for it."""
    held = _taken(sim, offer_id)
    least = float(sim.market.offers[offer_id]["min_bid"])
    bidders = sorted(_bidders(sim, offer_id), key=lambda each: (-(each.bid or 0.0), each.created_at))
    winner = bidders[0] if bidders and not held and (bidders[0].bid or 0.0) >= least else None
    for each in bidders:
        if each is not winner and not each.queued:
            life.outbid(sim, each)
    waiting = next((each for each in _of(sim, offer_id) if each.bid is None and each.queued), None)
    chosen = winner if winner is not None and winner.queued else waiting if not held else None
    if chosen is not None and sim.account.credit > 0:
        life.resume(sim, chosen)
        held = held or chosen.bid is None
    sim.market.hold(offer_id, held)


def _of(sim: Provider, offer_id: int) -> list[Instance]:
    return [each for each in sim.live.values() if each.offer["id"] == offer_id and each.ended_at is None]


def _bidders(sim: Provider, offer_id: int) -> list[Instance]:
    """Return who bids for an offer: has it, or waits for it."""
    return [each for each in _of(sim, offer_id) if each.bid is not None and (each.intended == "running" or each.queued)]
