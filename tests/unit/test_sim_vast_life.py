"""Lives of simulated instances on a clock that is moved by hand: states, money, the scheduler."""

from __future__ import annotations

from decimal import Decimal

import pytest

from remote_trainer.testing.vast import demo
from tests.support.vastsim import START, Standing


def test_an_instance_comes_up_step_by_step() -> None:
    """No word, created, loading, running; its ports are there only then, its address with a space behind."""
    sim = Standing()
    made = sim.made()
    seen = []
    for seconds in (0, 5, 5, 49, 1):
        sim.go(seconds)
        row = sim.shown(made)
        seen.append((row["actual_status"], bool(row["ports"])))
    assert seen == [(None, False), ("created", False), ("loading", False), ("loading", False), ("running", True)]
    row = sim.listed()[0]
    assert row["public_ipaddr"].endswith(" ")
    assert isinstance(row["ports"]["22/tcp"][0]["HostPort"], str)


def test_a_destroyed_instance_is_null_a_little_later() -> None:
    """Its row stays for a moment, then it is nothing, and its offer is there again."""
    sim = Standing()
    made = sim.running()
    assert sim.destroy_by_request(made).status == 200
    assert sim.shown(made)["id"] == made.id
    sim.go(7)
    assert sim.shown(made) is None
    assert sim.destroy_by_request(made).body["error"] == "no_such_instance"
    assert sim.rent(111).status == 200


def test_money_is_counted_by_state() -> None:
    """The GPU while it runs, the disk always, both for two minutes after the end; a jump of the clock is billed as what was in it."""
    sim = Standing(demo.offer(111, dph_base=3.6, storage_cost=0.72))  # 0.001 $ a second; 20 GB: 0.02 $ an hour
    made = sim.made()
    sim.go(60 + 1000)  # boots and runs
    sim.destroy_by_request(made)
    sim.go(10_000)
    assert made.meter.gpu_s == pytest.approx(1000 + 120)
    assert made.meter.disk_s == pytest.approx(60 + 1000 + 120)
    assert float(made.meter.gpu) == pytest.approx(1.12)
    assert float(sim.account.credit) == pytest.approx(25 - 1.12 - 0.02 * 1180 / 3600)


def test_a_stopped_instance_costs_its_disk_and_nothing_after_its_end() -> None:
    """Stopping ends the GPU's price at once."""
    sim = Standing()
    made = sim.running()
    sim.ask("PUT", f"/api/v0/instances/{made.id}/", {"state": "stopped"})
    gpu_s = made.meter.gpu_s
    sim.go(3600)
    sim.destroy_by_request(made)
    sim.go(600)
    assert made.meter.gpu_s == gpu_s
    assert made.meter.disk_s == pytest.approx(60 + 3600)


def test_without_credit_everything_stops() -> None:
    """Nothing new is rented then."""
    sim = Standing(credit=Decimal("0.1"))
    made = sim.running()
    sim.go(3600)
    assert (made.actual, made.intended) == ("stopped", "stopped")
    assert sim.rent(112).body["error"] == "insufficient_credit"
    assert sim.ask("PUT", f"/api/v0/instances/{made.id}/", {"state": "running"}).body["error"] == "missing_billing"


def test_charges_need_days() -> None:
    """Each instance with its label and its parts."""
    sim = Standing()
    made = sim.running(label="rt-job")
    sim.go(3600)
    assert sim.ask("GET", "/api/v0/charges/").status == 400
    rows = sim.ask("GET", "/api/v0/charges/", select_filters=f'{{"day": {{"gte": {START}, "lte": {START + 9999}}}}}').body[
        "results"
    ]
    assert (rows[0]["source"], rows[0]["metadata"]["label"]) == (f"instance-{made.id}", "rt-job")
    assert sum(item["amount"] for item in rows[0]["items"]) == pytest.approx(rows[0]["amount"], abs=1e-5)


def _schedule(sim: Standing, instance: int, start: float) -> object:
    body = {"start_time": start, "end_time": start + 86_400, "api_endpoint": f"/api/v0/instances/{instance}/"}
    return sim.ask("POST", "/api/v0/commands/schedule_job/", {**body, "request_method": "DELETE", "instance_id": instance}).status


def test_the_scheduler_fires_at_the_beginning_of_the_hour_that_contains_the_start() -> None:
    """A start at 13:22 ends an instance at 13:00; one a second after the hour at that hour."""
    sim = Standing()
    early, late = sim.running(111), sim.running(112)
    assert _schedule(sim, early.id, START + 3600 + 22 * 60) == 200
    assert _schedule(sim, late.id, START + 7200 + 1) == 200
    sim.go(3600 - 121)
    assert early.ended_at is None
    sim.go(10)
    assert early.ended_at == START + 3600
    sim.go(7200)
    assert late.ended_at == START + 7200
    assert sim.record.alive() == []


def test_one_scheduled_job_for_an_instance() -> None:
    """A second one is refused with the first one's number, which can be changed and taken back."""
    sim = Standing()
    made = sim.running()
    _schedule(sim, made.id, START + 3600)
    again = sim.ask("POST", "/api/v0/commands/schedule_job/", {"start_time": 1, "api_endpoint": "/", "instance_id": made.id})
    assert (again.status, again.body["scheduled_job_id"]) == (422, 1)
    sim.ask("PUT", "/api/v0/commands/schedule_job/1/", {"start_time": START + 36_000})
    assert sim.schedule.jobs[1].due == START + 36_000
    assert sim.ask("DELETE", "/api/v0/commands/schedule_job/1/", {}).status == 200
    assert sim.ask("GET", "/api/v0/commands/schedule_job/").body == []


def test_bids() -> None:
    """A low one rents nothing, or parks where that is allowed; a higher floor evicts, a lower one starts again."""
    sim = Standing(demo.offer(111, min_bid=0.2), demo.offer(112, min_bid=0.2))
    assert sim.rent(111, price=0.1).status == 410
    assert sim.live == {}
    parked = sim.rent(112, price=0.1, cancel_unavail=False)
    assert (parked.status, parked.body["success"], sim.live[parked.body["new_contract"]].actual) == (200, False, "stopped")
    made = sim.running(111, price=0.25)
    sim.ask("POST", "/admin/offers/111/", {"min_bid": 0.3})
    row = sim.shown(made)
    assert {row[name] for name in ("cur_state", "intended_status", "next_state")} == {"stopped"}
    queued = sim.ask("PUT", f"/api/v0/instances/{made.id}/", {"state": "running"})
    assert (queued.status, queued.body["error"]) == (200, "resources_unavailable")
    sim.ask("PUT", f"/api/v0/instances/bid_price/{made.id}/", {"price": 0.35})
    sim.go(20)
    assert made.actual == "running"


def test_the_record_tells_doubles_and_what_is_alive() -> None:
    """Two under one label at a time are told, one after the other are fine."""
    sim = Standing(111, 112, 113)
    first = sim.running(111, "rt-a")
    sim.destroy_by_request(first)
    sim.go(10)
    sim.running(111, "rt-a")
    assert sim.record.doubles() == []
    second = sim.running(112, "rt-a")
    assert sim.record.doubles() == ["rt-a"]
    assert second.id in sim.record.alive()
    assert sim.cost("rt-a") > 0
    assert sim.cost("other") == 0
