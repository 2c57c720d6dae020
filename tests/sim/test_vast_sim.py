"""Whole lives of jobs at the simulated Vast.ai: the real worker and its real driver, in virtual time, one seed a life.

Many more are lived by `make sim PROFILE=vastai`; here is a sample of each profile.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from remote_trainer.drivers.vastai.api import VastApi
from remote_trainer.errors import Ambiguous
from remote_trainer.model import Phase, Reason
from remote_trainer.testing.sim.faults import PROFILES
from remote_trainer.testing.sim.life import Lived, live


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def lived(seed: int, profile: str) -> Lived:
    """Live one seed; one that breaks a promise is told."""
    life = live(seed, PROFILES[profile])
    if life.broken:
        pytest.fail("\n".join(live(seed, PROFILES[profile], tell=True).trace))
    return life


def test_without_faults_every_job_ends_in_its_first_attempt() -> None:
    """A calm market: done, unless the job's own limits say otherwise."""
    for seed in range(4):
        for job in lived(seed, "vastai-calm").jobs:
            assert len(job.attempts) == 1
            assert job.phase is Phase.DONE or job.reason in (Reason.STEP_TIMEOUT, Reason.TIME_LIMIT, Reason.COST_LIMIT)


@pytest.mark.parametrize("profile", ["vastai", "vastai-nets"])
def test_whatever_goes_wrong_at_the_provider_nothing_is_left_or_doubled(profile: str) -> None:
    """A dozen lives: at the end no instance of ours, strangers' untouched, no job over its cap, every job ended."""
    assert sum(len(lived(seed, profile).jobs) for seed in range(12)) >= 12


def _send_a_request_to_rent_again(patch: pytest.MonkeyPatch) -> None:
    create = VastApi.create

    async def twice(self: VastApi, *given: Any, **more: Any) -> int:
        try:
            return await create(self, *given, **more)
        except Ambiguous:
            return await create(self, "1020", *given[1:], **more)

    patch.setattr(VastApi, "create", twice)


@pytest.mark.fault("planted-bug")
def test_a_request_to_rent_that_is_sent_again_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The safeguard taken away, two machines of one attempt are seen within some seeds; the first one tried is known to show it."""
    _send_a_request_to_rent_again(monkeypatch)
    assert any("rented twice" in live(seed, PROFILES["vastai"]).broken for seed in (38, *range(250)))
