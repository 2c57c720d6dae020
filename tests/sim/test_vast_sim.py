"""Whole lives of jobs at the simulated Vast.ai: the real worker and its real driver, in virtual time, one seed a life.

Many more are lived by `make sim PROFILE=vastai`; here is a sample of each profile.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

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
