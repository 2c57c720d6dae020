"""Optimisers and the average, by what they do to a problem with a known answer."""

from __future__ import annotations

import pytest

from tests.train.conftest import chosen_options


@pytest.mark.parametrize(
    ("name", "rate"), [("adamw", 0.05), ("prodigy", 1.0), ("adafactor", 0.05), ("came", 0.05), ("adamw8bit", 0.05)]
)
def test_every_optimiser_finds_the_way(name: str, rate: float) -> None:
    """From wrong weights and a bias each comes to a least-squares solution."""
    import torch
    from lora.optimisation import make

    draw = torch.Generator().manual_seed(1)
    given, right = torch.randn(64, 6, generator=draw), torch.randn(8, 6, generator=draw)
    wanted = given @ right.T + 1
    weights = [torch.nn.Parameter(torch.randn(8, 6, generator=draw) * 0.1), torch.nn.Parameter(torch.zeros(8))]
    optimizer = make(chosen_options(optimizer=name, lr=rate, weight_decay=0), [{"params": weights, "lr": rate}])
    for _ in range(300):
        loss = (given @ weights[0].T + weights[1] - wanted).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.01


def test_a_missing_package_is_told_before_anything_expensive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without bitsandbytes the 8-bit optimiser is refused, with what else saves memory."""
    from lora.ends import BadInput
    from lora.optimisation import check

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadInput, match="needs the package bitsandbytes"):
        check(chosen_options(optimizer="adamw8bit"))


def test_the_average_follows_and_is_shown_only_for_a_while() -> None:
    """It moves towards the weights, faster at first; within `shown` the weights are the average, afterwards their own."""
    import torch
    from lora.optimisation import Average

    weight = torch.nn.Parameter(torch.zeros(1))
    average = Average([weight], 0.5)
    weight.data.fill_(1.0)
    average.update(1)
    with average.shown():
        assert weight.item() == pytest.approx(1 - 2 / 11)
    assert weight.item() == 1
    average.update(100)
    assert float(average.tensors()["0"]) == pytest.approx(1 - 1 / 11)
    with Average([weight], 0).shown():
        assert weight.item() == 1
