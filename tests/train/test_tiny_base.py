"""The tiny base model that demos and tests train on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.train.conftest import SCRIPTS


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_script_gives_the_same_small_model_each_time(base: Path, tmp_path: Path) -> None:
    """Another process writes the same bytes, at most 15 MB of them, and leaves a model that is there alone."""
    command = [sys.executable, str(SCRIPTS / "make_tiny_sdxl.py"), str(tmp_path / "again")]
    subprocess.run(command, check=True, capture_output=True)
    files = files_of(base)
    assert files_of(tmp_path / "again") == files
    assert sum(map(len, files.values())) <= 15_000_000


def test_another_seed_gives_another_model(base: Path, tmp_path: Path) -> None:
    """The weights come from the seed."""
    from make_tiny_sdxl import make

    make(tmp_path / "other", seed=1)
    name = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "other" / name).read_bytes() != (base / name).read_bytes()


def test_diffusers_makes_a_picture_with_it(base: Path) -> None:
    """It is a complete SDXL pipeline to diffusers, and an ordinary caption fits into its 77 tokens."""
    import torch
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a cat", num_inference_steps=1, height=64, width=64).images[0]
    assert image.size == (64, 64)
    caption = "vintage sepia photograph of boats on a river in a japanese village, side view"
    assert len(pipeline.tokenizer(caption).input_ids) <= 77


def test_the_full_topology_has_the_layers_of_the_real_model(tmp_path: Path) -> None:
    """With --full the attention layers number 560, as in SDXL, and every one has a name in the original layout, none twice."""
    import torch
    from diffusers import UNet2DConditionModel
    from make_tiny_sdxl import make
    from sdxl_lora.family import Sdxl

    make(tmp_path / "full", full=True)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(json.loads((tmp_path / "full" / "unet" / "config.json").read_text()))
    attention = [n for n, _ in unet.named_modules() if n.endswith((".to_q", ".to_k", ".to_v", ".to_out.0"))]
    assert len(attention) == 560
    assert len({Sdxl.original_name(name) for name in attention}) == 560
    assert Sdxl.original_name("down_blocks.1.attentions.0.proj_in") == "input_blocks.4.1.proj_in"
    assert (
        Sdxl.original_name("mid_block.attentions.0.transformer_blocks.9.attn2.to_k")
        == "middle_block.1.transformer_blocks.9.attn2.to_k"
    )
    assert Sdxl.original_name("up_blocks.2.resnets.2.conv_shortcut") == "output_blocks.8.0.skip_connection"
