"""Show what a LoRA changes: the same prompts from the same noise before, on the way and after, beside the photographs.

    python -m demo.picture BASE RESULT OUT.jpg      # RESULT: what `remote-trainer artifacts` downloaded

The finished LoRA is read by diffusers, as anybody would; what is on the way is a checkpoint's adapter in a file of the same kind.

Editing rules: nothing is chosen afterwards: rows and seeds are fixed, and their first images are what is shown.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.utils import logging
from PIL import Image, ImageDraw, ImageFont
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from demo.photographs import LONG, SHORT, Photograph, read

ROWS = ("cat00", "cat06", "cat11", "cat20", "french-alpine-landscape", "nagasaki-boats")
"""Photographs whose captions are the prompts: cats, then pictures that the base knows."""
STEPS, GUIDANCE, SEED = 25, 2.0, 1
ZOOM, MARGIN, LINE, FONT = 2, 10, 20, 14
Images = list[Image.Image]


def draw(pipeline: Any, lora: Path | None, prompts: Sequence[str]) -> Images:
    """One image for each prompt, with a LoRA or without; each prompt starts from the same noise in every call."""
    if lora is not None:
        pipeline.load_lora_weights(lora.parent, weight_name=lora.name, local_files_only=True)
    result = pipeline(
        list(prompts),
        negative_prompt=[""] * len(prompts),
        width=LONG,
        height=SHORT,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=[torch.Generator().manual_seed(SEED + row) for row in range(len(prompts))],
    )
    pipeline.unload_lora_weights()
    return list(result.images)


def from_checkpoint(checkpoint: Path, finished: Path, out: Path) -> Path:
    """A checkpoint's adapter as a file that diffusers reads: with the names and settings of the finished one."""
    with safe_open(finished, "pt") as file:
        settings = file.metadata()
    save_file({f"unet.{name}": value for name, value in load_file(checkpoint / "adapter.safetensors").items()}, out, settings)
    return out


def sheet(columns: Mapping[str, Images], captions: Sequence[str]) -> Image.Image:
    """A labelled table of images: a column for each title, a row for each caption."""
    width, height = ZOOM * LONG + MARGIN, ZOOM * SHORT + MARGIN + LINE
    page = Image.new("RGB", (len(columns) * width + MARGIN, len(captions) * height + LINE + MARGIN), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(FONT)
    for row, caption in enumerate(captions):
        pen.text((MARGIN, LINE + MARGIN + row * height), caption, "dimgray", font)
    for column, (title, images) in enumerate(columns.items()):
        left = MARGIN + column * width
        pen.text((left, MARGIN // 2), title, "black", font)
        for row, image in enumerate(images):
            zoomed = image.resize((ZOOM * LONG, ZOOM * SHORT), Image.Resampling.BICUBIC)
            page.paste(zoomed, (left, LINE + MARGIN + row * height + LINE))
    return page


def distance(images: Images, photographs: Sequence[Photograph], unknown: bool) -> float:
    """Mean difference, in levels of 255, between the images and photographs that the base did not know, or knew."""
    found = [
        np.abs(np.asarray(image, float) - np.asarray(photograph.image, float)).mean()
        for image, photograph in zip(images, photographs, strict=True)
        if photograph.unknown is unknown
    ]
    return float(np.mean(found))


def make(base: Path, result: Path, out: Path) -> str:
    """Write the picture; what one should see in it."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # else it tells that the text encoders have no LoRA
    photographs = {photograph.name: photograph for photograph in read()}
    shown = [photographs[name] for name in ROWS]
    prompts = [photograph.caption for photograph in shown]
    finished = next(path for path in sorted((result / "final").glob("*.safetensors")) if not path.stem.endswith("_kohya"))
    first, last = (pick((result / "checkpoints").glob("step-*")) for pick in (min, max))
    on_the_way = from_checkpoint(first, finished, result / "on-the-way.safetensors")
    pipeline = StableDiffusionXLPipeline.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    before, between, after = (draw(pipeline, lora, prompts) for lora in (None, on_the_way, finished))
    columns = {
        "the base": before,
        f"with the LoRA of step {int(first.name[5:])}": between,
        f"and of step {int(last.name[5:])}": after,
        "photograph": [photograph.image for photograph in shown],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet(columns, prompts).save(out, quality=88)
    figures = [f"{distance(before, shown, unknown):.0f} -> {distance(after, shown, unknown):.0f}" for unknown in (True, False)]
    return (
        f"{out}: in the rows that ask for a cat, which the base was never shown, the blur of the first column becomes a cat in"
        " that frame's pose; in the others, which it was shown, little changes."
        f" Mean difference to the photographs: {figures[0]} of 255 where there is a cat, {figures[1]} where there is none."
    )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m demo.picture", description="Draw before and after a LoRA, side by side.")
    parser.add_argument("base", type=Path, help="the base model's folder")
    parser.add_argument("result", type=Path, help="folder with final/ and checkpoints/ of a training on it")
    parser.add_argument("out", type=Path, help="picture to write")
    options = parser.parse_args()
    print(make(options.base, options.result, options.out))


if __name__ == "__main__":
    main()
