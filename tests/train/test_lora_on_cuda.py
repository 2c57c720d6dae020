"""What a GPU would refuse, found without one: trainings on a pretended card (card.py), whose tensors meet only their like."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.train.conftest import TINY, Train, chosen_options, tool


@pytest.fixture
def card() -> Iterator[Any]:
    """A GPU that is only pretended, of 80 GiB."""
    from tests.train.card import Card

    with Card() as card:
        yield card


@pytest.fixture
def two(photographs: Path, tmp_path: Path) -> Path:
    """Two photographs, for what one batch shows."""
    folder = tmp_path / "two"
    folder.mkdir()
    for image in sorted(photographs.glob("*.jpg"))[:2]:
        shutil.copy(image, folder)
        shutil.copy(image.with_suffix(".txt"), folder)
    return folder


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("flux", {"quantize": "int8", "ema": 0.9, "sample_count": 1, "sample_steps": 1, "gradient_checkpointing": "on"}),
        ("sd15", {"text_lr": 1e-3, "targets": "attention", "noise_offset": 0.05, "steps": 1}),
    ],
)
def test_a_training_lives_on_the_card(family: str, options: dict[str, object], card: Any, train: Train, two: Path) -> None:
    """From the cache to the finished files, and after a resume, no tensor of the CPU takes part in what the GPU computes."""
    given = {"dataset": two, "cache": two.parent / "cache", "batch_size": 2, "checkpoint_every": 1}
    for steps in range(1, 1 + int(str(options.get("steps", 2)))):
        output = train(family, **{**given, **options, "steps": steps})
    summary = json.loads((output / "final" / "training.json").read_text())
    assert (summary["device"], summary["dtype"], summary["steps"]) == ("cuda", "torch.bfloat16", steps)
    assert 0 < card.used <= card.peak


def test_memory_is_given_back(card: Any, bases: Callable[[str], Path], two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Encoders leave the card; an attempt for which it is too small leaves nothing there, and turns gradient checkpointing on."""
    from lora.base import find
    from lora.cache import Cache, fill
    from lora.data import Order, survey
    from lora.preflight import attempt, check
    from lora.prepare import prepare, settle
    from lora.ranks import Ranks
    from lora.run import Run

    options = chosen_options("flux", **{**TINY, "targets": "all", "dataset": two, "output": two.parent, "base": bases("flux")})
    base, family, photos = find(options.base, tool("flux").kind), tool("flux").family(), survey(options)
    settled = settle(options, base)
    cache = Cache(two.parent / "cache", base, family, settled.options)
    fill(cache, photos, ["", *(photo.caption for photo in photos)], settled.encoding, lambda: None)
    assert (card.used, card.peak > 0) == (0, True)
    model = prepare(settled, family, base)
    run = Run(settled.options, model, cache, Order(photos, 4, 1), photos, Ranks())
    card.peak = 0
    attempt(model, cache, photos, photos)
    before = card.used
    card.total = before + (card.peak - before) * 3 // 4
    check(dataclasses.replace(settled, flexible=True), run)
    assert "gradient checkpointing is on" in capsys.readouterr().out
    assert card.used == before and model.net.is_gradient_checkpointing


def test_pinned_memory_is_counted_as_it_is_taken(card: Any, tmp_path: Path) -> None:
    """What is kept for a GPU to fetch takes a power of two, and no more than there is room for is kept."""
    import torch
    from lora.kept import Kept
    from safetensors.torch import save_file

    save_file({"values": torch.ones(3)}, tmp_path / "entry.safetensors")
    kept = Kept(room=20)
    assert kept.read(tmp_path / "entry.safetensors", torch.device("cuda"))["values"].device.type == "cuda"
    assert kept.room == 4


@pytest.mark.parametrize(
    "refused",
    [
        lambda torch, there: there + torch.ones(2, 2),
        lambda torch, there: there @ torch.ones(2, 2),
        lambda torch, there: torch.stack([there[0, 0], torch.tensor(1.0)]),
        lambda torch, there: torch.ones(2)[there.long()],
        lambda torch, there: torch.tensor(1.0).add_(there[0, 0]),
        lambda torch, there: there.numpy(),
        lambda torch, there: torch.randn(2, device=there.device, generator=torch.Generator()),
        lambda torch, there: torch.nn.functional.linear(there.bfloat16(), there),
        lambda torch, there: torch.nn.functional.layer_norm(there.bfloat16(), (2,), there[0]),
        lambda torch, there: torch.nn.Linear(2, 2)(there),
        lambda torch, there: torch.zeros(2**40, device="cuda"),
    ],
)
def test_the_card_refuses_what_cuda_does(refused: Callable[[Any, Any], object], card: Any) -> None:
    """Tensors of both devices, numbers drawn by the other's generator, unlike precisions, the GPU's memory read, or more than there is."""
    import torch

    with pytest.raises((RuntimeError, TypeError)):
        refused(torch, torch.ones(2, 2).to("cuda"))


def test_the_card_computes_what_the_cpu_does(card: Any) -> None:
    """Values, gradients and places go there and back; a number of the CPU may take part, and autocast widens what CUDA's does."""
    import torch

    weight = torch.ones(2, 2).to("cuda").requires_grad_()
    ((weight * torch.tensor(3.0)).cpu() ** 2).sum().backward()
    assert weight.grad.device.type == "cuda" and weight.grad.tolist() == [[18.0, 18.0], [18.0, 18.0]]
    with torch.autocast("cuda", torch.bfloat16):
        product = weight @ weight
        assert product.dtype == torch.bfloat16 and torch.nn.functional.layer_norm(product, (2,)).dtype == torch.float32
