"""Giving back many machines at once: jobs that end together wait for one turn of the provider's, not for one each."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from remote_trainer.drivers.vastai import pace
from remote_trainer.drivers.vastai.driver import VastDriver
from remote_trainer.errors import Permanent, Transient
from remote_trainer.model import Instance, Offer
from remote_trainer.ports import DriverSettings, Spec
from remote_trainer.testing.vast import demo
from remote_trainer.testing.vast.clock import StandingClock
from remote_trainer.testing.vast.server import SimVast
from tests.support.patience import PATIENCE_S


@pytest.fixture
def sim(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimVast]:
    """A service whose time stands still; only for an end one must wait a turn."""
    for kind in pace.INTERVALS_S:
        monkeypatch.setitem(pace.INTERVALS_S, kind, 0.2 if kind == "destroy" else 0.0)
    with SimVast([demo.offer(number) for number in range(100, 110)], clock=StandingClock(datetime.now(UTC).timestamp())) as sim:
        yield sim


@pytest.fixture
async def driver(sim: SimVast, tmp_path: Path) -> AsyncIterator[VastDriver]:
    driver = VastDriver({"url": sim.url}, DriverSettings(state_dir=tmp_path, find_secret=lambda name: sim.key))
    yield driver
    await driver.close()


async def rented(driver: VastDriver, count: int) -> list[Instance]:
    offers = (Offer(id=str(100 + number), driver="vastai") for number in range(count))
    return [await driver.create(offer, Spec(image="i"), f"rt-dep-j{offer.id}-a1") for offer in offers]


def ends(sim: SimVast) -> list[str]:
    """The requests to destroy, by path."""
    return [path for method, path in sim.requests if method == "DELETE" and "/instances/" in path]


def ended(sim: SimVast) -> set[str]:
    return {str(entry.instance) for entry in sim.record.entries("ended")}


async def test_those_that_wait_together_share_a_request(sim: SimVast, driver: VastDriver) -> None:
    """Ten ends are two requests: the first goes out at once, and one for all that came meanwhile."""
    machines = await rented(driver, 10)
    await driver.destroy(machines[0])
    await asyncio.gather(*(driver.destroy(one) for one in machines[1:]))
    assert ends(sim) == [f"/api/v0/instances/{machines[0].id}/", "/api/v0/instances/"]
    assert ended(sim) == {one.id for one in machines}


async def test_what_is_asked_again_is_asked_by_itself(sim: SimVast, driver: VastDriver) -> None:
    """Should the provider have overheard one of many, the next request is for it alone; what is not listed any more is forgotten."""
    machines = await rented(driver, 3)
    await asyncio.gather(*(driver.destroy(one) for one in machines))
    assert ends(sim) == ["/api/v0/instances/"]
    await driver.destroy(machines[1])
    assert ends(sim)[1:] == [f"/api/v0/instances/{machines[1].id}/"]
    sim.clock.advance(60)  # type: ignore[attr-defined]
    sim.tick()
    assert await driver.instances("rt-") == []
    assert not driver._ends._shared


async def test_one_that_is_gone_keeps_no_other(sim: SimVast, driver: VastDriver) -> None:
    """A request for several that the provider refuses is made for each; a key that may not destroy is told to all."""
    machines = await rented(driver, 3)
    await driver.destroy(machines[0])
    sim.clock.advance(60)  # type: ignore[attr-defined]
    sim.tick()
    await asyncio.gather(*(driver.destroy(one) for one in machines))
    assert ended(sim) == {one.id for one in machines}
    sim.account.key.revoked = True
    outcomes = await asyncio.gather(*(driver.destroy(one) for one in machines[1:]), return_exceptions=True)
    assert all(isinstance(each, Permanent) for each in outcomes)


async def test_who_gives_up_takes_it_from_nobody(sim: SimVast, driver: VastDriver) -> None:
    """A job that ends its wait leaves the others', and its own end asked for."""
    machines = await rented(driver, 3)
    waiting = [asyncio.create_task(driver.destroy(one)) for one in machines]
    await asyncio.sleep(0)
    waiting[0].cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting[0]
    await asyncio.gather(*waiting[1:])
    assert ended(sim) == {one.id for one in machines}


async def test_a_limit_that_lasts_is_told_to_all_who_wait(sim: SimVast, driver: VastDriver) -> None:
    """Nobody waits ten minutes for a turn: who wants an end is told when to ask again."""
    machines = await rented(driver, 3)
    pace.shared(sim.url, sim.key).hold("destroy", 600.0)
    told = await asyncio.wait_for(asyncio.gather(*(driver.destroy(one) for one in machines), return_exceptions=True), PATIENCE_S)
    assert all(isinstance(each, Transient) and each.retry_after_s for each in told)
    assert ends(sim) == []
