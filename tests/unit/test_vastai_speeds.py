"""How fast a training is expected to run on each kind of GPU."""

from __future__ import annotations

import pytest

from remote_trainer.drivers.vastai.speeds import CLASSES, GPUS, kinds_of, speed
from remote_trainer.testing.vast.demo import GPUS as SIMULATED

NONE: dict[str, float] = {}


def test_speed_one_is_an_rtx_3090() -> None:
    """Everything else is told in it."""
    assert speed("RTX 3090", 1, 0, overrides=NONE) == 1.0


def test_the_order_is_the_one_that_everybody_knows() -> None:
    """Generations and classes come out as they do in practice."""
    order = ["Tesla T4", "RTX 3080", "RTX 3090", "RTX 4090", "L40S", "A100 SXM4", "H100 PCIE", "H100 SXM", "H200", "B200"]
    speeds = [speed(name, 1, 0, overrides=NONE) for name in order]
    assert speeds == sorted(speeds)
    assert 1.4 < speed("RTX 4090", 1, 0, overrides=NONE) < 2.2
    assert 2.0 < speed("A100 SXM4", 1, 0, overrides=NONE) < 3.5


def test_every_kind_of_the_simulated_market_is_known() -> None:
    """Examples and tests are judged by the table, not by claims."""
    assert set(SIMULATED) <= set(GPUS)


def test_further_gpus_add_a_little_less_than_the_first() -> None:
    """Two are faster than one, not twice as fast."""
    assert speed("RTX 3090", 2, 0, overrides=NONE) == 1.9


@pytest.mark.parametrize(("claim", "expected"), [(0, 0.5), (45, 1.0), (36, 0.8), (1, 0.1), (10_000, 2.0)])
def test_a_kind_that_is_not_known_is_judged_by_its_claim(claim: float, expected: float) -> None:
    """Within bounds: the machine's own word is not worth more."""
    assert speed("Riva 128", 1, claim, overrides=NONE) == expected


def test_the_claim_is_that_of_all_gpus() -> None:
    """As the provider tells it."""
    assert speed("Riva 128", 2, 90, overrides=NONE) == 1.9


@pytest.mark.parametrize("named", [{"H100 SXM": 7.0}, {"h100_sxm": 7.0}, {"hopper": 7.0}, {"hopper": 3.0, "H100 SXM": 7.0}])
def test_a_profile_knows_better(named: dict[str, float]) -> None:
    """By kind or class, however it is written; the kind goes before the class."""
    assert speed("H100 SXM", 1, 0, overrides=named) == 7.0


def test_wishes_are_kinds_classes_or_the_providers_own_words() -> None:
    """What is not known is handed on as it is written."""
    assert kinds_of(["H100", "rtx_4090"]) == {"H100 PCIE", "H100 NVL", "H100 SXM", "RTX 4090"}
    assert kinds_of(["RTX 9999", "Some_GPU"]) == {"RTX 9999", "Some GPU"}
    assert kinds_of(["RTX 3090"]) == {"RTX 3090"}, "no class, and not the 3090 Ti"
    assert "L40S" in kinds_of(["datacenter"])
    assert {"ampere", "ada", "hopper", "blackwell", "datacenter", "a100", "h100"} <= CLASSES
