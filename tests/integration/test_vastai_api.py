"""The client of Vast.ai against the simulated service, over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from remote_trainer.drivers.vastai.api import VastApi
from remote_trainer.drivers.vastai.envelope import OfferGone
from remote_trainer.drivers.vastai.pace import INTERVALS_S, Pace
from remote_trainer.errors import Ambiguous, Permanent
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
    assert len(await api.charges(0, sim.now)) == 60


async def test_the_end_of_what_is_gone_is_fine_but_a_bad_key_is_not(service: tuple[SimVast, VastApi]) -> None:
    """Both are 404; the words tell them apart."""
    sim, api = service
    await api.destroy("12345")
    sim.account.key.revoked = True
    with pytest.raises(Permanent, match="VAST_API_KEY"):
        await api.destroy("12345")


async def test_the_provider_ends_a_machine_by_itself(service: tuple[SimVast, VastApi]) -> None:
    """At the first full hour after the time it was told last, and not before, though nobody asks for anything any more."""
    sim, api = service
    made = await api.create("100", _BODY)
    now = sim.clock.now()
    for hours in (1.5, 3.5):
        await api.schedule_destroy(str(made), now + hours * 3600)
    sim.clock.advance(3.4 * 3600)
    assert [row["id"] for row in await api.instances()] == [made]
    sim.clock.advance(1.2 * 3600)
    assert await api.instances() == []
