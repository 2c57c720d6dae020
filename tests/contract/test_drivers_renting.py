"""Drivers that rent keep to the contract: Vast.ai's, with the simulated service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from remote_trainer.drivers.vastai import pace
from remote_trainer.drivers.vastai.driver import VastDriver
from remote_trainer.model import Resources
from remote_trainer.ports import Driver, DriverSettings
from remote_trainer.testing.driver_contract import RentingDriverContract
from remote_trainer.testing.vast import demo
from remote_trainer.testing.vast.clock import StandingClock
from remote_trainer.testing.vast.server import SimVast


class TestVastai(RentingDriverContract):
    """A market of six, in a world whose time stands still."""

    @pytest.fixture
    async def renter(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Driver]:
        for kind in pace.INTERVALS_S:
            monkeypatch.setitem(pace.INTERVALS_S, kind, 0.0)  # type: ignore[misc]
        clock = StandingClock(datetime.now(UTC).timestamp())
        with SimVast([demo.offer(number) for number in range(100, 106)], clock=clock) as sim:
            driver = VastDriver({"url": sim.url}, DriverSettings(state_dir=tmp_path, find_secret=lambda name: sim.key))
            yield driver
            await driver.close()

    @pytest.fixture
    def wanted(self) -> Resources:
        return Resources(gpus=1, vram_gb=20, disk_gb=20)
