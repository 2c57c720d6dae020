"""Our meter against the simulated provider's bill, over whole lives in virtual time."""

from __future__ import annotations

from typing import Any

import pytest

from remote_trainer.policy import cost_of
from remote_trainer.testing.sim import life
from remote_trainer.testing.sim.faults import PROFILES
from remote_trainer.testing.sim.vastworld import VastWorld


@pytest.mark.parametrize("seed", range(4))
def test_the_meter_is_never_below_the_bill(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an attempt did, the provider has billed no more for it than we count."""
    worlds: list[VastWorld] = []

    class Kept(VastWorld):
        def __init__(self, *given: Any, **options: Any) -> None:
            super().__init__(*given, **options)
            worlds.append(self)

    monkeypatch.setattr(life, "VastWorld", Kept)
    lived = life.live(seed, PROFILES["vastai-calm"])
    assert not lived.broken
    [world] = worlds
    metered = [attempt for job in lived.jobs for attempt in job.attempts if attempt.requested_at is not None]
    assert metered
    for attempt in metered:
        assert attempt.ended_at is not None
        assert 0 < world.service.cost(attempt.label) <= cost_of(attempt, attempt.ended_at).exact, attempt.label
