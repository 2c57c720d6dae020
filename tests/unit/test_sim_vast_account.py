"""The simulated Vast.ai's account: what keys may, what is billed and how it is told, volumes, several rented at once."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from remote_trainer.testing.vast import demo
from tests.support.vastsim import START, Standing


def _charges(sim: Standing, since: float = START, until: float = START + 86_399, **query: str) -> Any:
    days = json.dumps({"day": {"gte": since, "lte": until}})
    return sim.ask("GET", "/api/v0/charges/", select_filters=days, **query).body


def _key(sim: Standing, permissions: dict[str, Any]) -> str:
    return str(sim.ask("POST", "/api/v0/auth/apikeys/", {"name": "k", "permissions": {"api": permissions}}).body["key"])


# -- keys


def test_a_key_is_for_the_groups_routes_and_numbers_it_names() -> None:
    """Each refusal has words of its own, all are 401."""
    sim = Standing()
    mine, other = sim.running(111), sim.running(112)
    logs = "api.instance.request_logs"
    key = _key(sim, {"instance_read": {logs: {"constraints": {"id": {"eq": mine.id}}}}, "user_read": {}})
    assert sim.ask("GET", "/api/v0/users/current", key=key).status == 200
    assert sim.ask("PUT", f"/api/v0/instances/request_logs/{mine.id}/", {}, key=key).status == 200
    refused = {
        "due to a constraint on id": sim.ask("PUT", f"/api/v0/instances/request_logs/{other.id}/", {}, key=key),
        "route access": sim.ask("GET", f"/api/v0/instances/{mine.id}/", key=key),
        "lacks the instance_write permission group": sim.ask("DELETE", f"/api/v0/instances/{mine.id}/", {}, key=key),
    }
    for words, reply in refused.items():
        assert reply.status == 401
        assert words in reply.body["msg"]


def test_a_deleted_key_opens_nothing() -> None:
    """It is not listed any more, and is refused like one that never was."""
    sim = Standing()
    key = _key(sim, {"user_read": {}})
    (row,) = [row for row in sim.ask("GET", "/api/v0/auth/apikeys/").body["apikeys"] if row["name"] == "k"]
    assert key not in str(row)
    assert sim.ask("DELETE", f"/api/v0/auth/apikeys/{row['id']}/", {}).status == 200
    assert sim.ask("GET", "/api/v0/users/current", key=key).body["msg"] == "Invalid user key"
    assert sim.ask("GET", f"/api/v0/auth/apikeys/{row['id']}/").status == 404


def test_an_instances_own_key() -> None:
    """It looks at itself, is labelled, stopped and ended by itself; the old list is gone for it too, all else is refused."""
    sim = Standing()
    mine, other = sim.running(111), sim.running(112)
    own, there = f"/api/v0/instances/{mine.id}/", f"/api/v0/instances/{other.id}/"

    def ask(method: str, path: str, body: object = None) -> int:
        return sim.ask(method, path, body, key=mine.api_key).status

    assert [ask("GET", own), ask("PUT", own, {"label": "L"}), ask("PUT", own, {"state": "stopped"})] == [200, 200, 200]
    assert [ask("GET", there), ask("PUT", there, {}), ask("DELETE", there, {})] == [401, 401, 401]
    assert [ask("GET", "/api/v1/instances/"), ask("PUT", "/api/v0/asks/111/", {}), ask("GET", "/api/v0/audit_logs/")] == [401] * 3
    assert ask("GET", "/api/v0/instances/") == 410
    assert ask("DELETE", own, {}) == 200
    assert sim.audit[-1]["args"]["contract_id"] == mine.id


def test_the_quota_of_searches_is_used_up_until_midnight() -> None:
    """Every search is refused till then, with the time at which it ends; nothing else is."""
    sim = Standing()
    sim.faults.arm("search-quota")
    replies = [sim.ask("POST", "/api/v0/bundles/", {}) for _ in range(2)]
    assert [reply.status for reply in replies] == [429, 429]
    assert int(replies[1].headers["X-RateLimit-Reset"]) % 86_400 == 0
    assert sim.rent(111).status == 200
    sim.go(int(replies[1].headers["X-RateLimit-Reset"]) - START)
    assert sim.ask("POST", "/api/v0/bundles/", {}).status == 200


# -- money


def test_traffic_is_billed_by_direction() -> None:
    """Bytes that came and went, by the prices of the offer."""
    sim = Standing(demo.offer(111, inet_down_cost=0.01, inet_up_cost=0.02))
    made = sim.running(label="rt-x")
    before = sim.account.credit
    assert sim.ask("POST", f"/admin/instances/{made.id}/traffic/", {"down_gb": 3, "up_gb": 5}).status == 200
    assert before - sim.account.credit == Decimal("0.13")
    (row,) = _charges(sim)["results"]
    assert {item["type"]: item["amount"] for item in row["items"] if item["type"] in ("bwd", "bwu")} == {"bwd": 0.03, "bwu": 0.1}
    assert row["amount"] == pytest.approx(float(made.meter.total), abs=1e-5)


def test_each_day_has_its_own_charges() -> None:
    """What runs over midnight is billed on both days, and the days together are all of it."""
    sim = Standing(demo.offer(111, dph_base=1.0))
    made = sim.running(label="rt-x")
    sim.go(40 * 3600)
    sim.destroy_by_request(made)
    sim.go(3600)
    rows = _charges(sim, START, START + 3 * 86_400)["results"]
    assert len(rows) == 3  # the clock begins in the middle of a day
    assert len({row["start"] // 86_400 for row in rows}) == 3
    assert sum(row["amount"] for row in rows) == pytest.approx(float(made.meter.total), abs=1e-4)
    assert _charges(sim, START + 86_400, START + 86_401)["results"] == [rows[1]]


def test_charges_may_lag() -> None:
    """The last hours are not told yet; later they are."""
    sim = Standing()
    sim.ask("POST", "/admin/charges/", {"lag_s": 7200})
    sim.running(label="rt-x")
    sim.go(3600)
    assert _charges(sim)["results"] == []
    sim.go(7200)
    assert _charges(sim)["total"] == 1


def test_credit_that_is_added_is_an_invoice() -> None:
    """By either list; days that make no sense are 200 with success:false."""
    sim = Standing()
    sim.ask("POST", "/admin/credit/", {"credit": 40})
    when = json.dumps({"when": {"gte": START - 1, "lte": START + 1}})
    assert [row["amount"] for row in sim.ask("GET", "/api/v1/invoices/", select_filters=when).body["results"]] == [15.0]
    wrong = sim.ask("GET", "/api/v1/invoices/", select_filters='{"when": {"gte": 2, "lte": 1}}')
    assert (wrong.status, wrong.body["success"]) == (200, False)
    old = sim.ask("GET", "/api/v0/users/me/invoices", sdate=str(START - 1), edate=str(START + 1)).body
    assert [row["type"] for row in old["invoices"]] == ["payment"]


def test_contracts_are_found_by_label() -> None:
    """Among those that are named, also those that are gone."""
    sim = Standing()
    first, second = sim.running(111, "rt-a"), sim.running(112, "rt-b")
    sim.destroy_by_request(first)
    sim.go(60)
    body = {"label": "rt-a", "contract_ids": [first.id, second.id]}
    assert [row["id"] for row in sim.ask("POST", "/api/v0/contracts/fetch/", body).body["contracts"]] == [first.id]


def test_a_sub_account_gets_some_of_the_credit() -> None:
    """By its number or its address; not more than there is."""
    sim = Standing()
    child = sim.ask(
        "POST", "/api/v0/users/", {"email": "a@example.org", "username": "a", "password": "p", "parent_id": "me"}
    ).body
    assert sim.ask("PUT", "/api/v0/commands/transfer_credit/", {"recipient": "a@example.org", "amount": 5}).status == 200
    assert sim.ask("GET", "/api/v0/subaccounts", owner="me").body["users"][0]["credit"] == 5
    assert sim.account.credit == 20
    assert sim.ask("PUT", "/api/v0/commands/transfer_credit/", {"recipient": str(child["id"]), "amount": 50}).status == 400


# -- volumes


def test_a_volume_outlives_its_instance_and_is_paid_until_it_is_deleted() -> None:
    """It can be deleted half a minute after its instance's end."""
    sim = Standing(demo.offer(111, storage_cost=7.2), 112)
    room = sim.ask("POST", "/api/v0/volumes/search/", {"machine_id": {"eq": 20_111}}).body["offers"]
    name = sim.ask("PUT", "/api/v0/volumes/", {"id": room[0]["id"], "size": 100, "name": "data"}).body["volume_name"]
    number = int(name.removeprefix("V."))
    assert sim.rent(112, env={f"-v {name}:/mnt": "1"}).status == 400  # another machine
    made = sim.running(111, env={f"-v {name}:/mnt": "1"})
    (row,) = sim.ask("GET", "/api/v0/volumes", owner="me", type="all_volume").body["volumes"]
    assert (row["id"], row["label"], row["instances"]) == (number, "data", [made.id])
    sim.destroy_by_request(made)
    sim.go(10)
    assert sim.ask("DELETE", "/api/v0/volumes/", id=str(number)).body["error"] == "volume_in_use"
    sim.go(3600)
    assert sim.ask("DELETE", "/api/v0/volumes/", id=str(number)).status == 200
    cost = sim.volumes.every()[0].meter.total
    assert float(cost) == pytest.approx((3600 + 10 + 60) / 3600)
    sim.go(3600)
    assert sim.volumes.every()[0].meter.total == cost
    assert [row["source"] for row in _charges(sim)["results"] if row["type"] == "volume"] == [f"volume-{number}"]


def test_a_volume_is_made_with_its_instance() -> None:
    """As `create instance --create-volume` asks for it."""
    sim = Standing()
    sim.made(111, volume_info={"create_new": True, "size": 20, "mount_path": "/mnt", "name": "v"})
    assert [(each.label, each.size_gb) for each in sim.volumes.there.values()] == [("v", 20)]


# -- several


def test_several_offers_are_rented_at_once() -> None:
    """Each by itself: what is refused keeps nothing else from being made."""
    sim = Standing(111, 112)
    reply = sim.ask("POST", "/api/v0/asks/bulk/", {"ids": [111, 999, 112], "image": "i", "disk": 20, "label": "L"})
    assert [row["id"] for row in reply.body["results"]] == [111, 112]
    assert [row["id"] for row in reply.body["failed"]] == [999]
    assert len(sim.live) == 2


def test_launch_rents_what_a_search_finds_first() -> None:
    """By the order that the search asks for."""
    sim = Standing(demo.offer(111, dph_base=0.5), demo.offer(112, dph_base=0.3))
    body = {"image": "i", "disk": 20, "q": {"order": [["dph_total", "asc"]]}, "env": {}, "label": "L"}
    made = sim.ask("PUT", "/api/v0/launch_instance/", body).body["new_contract"]
    assert sim.live[made].offer["id"] == 112
    assert sim.ask("PUT", "/api/v0/launch_instance/", {**body, "q": {"gpu_name": {"eq": "none"}}}).status == 400
