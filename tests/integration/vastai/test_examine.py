"""What the driver finds out about an account before anything is rented."""

from __future__ import annotations

from decimal import Decimal

import httpx
import pytest

from remote_trainer.drivers.vastai import pace
from remote_trainer.drivers.vastai.access import Access
from remote_trainer.drivers.vastai.api import VastApi
from remote_trainer.drivers.vastai.driver import VastDriver
from remote_trainer.drivers.vastai.examine import examine
from remote_trainer.ports import DriverSettings
from remote_trainer.testing.vast.server import SimVast


async def test_everything_is_examined_and_nothing_changed(sim: SimVast, driver: VastDriver) -> None:
    """One answer for each permission, the credit and the key of ours."""
    found = {each.question: each.ok for each in await driver.examine()}
    assert found == dict.fromkeys(
        ("key", "credit", "instance_read", "schedule", "instance_write", "misc", "billing_read", "ssh key"), True
    )
    assert sim.live == {} and sim.schedule.jobs == {}


class Answers(httpx.AsyncBaseTransport):
    """A service that answers a request to take something back so, and all others with what they need."""

    def __init__(self, status: int, body: str) -> None:
        self._status, self._body = status, body

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.method == "DELETE":
            return httpx.Response(self._status, text=self._body)
        listed = "instances" if "/instances/" in request.url.path else "results"
        return httpx.Response(200, json={"credit": 5, listed: [], "next_token": None})


@pytest.mark.parametrize(
    ("status", "body", "ok"),
    [
        (200, "{}", True),
        (404, '{"error": "not_found"}', True),
        (400, '{"error": "invalid_args"}', True),
        (401, '{"msg": "lacks the instance_write permission group"}', False),
        (429, '{"retry_after": 600}', None),
    ],
)
async def test_a_key_may_write_if_it_is_not_the_key_that_is_refused(
    sim: SimVast, settings: DriverSettings, status: int, body: str, ok: bool | None
) -> None:
    """What is taken back to find out is not there, and a service may say so in many ways."""
    api = VastApi("http://sim.invalid", "key", pace=pace.Pace(), transport=Answers(status, body))
    access = Access(lambda: api, settings, "root")
    found = {each.question: each.ok async for each in examine(api, access)}
    await api.close()
    assert found["instance_write"] is ok
    assert all(answer for question, answer in found.items() if question != "instance_write")


async def test_what_is_missing_is_named(sim: SimVast, driver: VastDriver) -> None:
    """A permission that is only good to have is no fault; a key that is refused ends the questions."""
    sim.account.key.permissions = {group: {} for group in ("user_read", "instance_read")}
    sim.account.credit = Decimal(0)
    found = {each.question: each.ok for each in await driver.examine()}
    assert found["billing_read"] is None
    assert {question for question, ok in found.items() if ok is False} == {"credit", "instance_write", "misc"}
    sim.account.key.revoked = True
    (only,) = await driver.examine()
    assert (only.question, only.ok) == ("key", False) and "VAST_API_KEY" in only.answer
