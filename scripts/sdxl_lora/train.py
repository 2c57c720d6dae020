"""Train an SDXL LoRA from a folder of captioned images.

    python train.py --dataset photos --output out                              # a real base from the hub, 1500 steps at 1024²
    python train.py --base model/ --dataset photos --output out --rank 32      # a base on this disk
    python train.py --config options.json                                      # options named as the flags, in a file
    python train.py --smoke                                                    # everything made up, on a CPU, under a minute

What it reads, writes and how it ends is told in ../lora/program.py. This file says what an SDXL base looks like and which flags
are SDXL's own; family.py beside it says what is computed.

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
from lora.memory import Footprint, Targets
from lora.options import UnetOptions
from lora.program import Tool, main


def foreign(pipeline: str, config: Mapping[str, Any]) -> str:
    """Why a model is not plain SDXL: another pipeline, no size conditioning, or a variant for other inputs such as inpainting."""
    if "XL" not in pipeline or config.get("addition_embed_type") != "text_time":
        return "which is another family; give an SDXL model"
    if (channels := config.get("in_channels", 4)) != 4:
        return f"but it is a variant for other inputs ({channels} channels in unet), not the plain model"
    return ""


def single_file(header: Mapping[str, Any]) -> str:
    """What only an SDXL checkpoint in one file has is the second text encoder's projection."""
    mark = "conditioner.embedders.1.model.text_projection"
    return "" if mark in header else f"it has no {mark}"


# Weights are those of the real model. Activations were counted on a net of the real size, as autograd keeps them in bf16.
FOOTPRINT = Footprint(
    weights=2.567,
    blocks=2.184,
    texts=0.817,
    targets={"attention": Targets(rank_one=1.45, kept=7.5), "locon": Targets(rank_one=4.0, kept=10.0)},
    checkpoints=1.0,
    # Few bits cost a UNet much speed and save little: last of all.
    ladder=(("none", False), ("none", True), ("int8", True), ("nf4", True)),
)

KIND = Kind(
    name="SDXL",
    net="unet",
    parts={
        "unet": ("diffusers", "UNet2DConditionModel"),
        "vae": ("diffusers", "AutoencoderKL"),
        "text_encoder": ("transformers", "CLIPTextModel"),
        "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
        "tokenizer": ("transformers", "CLIPTokenizer"),
        "tokenizer_2": ("transformers", "CLIPTokenizer"),
    },
    pipeline="StableDiffusionXLPipeline",
    scheduler={"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1},
    foreign=foreign,
    single_file=single_file,
    footprint=FOOTPRINT,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SdxlOptions(UnetOptions):
    """The flags of the trainers of a UNet, with the defaults that suit a real SDXL base."""

    PROGRAM: ClassVar[str] = "Train a LoRA for Stable Diffusion XL from a folder of captioned images."


def family() -> type:
    """What is computed, loaded late because it needs torch."""
    from sdxl_lora.family import Sdxl

    return Sdxl


TOOL = Tool("sdxl-lora", KIND, SdxlOptions, family, "make_tiny_sdxl.py")

if __name__ == "__main__":
    sys.exit(main(TOOL))
