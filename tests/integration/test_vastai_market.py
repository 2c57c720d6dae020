"""How the driver of Vast.ai looks at the market: seldom, and not only at what is cheap."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from remote_trainer.drivers.vastai import pace
from remote_trainer.drivers.vastai.driver import VastDriver
from remote_trainer.errors import Permanent, Transient
from remote_trainer.model import Resources
from remote_trainer.ports import DriverSettings, Spec
from remote_trainer.testing.vast import demo
from remote_trainer.testing.vast.clock import StandingClock
from remote_trainer.testing.vast.server import SimVast
from tests.support.patience import PATIENCE_S

WANTED = Resources(gpus=1, disk_gb=20)
FAST = 900


@pytest.fixture
async def crowded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[SimVast, VastDriver]]:
    """A market with more small machines than are shown at a time, all of them good value, and one that is fast and dear."""
    for kind in pace.INTERVALS_S:
        monkeypatch.setitem(pace.INTERVALS_S, kind, 0.0)  # type: ignore[misc]
    offers = [demo.offer(number, gpu_name="RTX 3090", dph_base=0.15) for number in range(100, 180)]
    with SimVast([*offers, demo.offer(FAST, gpu_name="H100 SXM", dph_base=3.0)], clock=StandingClock()) as sim:
        driver = VastDriver({"url": sim.url}, DriverSettings(state_dir=tmp_path, find_secret=lambda name: sim.key))
        yield sim, driver
        await driver.close()


def searches(sim: SimVast) -> int:
    return sum(1 for _, path in sim.requests if path.endswith("/bundles/"))


async def test_the_fastest_are_seen_where_many_cheap_ones_crowd_the_page(crowded: tuple[SimVast, VastDriver]) -> None:
    """A second search asks for them, and none is offered twice."""
    sim, driver = crowded
    offers = await driver.offers(WANTED)
    assert str(FAST) in {each.id for each in offers}
    assert len({each.id for each in offers}) == len(offers)
    assert searches(sim) == 2


async def test_one_search_does_where_a_page_shows_everything(crowded: tuple[SimVast, VastDriver]) -> None:
    """Nothing can be hidden then."""
    sim, driver = crowded
    assert len(await driver.offers(Resources(gpus=1, vram_gb=80))) == 1
    assert searches(sim) == 1


async def test_jobs_that_come_together_look_once(crowded: tuple[SimVast, VastDriver]) -> None:
    """Each kind of need, and spot machines, have a look of their own."""
    sim, driver = crowded
    every = await asyncio.gather(*(driver.offers(WANTED) for _ in range(20)))
    assert all(each == every[0] for each in every)
    assert searches(sim) == 2
    await driver.offers(WANTED, spot=True)
    assert searches(sim) == 4


async def test_what_was_asked_for_is_not_shown_again(crowded: tuple[SimVast, VastDriver]) -> None:
    """Ours or somebody else's: nobody need ask for it a second time."""
    sim, driver = crowded
    ours, lost, *_ = await driver.offers(WANTED)
    await driver.create(ours, Spec(image="i"), "rt-a")
    sim.faults.arm("create-no-ask-410")
    with pytest.raises(Permanent):
        await driver.create(lost, Spec(image="i"), "rt-b")
    assert not {ours.id, lost.id} & {each.id for each in await driver.offers(WANTED)}


async def test_a_look_whose_offers_are_all_asked_for_is_followed_by_another(crowded: tuple[SimVast, VastDriver]) -> None:
    """Many jobs that come together use up a page: the market may have more."""
    _, driver = crowded
    for number, offer in enumerate(await driver.offers(WANTED)):
        await driver.create(offer, Spec(image="i"), f"rt-{number}")
    assert await driver.offers(WANTED)


async def test_a_spent_quota_is_told_and_not_asked_about_again(crowded: tuple[SimVast, VastDriver]) -> None:
    """Until it is renewed at midnight no search is sent, and nobody waits for one; everything else goes on."""
    sim, driver = crowded
    sim.faults.arm("search-quota")
    for _ in range(2):
        with pytest.raises(Transient) as told:
            await asyncio.wait_for(driver.offers(WANTED), PATIENCE_S)
        assert (told.value.retry_after_s or 0) > 30
    assert searches(sim) == 1
    assert await driver.instances("") == []
