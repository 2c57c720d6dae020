"""The simulated Vast.ai answers as the real one: searching, paging, keys, refusals."""

from __future__ import annotations

import json

import pytest

from remote_trainer.testing.vast import demo
from tests.support.vastsim import START, Standing


def _search(sim: Standing, **query: object) -> list[int]:
    return [row["id"] for row in sim.ask("POST", "/api/v0/bundles/", query).body["offers"]]


def test_numbers_may_come_as_text() -> None:
    """The official client sends most numbers as text."""
    sim = Standing(1, demo.offer(2, num_gpus=2))
    assert _search(sim, num_gpus={"eq": "2"}) == [2]
    assert _search(sim, num_gpus={"gte": "1", "lt": "2"}, verified={"eq": "true"}) == [1]


@pytest.mark.parametrize(
    ("condition", "found"),
    [
        ({"eq": 900}, [1]),
        ({"neq": 900}, [2, 3]),
        ({"gt": 900}, [2, 3]),
        ({"gte": 900, "lte": 1000}, [1, 2]),
        ({"in": [900, 2000]}, [1, 3]),
        ({"notin": [900, 2000]}, [2]),
    ],
)
def test_every_operator(condition: object, found: list[int]) -> None:
    """eq, neq, gt, gte, lt, lte, in, notin."""
    sim = Standing(demo.offer(1), demo.offer(2, inet_down=1000.0), demo.offer(3, inet_down=2000.0))
    assert sorted(_search(sim, inet_down=condition)) == found
    assert sim.ask("POST", "/api/v0/bundles/", {"inet_down": {"like": 1}}).status == 400


def test_a_search_answers_64_offers_at_most_in_the_order_asked_for() -> None:
    """Whatever the limit says."""
    sim = Standing(*(demo.offer(number, dph_base=number / 100) for number in range(100, 200)))
    assert _search(sim, limit=500, order=[["dph_total", "asc"]]) == list(range(100, 164))
    assert _search(sim, limit=2, order=[["dph_total", "desc"]]) == [199, 198]


def test_prices_are_those_of_the_disk_asked_for_but_filters_see_others() -> None:
    """720 hours to a month; a cap on the price looks at a disk of 8 GB."""
    sim = Standing(demo.offer(1, dph_base=0.5, storage_cost=0.72))
    query = {"allocated_storage": 1000.0, "dph_total": {"lte": 0.6}}
    assert sim.ask("POST", "/api/v0/bundles/", query).body["offers"][0]["dph_total"] == pytest.approx(1.5)


def test_what_a_query_does_not_say() -> None:
    """Rented, unverified, external and storage offers stay away, and an id finds nothing."""
    sim = Standing(
        demo.offer(1), demo.offer(2, verification="unverified"), demo.offer(3, external=True), demo.offer(4, num_gpus=0)
    )
    assert _search(sim) == [1]
    assert _search(sim, id={"eq": 1}) == []
    assert _search(sim, ask_contract_id={"eq": 1}) == [1]
    assert _search(sim, geolocation={"in": ["US"]}) == [1]
    sim.rent(1)
    assert _search(sim) == []


def test_lists_come_in_pages_of_25() -> None:
    """The token leads to the next page, and the total is that of all."""
    sim = Standing(*range(100, 160))
    for number in range(100, 160):
        sim.rent(number, label=f"rt-{number}")
    first = sim.ask("GET", "/api/v1/instances/", limit="100").body
    second = sim.ask("GET", "/api/v1/instances/", after_token=first["next_token"]).body
    third = sim.ask("GET", "/api/v1/instances/", after_token=second["next_token"]).body
    assert [len(page["instances"]) for page in (first, second, third)] == [25, 25, 10]
    assert (first["total_instances"], third["next_token"]) == (60, None)
    assert len({row["id"] for page in (first, second, third) for row in page["instances"]}) == 60
    assert sim.ask("GET", "/api/v1/instances/", after_token="?").body["error"] == "invalid_token"


def test_lists_are_filtered_by_stored_columns_only() -> None:
    """A label finds exactly; a computed column is refused."""
    sim = Standing()
    made = sim.made(111, "rt-a/b")
    sim.made(112, "rt-a")
    assert [row["id"] for row in sim.listed(select_filters=json.dumps({"label": {"eq": "rt-a/b"}}))] == [made.id]
    assert sim.ask("GET", "/api/v1/instances/", select_filters='{"dph_total": {"gt": 0}}').status == 400


def test_the_old_list_is_gone() -> None:
    """410, by a name of its own."""
    reply = Standing().ask("GET", "/api/v0/instances/")
    assert (reply.status, reply.body["error"]) == (410, "deprecated_endpoint")


def test_keys_and_permissions() -> None:
    """None is 403, an unknown one 404 as if something were gone, a missing permission 401; searching needs none."""
    sim = Standing()
    made = sim.running()
    path = f"/api/v0/instances/{made.id}/"
    assert sim.ask("GET", path, key="").status == 404
    unknown = sim.ask("DELETE", path, {}, key="0" * 64)
    assert (unknown.status, unknown.body["msg"]) == (404, "Invalid user key")
    reader = sim.account.new_key(groups=frozenset({"instance_read"})).value
    assert sim.ask("GET", path, key=reader).status == 200
    assert sim.ask("DELETE", path, {}, key=reader).status == 401
    assert sim.ask("POST", "/api/v0/bundles/", {}, key="").status == 200


def test_an_instances_own_key_is_for_that_instance_alone() -> None:
    """It may look at itself, stop itself and end itself."""
    sim = Standing()
    mine, other = sim.running(111), sim.running(112)
    key = mine.api_key
    assert sim.ask("GET", f"/api/v0/instances/{mine.id}/", key=key).status == 200
    assert sim.ask("GET", f"/api/v0/instances/{other.id}/", key=key).status == 401
    assert sim.ask("GET", "/api/v0/users/current", key=key).status == 401
    assert sim.ask("POST", f"/api/v0/instances/{mine.id}/ssh/", {"ssh_key": "ssh-rsa x"}, key=key).status == 401
    assert sim.ask("DELETE", f"/api/v0/instances/{mine.id}/", {}, key=key).status == 200


def test_paths_end_with_a_slash_but_four() -> None:
    """Without it a body is lost; where the official client has none, both are fine."""
    sim = Standing()
    assert sim.ask("PUT", "/api/v0/asks/111", {"image": "i"}).body["msg"] == "Request body must be valid JSON"
    assert sim.ask("GET", "/api/v0/users/current").status == sim.ask("GET", "/api/v0/users/current/").status == 200


def test_limits_of_requests_when_they_are_kept() -> None:
    """Too soon is 429 in several shapes, and a request to rent that was refused is punished."""
    sim = Standing()
    now = [0.0]
    sim.account.limits.on, sim.account.limits.now = True, lambda: now[0]
    assert sim.rent(111).status == 200
    shapes = [sim.ask("POST", "/api/v0/bundles/", {}).body for _ in range(5)][1:]
    assert len({str(shape) for shape in shapes}) == 4
    now[0] = 4.0
    assert sim.rent(112).status == 429
    now[0] = 15.0
    assert sim.rent(112).status == 429
    now[0] = 30.0
    assert sim.rent(112).status == 200


def test_orders_that_are_wrong_are_refused_and_rent_nothing() -> None:
    """A long script, an environment as text, a tiny disk, a bid out of bounds."""
    sim = Standing()
    for wrong in ({"onstart": "x" * 5000}, {"env": "-e A=b"}, {"disk": 1}, {"price": 1000}, {"image": ""}, {"label": "x" * 300}):
        assert sim.rent(**wrong).status == 400  # type: ignore[arg-type]
    assert sim.live == {}


def test_an_offer_is_rented_once() -> None:
    """The second request for it is refused as gone, and so is one that never was."""
    sim = Standing()
    assert sim.rent(111).status == 200
    assert sim.rent(111).body["error"] == "no_such_ask"
    assert "no_such_ask" in sim.rent(5).body["msg"]


def test_what_comes_by_a_link_comes_later() -> None:
    """Refused without words at first, without a key."""
    sim = Standing()
    made = sim.made()
    assert sim.ask("PUT", f"/api/v0/instances/request_logs/{made.id}/", {}).status == 400
    sim.go(60)
    link = (
        sim.ask("PUT", f"/api/v0/instances/request_logs/{made.id}/", {"tail": "1"}).body["result_url"].removeprefix("http://sim")
    )
    assert [sim.ask("GET", link, key="").status for _ in range(3)] == [403, 403, 200]


def test_the_audit_log_tells_what_was_rented() -> None:
    """With the contract that came of it."""
    sim = Standing()
    made = sim.made()
    sim.destroy_by_request(made)
    rows = sim.ask("GET", "/api/v0/audit_logs/").body
    assert [(row["api_route"], row["args"]["contract_id"]) for row in rows] == [
        ("api.ask_PUT", made.id),
        ("api.instance_DELETE", made.id),
    ]
    assert rows[0]["created_at"] == START
