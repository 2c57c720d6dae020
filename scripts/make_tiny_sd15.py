"""Make a tiny Stable Diffusion 1.5 base model with random weights, offline: the stand-in for a 4 GB download in demos and tests.

    python make_tiny_sd15.py OUT            # about 6 MB, trains in seconds on a CPU

The folder has the layout of a diffusers pipeline, so any program loads it. Pictures made with it are noise.

Editing rules: the same seed gives the same bytes on the same library versions; nothing is downloaded; what all tiny bases share is
in make_tiny_sdxl.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lora.libraries import loading
from make_tiny_sdxl import END, EULER, make_vae, save, text_config, write_index, write_tokenizer, write_whole

# Widths are multiples of 32 because the UNet normalises in groups of 32 channels.
UNET_WIDTHS = (32, 32, 64)
TEXT_WIDTH = 32


def make_unet() -> Any:
    """The UNet: three levels of the real four, attention on all but the lowest, projections that are convolutions."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=UNET_WIDTHS,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
        cross_attention_dim=TEXT_WIDTH,
    )


def make(out: Path, *, seed: int = 0) -> None:
    """Write the model to `out`."""

    def write(part: Path) -> None:
        from transformers import CLIPTextModel

        text = CLIPTextModel(text_config(TEXT_WIDTH, 2))
        save({"unet": make_unet(), "vae": make_vae(0.18215), "text_encoder": text}, part)
        write_tokenizer(part / "tokenizer", END)
        index = {
            "_class_name": "StableDiffusionPipeline",
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }
        write_index(part, index, EULER)

    write_whole(out, seed, write)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Make a tiny random-weight Stable Diffusion 1.5 base model, offline.")
    parser.add_argument("out", type=Path, help="folder to write; one that already holds a model is left as it is")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights (default 0)")
    options = parser.parse_args()
    with loading():
        make(options.out, seed=options.seed)


if __name__ == "__main__":
    main()
