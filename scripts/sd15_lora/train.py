"""Train a LoRA for Stable Diffusion 1.5 from a folder of captioned images.

    python train.py --dataset photos --output out                              # a real base from the hub, 1500 steps at 512²
    python train.py --base model/ --dataset photos --output out --rank 32      # a base on this disk, also one derived from 1.5
    python train.py --smoke                                                    # everything made up, on a CPU, under a minute

What it reads, writes and how it ends is told in ../lora/program.py. This file says what a base of the family looks like and which
flags are its own; family.py beside it says what is computed.

Editing rules: standard library only, so that what is wrong is found before torch is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # what all trainers share lies beside this folder

from lora.base import Kind
from lora.flags import revised
from lora.memory import Footprint, Targets
from lora.options import UnetOptions
from lora.program import Tool, main


def foreign(pipeline: str, config: Mapping[str, Any]) -> str:
    """Why a model is not plain Stable Diffusion 1: another pipeline, version 2's text encoder, or other inputs."""
    if pipeline != "StableDiffusionPipeline" or config.get("addition_embed_type"):
        return "which is another family; give a Stable Diffusion 1.5 model"
    if config.get("cross_attention_dim") == 1024:
        return "but its text encoder is that of Stable Diffusion 2"
    if (channels := config.get("in_channels", 4)) != 4:
        return f"but it is a variant for other inputs ({channels} channels in unet), not the plain model"
    return ""


def single_file(header: Mapping[str, Any]) -> str:
    """What only a version 1 checkpoint in one file has is CLIP L under this name."""
    mark = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    return "" if mark in header else f"it has no {mark}"


# Weights are those of the real model. Activations were counted on a net of the real size, as autograd keeps them in bf16.
FOOTPRINT = Footprint(
    weights=0.860,
    blocks=0.31,
    texts=0.123,
    targets={"attention": Targets(rank_one=0.2, kept=5.0), "locon": Targets(rank_one=0.6, kept=7.0)},
    checkpoints=1.0,
    # Few bits cost a UNet much speed and save little: last of all.
    ladder=(("none", False), ("none", True), ("int8", True), ("nf4", True)),
)

KIND = Kind(
    name="Stable Diffusion 1.5",
    net="unet",
    parts={
        "unet": ("diffusers", "UNet2DConditionModel"),
        "vae": ("diffusers", "AutoencoderKL"),
        "text_encoder": ("transformers", "CLIPTextModel"),
        "tokenizer": ("transformers", "CLIPTokenizer"),
    },
    pipeline="StableDiffusionPipeline",
    scheduler={"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1},
    foreign=foreign,
    single_file=single_file,
    footprint=FOOTPRINT,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sd15Options(UnetOptions):
    """The defaults that suit a real base of Stable Diffusion 1.5 on one GPU of 12 GB."""

    PROGRAM: ClassVar[str] = "Train a LoRA for Stable Diffusion 1.5 from a folder of captioned images."

    base: str = revised(UnetOptions, "base", "stable-diffusion-v1-5/stable-diffusion-v1-5")
    resolution: int = revised(UnetOptions, "resolution", 512)
    batch_size: int = revised(UnetOptions, "batch_size", 2)
    sample_guidance: float = revised(UnetOptions, "sample_guidance", 7.5)


def family() -> type:
    """What is computed, loaded late because it needs torch."""
    from sd15_lora.family import Sd15

    return Sd15


TOOL = Tool("sd15-lora", KIND, Sd15Options, family, "make_tiny_sd15.py")

if __name__ == "__main__":
    sys.exit(main(TOOL))
