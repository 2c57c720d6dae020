"""A plain LoRA computed without autocast is the same LoRA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.train.conftest import chosen_options, tool

SHAPES = {"sdxl": (2, 4, 8, 8), "flux": (2, 16, 8, 8)}


@dataclass(frozen=True)
class Pass:
    """A loss and what it says of the weights."""

    loss: float
    gradients: object

    def off(self, true: Pass) -> float:
        """How far the gradients are from others, relative to these."""
        mine, other = self.gradients, true.gradients
        return float((mine - other).norm() / other.norm())  # type: ignore[operator, attr-defined]


def one_pass(base: Path, family: str, dtype: str, lean: bool = False, again: bool = False) -> Pass:
    """One pass of a family's net with adapters that are not zero; `again` computes activations a second time."""
    import torch
    from lora import adapters
    from lora import lean as module
    from lora.base import find

    options = chosen_options(family, base=base, targets="locon" if family == "sdxl" else "all", rank=4, alpha=3.0)
    model = tool(family).family()(find(options.base, tool(family).kind), options, torch.device("cpu"), getattr(torch, dtype))
    adapters.attach(model, options)
    draw = torch.Generator().manual_seed(3)
    learning = [parameter for parameter in model.net.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.data = torch.randn(parameter.shape, generator=draw) * 0.05
    if again:
        model.net.enable_gradient_checkpointing()
    if lean:
        module.lean(model)
    model.net.train()
    width = {"sdxl": 64, "flux": 32}[family]
    batch = {"pooled": torch.randn(2, width, generator=draw)}
    batch["hidden"] = torch.randn(2, 20, 96 if family == "sdxl" else 32, generator=draw)
    batch["time_ids"] = torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]] * 2)
    times = torch.tensor([3, 777]) if family == "sdxl" else torch.tensor([0.3, 0.77123])
    latents, noise = (torch.randn(SHAPES[family], generator=draw) for _ in range(2))
    loss = model.errors(batch, latents, noise, times).mean()
    loss.backward()
    assert {parameter.grad.dtype for parameter in learning} == {torch.float32}
    return Pass(loss.item(), torch.cat([parameter.grad.flatten() for parameter in learning]))


@pytest.mark.parametrize("family", ["sdxl", "flux"])
def test_it_learns_what_the_plain_layers_learn(bases: Callable[[str], Path], family: str) -> None:
    """Loss and gradients are those of PEFT's layers in fp32, and in bf16 as near to these as under autocast."""
    base = bases(family)
    true, autocast = one_pass(base, family, "float32"), one_pass(base, family, "bfloat16")
    exact, narrow = one_pass(base, family, "float32", lean=True), one_pass(base, family, "bfloat16", lean=True)
    assert exact.loss == pytest.approx(true.loss, rel=1e-5)
    assert exact.off(true) < 1e-4
    assert abs(narrow.loss - true.loss) < 2 * abs(autocast.loss - true.loss) + 1e-3
    assert narrow.off(true) < 1.2 * autocast.off(true)


def test_gradient_checkpointing_changes_nothing(base: Path) -> None:
    """Activations that are computed a second time give the same gradients bit for bit."""
    once, again = (one_pass(base, "sdxl", "bfloat16", lean=True, again=again) for again in (False, True))
    assert again.loss == once.loss
    assert again.off(once) == 0
