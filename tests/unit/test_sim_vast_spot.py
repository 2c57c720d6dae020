"""The simulated market of bids: the highest holds the GPU, whoever rents on demand goes first, and prices move."""

from __future__ import annotations

import pytest

from remote_trainer.testing.vast import demo
from remote_trainer.testing.vast.instances import Instance
from tests.support.vastsim import Standing


def _sim() -> Standing:
    return Standing(demo.offer(111, min_bid=0.2, dph_base=0.4), demo.offer(112, min_bid=0.2, dph_base=0.4))


def _floor(sim: Standing, offer: int = 111) -> float:
    rows = sim.ask("POST", "/api/v0/bundles/", {"type": "bid"}).body["offers"]
    return float(next(row["min_bid"] for row in rows if row["id"] == offer))


def _out(instance: Instance) -> bool:
    return {instance.intended, instance.current, instance.coming} == {"stopped"}


def test_a_machine_with_a_bid_on_it_costs_a_higher_bid() -> None:
    """It stays in the market, priced a little above who has it; the higher bid evicts the lower one, which waits."""
    sim = _sim()
    first = sim.running(111, price=0.25)
    assert _floor(sim) == pytest.approx(0.251)
    assert sim.rent(111, "rt-y", price=0.25).status == 410
    second = sim.running(111, "rt-y", price=0.3)
    assert _out(first) and second.actual == "running"
    sim.destroy_by_request(second)
    sim.go(60)
    assert first.actual == "running"


def test_whoever_rents_on_demand_evicts_a_bid() -> None:
    """The bid wins again when the GPU is free; until then the offer is nobody else's."""
    sim = _sim()
    bid = sim.running(111, price=0.39)
    other = sim.running(111, "rt-y")
    assert _out(bid)
    assert 111 not in [row["id"] for row in sim.ask("POST", "/api/v0/bundles/", {}).body["offers"]]
    sim.destroy_by_request(other)
    sim.go(60)
    assert bid.actual == "running"


def test_demand_of_others_evicts_for_a_while() -> None:
    """As admin: `demand` with a time; a raised bid does not help against it."""
    sim = _sim()
    bid = sim.running(111, price=0.3)
    sim.ask("POST", "/admin/offers/111/demand/", {"for_s": 100})
    assert _out(bid)
    sim.ask("PUT", f"/api/v0/instances/bid_price/{bid.id}/", {"price": 0.9})
    assert _out(bid)
    sim.go(200)
    assert bid.actual == "running"


def test_a_start_without_room_is_queued_and_can_be_taken_back() -> None:
    """200 with success:false; what is queued starts and is paid later, unless it is stopped or destroyed."""
    sim = _sim()
    mine, patient = sim.running(111), sim.running(112)
    for each in (mine, patient):
        sim.ask("PUT", f"/api/v0/instances/{each.id}/", {"state": "stopped"})
        sim.ask("POST", f"/admin/offers/{each.offer['id']}/demand/", {"for_s": 100})
        reply = sim.ask("PUT", f"/api/v0/instances/{each.id}/", {"state": "running"})
        assert (reply.status, reply.body["success"], reply.body["error"]) == (200, False, "resources_unavailable")
    sim.ask("PUT", f"/api/v0/instances/{mine.id}/", {"state": "stopped"})
    sim.go(200)
    assert (mine.actual, patient.actual) == ("stopped", "running")


def test_a_stopped_machine_may_be_rented_by_others() -> None:
    """Stopping gives the GPU back to the market."""
    sim = _sim()
    mine = sim.running(111)
    sim.ask("PUT", f"/api/v0/instances/{mine.id}/", {"state": "stopped"})
    assert sim.rent(111, "rt-y").status == 200
    assert sim.ask("PUT", f"/api/v0/instances/{mine.id}/", {"state": "running"}).body["error"] == "resources_unavailable"


def test_a_bid_without_a_price_is_the_one_that_wins() -> None:
    """Just above who has it."""
    sim = _sim()
    low = sim.running(111, price=0.25)
    high = sim.running(111, "rt-y", price=0.3)
    sim.ask("PUT", f"/api/v0/instances/bid_price/{low.id}/", {"client_id": "me", "price": None})
    assert low.bid == pytest.approx(0.301)
    assert _out(high)


def test_prices_move_the_same_way_for_the_same_seed() -> None:
    """Least bids are drawn anew every so often, never above the price on demand; bids that are too low then are evicted."""
    told = []
    for _ in range(2):
        sim = _sim()
        bid = sim.running(111, price=0.2)
        sim.ask("POST", "/admin/market/", {"every_s": 300, "swing": 0.5, "seed": 4})
        seen = []
        for _ in range(12):
            sim.go(300)
            seen.append((sim.market.offers[111]["min_bid"], bid.intended))
        told.append(seen)
    assert told[0] == told[1]
    assert {state for _, state in told[0]} == {"running", "stopped"}
    assert all(0.1 <= floor <= 0.3 for floor, _ in told[0])
    assert all((floor <= 0.2) == (state == "running") for floor, state in told[0])
