"""The client of Vast.ai against the simulated service, over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal

import httpx
import pytest

from remote_trainer.drivers.vastai.api import VastApi
from remote_trainer.drivers.vastai.envelope import Gone, OfferGone
from remote_trainer.drivers.vastai.pace import INTERVALS_S, Pace
from remote_trainer.errors import Ambiguous, Permanent, Transient
from remote_trainer.testing.vast import demo
from remote_trainer.testing.vast.clock import StandingClock
from remote_trainer.testing.vast.server import SimVast

_BODY = {"image": "i", "disk": 20.0, "label": "rt-x", "env": {}, "cancel_unavail": True}


@pytest.fixture
async def service() -> AsyncIterator[tuple[SimVast, VastApi]]:
    """A service whose time stands still, and a client that need not wait its turn."""
    with SimVast([demo.offer(number) for number in range(100, 160)], clock=StandingClock()) as sim:
        api = VastApi(sim.url, sim.key, pace=Pace(dict.fromkeys(INTERVALS_S, 0.0)))
        yield sim, api
        await api.close()


async def test_a_key_that_is_attached_already_is_asked_for_once(service: tuple[SimVast, VastApi]) -> None:
    """The provider says 200 and success:false then: nothing to try again."""
    sim, api = service
    made = await api.create("100", _BODY)
    for _ in range(2):
        await api.attach_key(str(made), "ssh-ed25519 AAAA")
    assert len([path for _, path in sim.requests if path.endswith("/ssh/")]) == 2


async def test_a_request_to_rent_is_sent_once(service: tuple[SimVast, VastApi]) -> None:
    """A lost reply is Ambiguous, a clear refusal says so, and neither is sent again."""
    sim, api = service
    for fault, kind in (
        ("create-dropped", Ambiguous),
        ("create-504", Ambiguous),
        ("create-500", Ambiguous),
        ("create-no-credit", Permanent),
    ):
        sim.faults.arm(fault)
        with pytest.raises(kind):
            await api.create(str(101 + len(sim.live)), _BODY)
    for status in (400, 404, 410):
        sim.faults.arm(f"create-no-ask-{status}")
        with pytest.raises(OfferGone):
            await api.create("150", _BODY)
    assert len([path for _, path in sim.requests if "/asks/" in path]) == 7


async def test_every_page_of_the_list_is_read(service: tuple[SimVast, VastApi]) -> None:
    """60 instances in three pages; the audit log and the charges are read too."""
    sim, api = service
    for number in range(100, 160):
        sim.create(number, _BODY)
    assert len(await api.instances()) == 60
    assert await api.audit_log() == []
    sim.clock.advance(3600)
    sim.tick()
    assert {row["source"] for row in await api.charges(sim.now - 86_400, sim.now)} == {f"instance-{each}" for each in sim.live}


async def test_the_end_of_what_is_gone_is_fine_but_a_bad_key_is_not(service: tuple[SimVast, VastApi]) -> None:
    """Both are 404; the words tell them apart."""
    sim, api = service
    await api.destroy("12345")
    sim.account.key.revoked = True
    with pytest.raises(Permanent, match="VAST_API_KEY"):
        await api.destroy("12345")


async def test_a_request_to_rent_is_not_sent_too_late(service: tuple[SimVast, VastApi]) -> None:
    """Whoever waits for a turn that comes too late has rented nothing, and leaves the turn to the next."""
    sim, _ = service
    api = VastApi(sim.url, sim.key, pace=(pace := Pace({**INTERVALS_S, "create": 0.0})))
    try:
        pace.hold("create", 20.0)
        with pytest.raises(Transient, match="not sent"):
            await api.create("100", _BODY, left_s=lambda: 0.05)
        assert sim.live == {}
        pace._held.clear()
        pace._next.clear()
        assert await api.create("100", _BODY, left_s=lambda: 60.0) in sim.live
        with pytest.raises(Transient, match="not sent"):
            await api.create("101", _BODY, left_s=lambda: -1.0)
        assert len(sim.live) == 1
    finally:
        await api.close()


async def test_a_bid_is_taken_or_refused(service: tuple[SimVast, VastApi]) -> None:
    """The provider refuses with 200 too; an instance that is gone is not there to be bid for."""
    sim, api = service
    spot = await api.create("100", {**_BODY, "price": 0.3})
    await api.bid(str(spot), Decimal("0.5"))
    assert sim.live[spot].bid == 0.5
    demand = await api.create("101", _BODY)
    with pytest.raises(Permanent, match="bid"):
        await api.bid(str(demand), Decimal("0.5"))
    with pytest.raises(Gone):
        await api.bid("12345", Decimal("0.5"))


async def test_one_instance_is_looked_at(service: tuple[SimVast, VastApi]) -> None:
    """One that is not there is None, and a refused key is an error, not None."""
    sim, api = service
    made = await api.create("100", _BODY)
    row = await api.instance(str(made))
    assert row is not None and row["label"] == "rt-x"
    assert await api.instance("12345") is None
    sim.account.key.revoked = True
    with pytest.raises(Permanent, match="VAST_API_KEY"):
        await api.instance("12345")


class Odd(httpx.AsyncBaseTransport):
    """A service that answers everything with these words."""

    def __init__(self, status: int, text: str) -> None:
        self._status, self._text = status, text

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(self._status, text=self._text)


@pytest.mark.parametrize(
    "text", ["[]", "null", "7", "{}", '{"success": true}', '{"new_contract": true}', '{"new_contract": "7"}', "<html>"]
)
async def test_an_odd_answer_to_a_request_to_rent_is_no_refusal(text: str) -> None:
    """Whatever does not clearly say no may have rented: Transient would mean that nothing was sent."""
    api = VastApi("http://sim.invalid", "key", pace=Pace(dict.fromkeys(INTERVALS_S, 0.0)), transport=Odd(200, text))
    with pytest.raises(Ambiguous):
        await api.create("100", _BODY)
    await api.close()


class Endless(httpx.AsyncBaseTransport, httpx.AsyncByteStream):
    """A service whose answers have no end."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=self)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            yield b" " * (1 << 20)


async def test_an_answer_without_end_is_cut_off() -> None:
    """Before it fills the memory; of a request to rent it is in doubt what became."""
    api = VastApi("http://sim.invalid", "key", pace=Pace(dict.fromkeys(INTERVALS_S, 0.0)), transport=Endless())
    with pytest.raises(Ambiguous, match="without end"):
        await api.create("100", _BODY)
    await api.close()
