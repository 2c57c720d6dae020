"""Drivers that can say what they passed over keep to the contract: Vast.ai's, with the simulated service."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from remote_trainer.drivers.vastai import pace
from remote_trainer.drivers.vastai.driver import VastDriver
from remote_trainer.model import Resources
from remote_trainer.ports import Driver, DriverSettings, Surveyor
from remote_trainer.testing.driver_contract import SurveyorContract
from remote_trainer.testing.vast import demo
from remote_trainer.testing.vast.clock import StandingClock
from remote_trainer.testing.vast.server import SimVast

MARKET = [
    *(demo.offer(number) for number in (100, 101)),
    *(demo.offer(number, reliability=0.9) for number in (102, 103)),
    demo.offer(104, gpu_name="RTX 3090", geolocation="Sweden, SE"),
    demo.offer(105, num_gpus=2),
    demo.offer(106, verification="unverified"),
]


class TestVastai(SurveyorContract):
    """Two of seven offers can serve, and one is not even looked at."""

    @pytest.fixture
    async def surveyor(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Driver]:
        for kind in pace.INTERVALS_S:
            monkeypatch.setitem(pace.INTERVALS_S, kind, 0.0)  # type: ignore[misc]
        with SimVast(MARKET, clock=StandingClock()) as sim:
            settings = DriverSettings(state_dir=tmp_path, find_secret=lambda name: sim.key)
            driver = VastDriver({"url": sim.url, "regions": ["US", "CA", "BG"]}, settings)
            yield driver
            await driver.close()

    @pytest.fixture
    def wanted(self) -> Resources:
        return Resources(gpus=1, vram_gb=20, disk_gb=20)

    async def test_refusals_are_named_after_what_would_have_to_be_loosened(self, surveyor: Driver, wanted: Resources) -> None:
        """Options by their names; machines with another number of GPUs are no part of the market."""
        assert isinstance(surveyor, Surveyor)
        counted = Counter(each.condition for each in (await surveyor.survey(wanted)).refused)
        assert counted == {"min_reliability": 2, "regions": 1, "verified": 1}
