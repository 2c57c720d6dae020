"""Whole lives of jobs under everything that can go wrong: the real worker in a simulated world, one seed a life.

What is promised is checked in `remote_trainer/testing/sim/promises.py` whenever something happens. Many more lives are lived by `make sim`;
here it is shown that each check bites, and that a life can be lived again.
"""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from remote_trainer.model import Phase, Reason
from remote_trainer.testing.sim.faults import KINDS, PROFILES, profile_of
from remote_trainer.testing.sim.life import Lived, live
from remote_trainer.testing.sim.many import Report
from tests.sim.planted import PLANTED, Patch, end_before_the_instance_is_gone

#: So many lives may pass without a planted bug being seen.
_PATIENCE = 250


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    """Lives tell nobody what goes wrong in them: rendering it would take most of the time."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def lived(seed: int, profile: str | None = None) -> Lived:
    """Live one seed; one that breaks a promise is told."""
    chosen = PROFILES[profile] if profile else profile_of(seed)
    life = live(seed, chosen)
    if life.broken:
        pytest.fail("\n".join(live(seed, chosen, tell=True).trace))
    return life


def test_without_faults_every_job_ends_in_its_first_attempt() -> None:
    """A calm world: done, unless the job's own limits say otherwise."""
    for seed in range(8):
        for job in lived(seed, "calm").jobs:
            assert len(job.attempts) == 1
            assert job.phase is Phase.DONE or job.reason in (Reason.STEP_TIMEOUT, Reason.TIME_LIMIT)


def test_every_profile_keeps_every_promise() -> None:
    """Twenty lives, of all profiles: nothing doubled, lost, left or stuck."""
    report = Report()
    for seed in range(20):
        report.add(lived(seed))
    assert set(report.lives) == {profile.name for profile in PROFILES.values() if profile.share}
    assert report.jobs["done"] and report.jobs["failed"]
    assert set(report.dealt) <= set(KINDS)


def test_a_life_can_be_lived_again() -> None:
    """One seed is one life, event by event."""
    assert live(7, tell=True).trace == live(7, tell=True).trace


def test_a_life_is_the_same_in_every_process() -> None:
    """Nothing in a life hangs on the order of a set, the process or what was lived before."""
    command = [sys.executable, "-m", "remote_trainer.testing.sim", "--seed", "8"]
    told = [
        subprocess.run(command, env={"PYTHONHASHSEED": str(number)}, capture_output=True, check=True, text=True).stdout
        for number in (1, 2)
    ]
    assert told[0].splitlines() == told[1].splitlines()
    assert len(told[0].splitlines()) > 20


def test_a_broken_life_ends_with_what_was_broken(monkeypatch: Patch) -> None:
    """The story of a life that breaks a promise ends with it, so that it can be read backwards."""
    end_before_the_instance_is_gone(monkeypatch)
    life = live(0, PROFILES["bare"], tell=True)
    assert life.broken and any(life.broken in line for line in life.trace[-3:])


@pytest.mark.fault("planted-bug")
@pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: bug.__name__)
def test_a_planted_bug_is_caught(bug: Callable[[Patch], None], monkeypatch: Patch) -> None:
    """Each safeguard that is taken away breaks its promise within a few seeds."""
    shows = PLANTED[bug]
    bug(monkeypatch)
    seeds = (shows.first, *range(_PATIENCE))
    assert any(re.search(shows.promise, live(seed, shows.profile).broken) for seed in seeds)
