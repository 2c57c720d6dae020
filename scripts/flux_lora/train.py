"""Train a LoRA for FLUX.1 from a folder of captioned images.

    python train.py --dataset photos --output out                              # FLUX.1-dev from the hub (needs HF_TOKEN)
    python train.py --base model/ --dataset photos --output out --rank 32      # a base on this disk
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
from lora.flags import flag, revised
from lora.memory import Activations, Footprint, Targets
from lora.options import NETWORK, TRAINING, Options
from lora.program import Tool, main


def foreign(pipeline: str, config: Mapping[str, Any]) -> str:
    """Why a model is not plain FLUX.1: another pipeline, or a variant for other inputs such as filling or control."""
    if pipeline != "FluxPipeline":
        return "which is another family; give a FLUX.1 model"
    if (channels := config.get("in_channels", 64)) != 64:
        return f"but it is a variant for other inputs ({channels} channels in transformer), not the plain model"
    return ""


def single_file(_header: Mapping[str, Any]) -> str:
    """FLUX's single files hold the transformer alone."""
    return "a single file holds the transformer without its text encoders; give a diffusers folder or a hub id"


# Counted on a net of FLUX.1's size, whose weights are made up: layers, and what autograd keeps of a pass in bf16. Checkpointing needs
# 0.7 GiB of the 2.2 for one block at a time.
FOOTPRINT = Footprint(
    weights=11.901,
    blocks=11.834,
    texts=0.123,
    encoding=10.5,
    targets={"attention": Targets(1.63, Activations(24.1, 3.1)), "all": Targets(4.09, Activations(31.7, 4.1))},
    checkpointed=Activations(2.0, 0.2),
    # int8 is all but exact, and quicker than to compute activations again; nf4 is neither.
    ladder=(("none", False), ("none", True), ("int8", False), ("int8", True), ("nf4", False), ("nf4", True)),
)

KIND = Kind(
    name="FLUX.1",
    net="transformer",
    parts={
        "transformer": ("diffusers", "FluxTransformer2DModel"),
        "vae": ("diffusers", "AutoencoderKL"),
        "text_encoder": ("transformers", "CLIPTextModel"),
        "text_encoder_2": ("transformers", "T5EncoderModel"),
        "tokenizer": ("transformers", "CLIPTokenizer"),
        "tokenizer_2": ("transformers", "T5TokenizerFast"),
    },
    pipeline="FluxPipeline",
    scheduler={},
    foreign=foreign,
    single_file=single_file,
    footprint=FOOTPRINT,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FluxOptions(Options):
    """The defaults that suit FLUX.1-dev on one GPU of 48 GB."""

    PROGRAM: ClassVar[str] = "Train a LoRA for FLUX.1 from a folder of captioned images."
    USUAL_ALPHA: ClassVar[float] = 1.0

    base: str = revised(Options, "base", "black-forest-labs/FLUX.1-dev", "model to train on: a diffusers folder or a hub id")
    targets: str = revised(
        Options,
        "targets",
        "attention",
        "layers that learn: attention, or all: also feed-forward and projections",
        choices=("attention", "all"),
    )
    alpha: float = revised(Options, "alpha", 0.0, "strength; the update is scaled by alpha / rank (0: the rank)")
    text_lr: float = revised(
        Options, "text_lr", 0.0, "learning rate of the CLIP text encoder (0: it does not learn); T5 never learns"
    )
    sample_guidance: float = revised(
        Options, "sample_guidance", 3.5, "guidance that a sample is made with, where the base takes one"
    )

    text_length: int = flag(512, NETWORK, "tokens of a caption that T5 reads; FLUX.1-schnell knows 256", low=8, high=512)
    timestep_shift: float = flag(
        0.0,
        TRAINING,
        "how far noise levels are moved towards noise (0: as the base's schedule does for the image's size)",
        low=0,
        high=20,
    )
    train_guidance: float = flag(
        1.0, TRAINING, "guidance that the base is told while it learns, where it takes one", low=0, high=30
    )


def family() -> type:
    """What is computed, loaded late because it needs torch."""
    from flux_lora.family import Flux

    return Flux


TOOL = Tool("flux-lora", KIND, FluxOptions, family, "make_tiny_flux.py")

if __name__ == "__main__":
    sys.exit(main(TOOL))
