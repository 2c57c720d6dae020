"""The frozen net in few bits, compiled blocks, and the attempt that measures memory."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.train.conftest import TINY, Train, chosen_options, tool


def bound(kind: str, weight: Any) -> Any:
    """The largest error of each weight that its number of bits allows."""
    import torch

    largest = weight.abs().amax(1, keepdim=True)
    if kind == "int8":  # half a step of 127, and of a scale with 8 bits
        return (largest / 127 * 0.51).expand_as(weight)
    if kind == "fp8":  # three bits behind the first, and the finest step near zero
        return torch.maximum(weight.abs() * 2**-4, largest / 448 * 2**-10) * 1.01
    # half of the widest gap between nf4's levels, of a block of 64, whose scale has 8 bits
    blocks = weight.reshape(-1, 64).abs().amax(1, keepdim=True)
    return (0.152 * blocks + 0.02 * blocks.max()).expand(-1, 64).reshape(weight.shape)


@pytest.mark.parametrize("kind", ["int8", "fp8", "nf4"])
def test_a_layer_in_few_bits_is_as_exact_as_they_allow(kind: str) -> None:
    """Its output differs by no more than its weights may, and gradients are those of the weights that it computes with."""
    import torch
    from lora.quantize import quantized

    torch.manual_seed(1)
    layer = torch.nn.Linear(128, 48).requires_grad_(False)
    layer.weight[3] = 0
    small = quantized(layer, kind, torch.device("cpu"))
    dense = (small(torch.eye(128)) - layer.bias).T
    assert ((dense - layer.weight).abs() <= bound(kind, layer.weight) + 1e-6).all()
    given = torch.randn(2, 5, 128, requires_grad=True)
    made, wanted = small(given), torch.randn(2, 5, 48)
    allowed = given.detach().abs() @ bound(kind, layer.weight).T
    assert ((made - layer(given)).abs() <= allowed + 1e-5).all()
    made.backward(wanted)
    assert torch.allclose(given.grad, wanted @ dense, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert small(given).dtype == torch.bfloat16
    held = sum(buffer.numel() * buffer.element_size() for buffer in small.buffers()) - (1024 if kind == "nf4" else 0)
    assert held <= layer.weight.numel() * (0.54 if kind == "nf4" else 1.05)


def test_only_frozen_layers_of_blocks_are_replaced(bases: Callable[[str], Path]) -> None:
    """Adapters, modulation at the end and embeddings stay; every other linear layer of FLUX's blocks is in few bits."""
    import torch

    model = prepared("flux", bases, quantize="int8", targets="attention")
    whole = [name for name, module in model.net.named_modules() if type(module) is torch.nn.Linear]
    assert any(name.endswith("lora_A.default") for name in whole) and "proj_out" in whole
    assert all(".lora_" in name for name in whole if "transformer_blocks." in name)
    rows = [module for module in model.net.modules() if type(module).__name__ == "Rows"]
    assert len(rows) == 2 * 14 + 2 * 6 and all(module.codes.dtype == torch.int8 for module in rows)


def test_nf4_without_its_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told what else there is."""
    from lora.ends import BadInput
    from lora.quantize import check

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadInput, match="needs the package bitsandbytes; install it, or use int8 or fp8"):
        check("nf4")


@pytest.mark.parametrize(
    ("family", "kind", "more"),
    [
        ("sdxl", "int8", {"targets": "attention", "lr": 1e-2}),
        ("flux", "fp8", {"network": "loha", "lr": 0.2}),
        ("flux", "nf4", {}),
    ],
)
def test_a_net_in_few_bits_is_trained_on(family: str, kind: str, more: dict[str, object], train: Train) -> None:
    """The loss falls, a sample is made, and both files read back as what was trained."""
    output = train(family, steps=6, quantize=kind, sample_count=1, sample_steps=2, gradient_checkpointing="on", **more)
    summary = json.loads((output / "final" / "training.json").read_text())
    first, last = summary["val_loss"].values()
    assert last < first and summary["options"]["quantize"] == kind
    assert (output / "samples" / "step-000006-0.png").exists() and len(summary["files"]) == 2


def prepared(family: str, bases: Callable[[str], Path], **options: object) -> Any:
    """A tiny base made ready to learn, with adapters that already do something."""
    import torch
    from lora.base import find
    from lora.prepare import prepare, settle

    base = find(str(bases(family)), tool(family).kind)
    model = prepare(settle(chosen_options(family, **{**TINY, "targets": "all", **options}), base), tool(family).family(), base)
    draw = torch.Generator().manual_seed(1)
    for parameter in (p for p in model.net.parameters() if p.requires_grad):
        parameter.data = torch.randn(parameter.shape, generator=draw) * 0.05
    return model


@pytest.mark.filterwarnings("ignore")  # dynamo does inside itself what torch warns of
def test_compiled_blocks_compute_the_same(bases: Callable[[str], Path]) -> None:
    """Loss and gradients are the uncompiled ones', without a break in the graph, in few bits and with checkpointing."""
    import torch
    from lora.prepare import compile_blocks
    from torch._dynamo.utils import counters

    options = {"quantize": "int8", "gradient_checkpointing": "on", "targets": "attention"}
    plain, compiled = (prepared("sdxl", bases, **options) for _ in range(2))
    compile_blocks(compiled.net, "aot_eager")
    counters.clear()
    draw = torch.Generator().manual_seed(2)
    latents, noise = torch.randn(2, 2, 4, 8, 8, generator=draw)
    sizes = {"hidden": (2, 16, 96), "pooled": (2, 64), "time_ids": (2, 6)}
    batch = {name: torch.randn(size, generator=draw) for name, size in sizes.items()}
    results = []
    for model in (plain, compiled):
        loss = model.errors(batch, latents, noise, torch.tensor([300, 700])).mean()
        loss.backward()
        results.append((loss.detach(), [p.grad for p in model.net.parameters() if p.requires_grad]))
    (loss, gradients), (same, others) = results
    assert torch.allclose(loss, same, rtol=1e-5)
    assert all(torch.allclose(one, other, rtol=1e-3, atol=1e-6) for one, other in zip(gradients, others, strict=True))
    assert not counters["graph_break"] and set(plain.net.state_dict()) == set(compiled.net.state_dict())


def test_an_attempt_leaves_nothing_behind(bases: Callable[[str], Path], photographs: Path, cache: Path) -> None:
    """The largest batch goes forward and backward; no gradient and no drawn number remains."""
    import torch
    from lora.base import find
    from lora.cache import Cache, fill
    from lora.data import survey
    from lora.preflight import attempt, largest

    model = prepared("flux", bases)
    options = chosen_options("flux", **{**TINY, "targets": "all", "dataset": photographs, "base": bases("flux")})
    photos = survey(options)
    wide = [dataclasses.replace(photo, bucket=(96, 64)) for photo in photos[:2]]
    assert largest([*photos, *wide], 4) == [photo for photo in photos if photo.bucket == photos[0].bucket][:4]
    assert largest([*photos, *wide], 2) == wide
    store = Cache(cache, find(options.base, tool("flux").kind), tool("flux").family(), options)
    fill(store, photos, ["", *(photo.caption for photo in photos)], model.device, lambda: None)
    drawn, weights = torch.get_rng_state(), [p.detach().clone() for p in model.net.parameters()]
    attempt(model, store, photos, photos)
    assert torch.equal(torch.get_rng_state(), drawn) and all(p.grad is None for p in model.net.parameters())
    assert all(torch.equal(one, other) for one, other in zip(weights, model.net.parameters(), strict=True))
