"""The driver of Vast.ai at a simulated service whose time stands still."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from remote_trainer.drivers.vastai import pace
from remote_trainer.drivers.vastai.driver import VastDriver
from remote_trainer.ports import DriverSettings
from remote_trainer.testing.vast import demo
from remote_trainer.testing.vast.clock import StandingClock
from remote_trainer.testing.vast.server import SimVast


@pytest.fixture
def sim(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SimVast]:
    """A service whose time stands still; nobody need wait a turn."""
    for kind in pace.INTERVALS_S:
        monkeypatch.setitem(pace.INTERVALS_S, kind, 0.0)  # type: ignore[misc]
    with SimVast([demo.offer(number) for number in range(100, 110)], clock=StandingClock(datetime.now(UTC).timestamp())) as sim:
        yield sim


@pytest.fixture
def settings(sim: SimVast, tmp_path: Path) -> DriverSettings:
    return DriverSettings(state_dir=tmp_path, find_secret=lambda name: sim.key)


@pytest.fixture
async def driver(sim: SimVast, settings: DriverSettings) -> AsyncIterator[VastDriver]:
    driver = VastDriver({"url": sim.url}, settings)
    yield driver
    await driver.close()
