"""What GPUs do otherwise than CPUs, as far as a CPU can show it: bf16, and what the libraries are told."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.train.conftest import SCRIPTS, Train, chosen_options, tool


@pytest.mark.parametrize(("family", "network"), [("sd15", "lora"), ("sdxl", "dora"), ("flux", "lora")])
def test_every_family_trains_in_bf16(family: str, network: str, train: Train) -> None:
    """From encoding to the finished files, samples and validation included; the adapter stays fp32."""
    output = train(
        family, precision="bf16", network=network, steps=3, sample_every=3, sample_count=1, sample_steps=1, val_every=3
    )
    summary = json.loads((output / "final" / "training.json").read_text())
    losses = list(summary["val_loss"].values())
    assert summary["dtype"] == "torch.bfloat16" and losses[1] < losses[0]
    assert (output / "samples" / "step-000003-0.png").exists()


def test_a_dora_begins_with_the_strengths_of_its_weights(base: Path) -> None:
    """PEFT's are rounded to bf16, which would change what the net says before it has learnt anything."""
    import torch
    from lora.adapters import attach, layers
    from lora.base import find

    options = chosen_options(base=base, network="dora", targets="attention")
    trainer = tool("sdxl")
    family = trainer.family()(find(options.base, trainer.kind), options, torch.device("cpu"), torch.bfloat16)
    attach(family, options)
    for layer in layers(family.net).values():
        strength = layer.lora_magnitude_vector["default"].weight
        assert strength.dtype == torch.float32 and torch.equal(strength, layer.get_base_layer().weight.float().norm(dim=1))


def test_a_gpu_is_given_the_share_that_is_planned_for(monkeypatch: pytest.MonkeyPatch, base: Path) -> None:
    """--vram bounds what may be taken, less the half GiB of CUDA's own that no share counts, and plans for no more than is there."""
    import torch
    from lora import prepare
    from lora.base import find

    told: list[float] = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=16 * 2**30))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", told.append)
    settled = prepare.settle(chosen_options(base=base, vram=12), find(str(base), tool("sdxl").kind))
    gpu = torch.device("cuda")
    prepare.tune(replace(settled, device=gpu))
    assert told == [(12 - 0.5) / 16]
    assert [prepare.card_of(chosen_options(vram=vram), gpu) for vram in (0, 12, 80)] == [16, 12, 16]


def test_a_sample_is_decoded_in_tiles_where_there_is_no_room(base: Path) -> None:
    """A VAE tiles by itself only what is larger than its own size, which a sample is not; the tiles make the same size."""
    import torch
    from lora.base import find
    from lora.sampling import tile

    vae = find(str(base), tool("sdxl").kind).load("vae", torch.float32)
    latents = torch.randn(1, vae.config.latent_channels, *[vae.tile_latent_min_size] * 2)
    whole = vae.decode(latents).sample
    tile(vae)
    called = []
    usual = vae._tiled_decode if hasattr(vae, "_tiled_decode") else vae.tiled_decode
    vae._tiled_decode = vae.tiled_decode = lambda *given, **more: (called.append(1), usual(*given, **more))[1]
    assert vae.decode(latents).sample.shape == whole.shape and called


def test_an_image_is_encoded_in_tiles_where_there_is_no_room(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the VAE's own size, once a whole one did not fit; that is told once, and what does not fit in tiles either is an error."""
    import torch
    from lora.base import find
    from lora.cache import distribution

    class Short(tool("sdxl").family()):  # type: ignore[misc]
        @staticmethod
        def encode_pixels(vae: Any, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
            if not vae.use_tiling or pixels.shape[-1] > 512:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return tool("sdxl").family().encode_pixels(vae, pixels)  # type: ignore[no-any-return]

    vae = find(str(base), tool("sdxl").kind).load("vae", torch.float32)
    side = 2 * vae.config.sample_size
    pixels = torch.randn(1, 3, side, side)
    whole = tool("sdxl").family().encode_pixels(vae, pixels)
    tiles = [distribution(Short, vae, pixels) for _ in range(2)]
    assert tiles[0]["mean"].shape == whole["mean"].shape and torch.equal(tiles[0]["mean"], tiles[1]["mean"])
    assert capsys.readouterr().out.count(f"no room to encode an image of {side}×{side} px") == 1
    with pytest.raises(torch.OutOfMemoryError):
        distribution(Short, vae, torch.zeros(1, 3, 520, 520))


def test_memory_that_is_short_is_told_in_the_words_of_every_library() -> None:
    """cuBLAS and NCCL say so in errors of their own; others are no matter of memory."""
    import torch
    from lora.memory import is_short

    short = [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"),
        RuntimeError("Cuda failure 2 'out of memory'"),
    ]
    assert all(map(is_short, short)) and not is_short(RuntimeError("shape mismatch"))


def test_setup_refuses_a_torch_that_cannot_use_the_gpu(tmp_path: Path) -> None:
    """Where GPUs are asked for, a training does not go on, on the processor; without, it does."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase "$2" in *is_available*) exit 1 ;; esac\n')
    python.chmod(0o755)

    def run(gpus: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHON": str(python), "GPUS": gpus, "RT_WORK": str(tmp_path), "RT_TOOL": str(SCRIPTS)}
        script = ["sh", str(SCRIPTS / "lora" / "setup.sh")]
        return subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    refused = run("1")
    assert (
        refused.returncode == 2 and "cannot use this machine's GPU" in refused.stderr and not (tmp_path / "python.path").exists()
    )
    assert run("0").returncode == 0 and (tmp_path / "python.path").exists()


def test_what_a_file_is_read_back_into_is_in_fp32(base: Path) -> None:
    """Even where the encoder learnt in bf16, to which PEFT would round the adapter that it reads: SDXL's second one keeps its precision."""
    import torch
    from lora.base import find
    from lora.export import fresh

    encoder = find(str(base), tool("sdxl").kind).load("text_encoder_2", torch.bfloat16)
    assert {parameter.dtype for parameter in fresh(encoder).parameters()} == {torch.float32}
