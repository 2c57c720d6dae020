"""Sample images on the way, always of the same prompts from the same noise, and one sheet of all of them.

Editing rules: a sample that is there is kept; one that is being written begins with a dot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageOps

from lora.cache import Cache
from lora.data import Photo, buckets, nearest
from lora.family import Family
from lora.loss import generator
from lora.options import Options
from lora.ranks import Ranks

SHEET = "sheet.png"
SHEET_ROWS, SHEET_CELL, SHEET_LETTERS, GAP, LABEL = 12, 256, 44, 8, 16  # rows, px, letters, px, px


class Sampler:
    """Makes sample images with the model as it is; the VAE is loaded at the first one."""

    def __init__(self, cache: Cache, options: Options, prompts: Sequence[str], ranks: Ranks) -> None:
        self.cache, self.options, self.prompts, self.ranks = cache, options, prompts, ranks
        self.folder = options.output_dir / "samples"
        sizes = buckets(options.resolution, options.bucket_step, *options.bucket_limits(options.resolution))
        self.size = nearest(1, 1, sizes)
        self._vae: Any = None

    def path(self, step: int, number: int) -> Path:
        """samples/step-000100-0.png"""
        return self.folder / f"step-{step:06d}-{number}.png"

    @torch.no_grad()
    def write(self, family: Family, step: int, stopping: Callable[[], None]) -> None:
        """One image for each prompt, shared out among the ranks, and the sheet; those that are there are kept.

        `stopping` is asked once for each prompt of a rank, whether it is there or not, so that all ranks ask equally often.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for start in range(0, len(self.prompts), self.ranks.count):
            stopping()
            number = start + self.ranks.number
            if number < len(self.prompts) and not self.path(step, number).exists():
                pixels = self.pixels(family, self.prompts[number], generator(self.options.seed, number, 2))
                save_image(picture(pixels), self.path(step, number))
        self.ranks.wait()
        if self.ranks.first:
            save_image(sheet(self.folder, self.prompts), self.folder / SHEET)

    def forget(self, step: int) -> None:
        """Remove the samples of later steps, which the training has been sent back from."""
        for path in self.folder.glob("step-*-*.png"):
            if self.ranks.first and int(path.name.split("-")[1]) > step:
                path.unlink()

    @torch.no_grad()
    def pixels(self, family: Family, prompt: str, draw: torch.Generator) -> torch.Tensor:
        """One picture of a prompt, (3, h, w) in -1..1."""
        family.learn(False)
        latents = family.denoise(family.texts(self.cache, ["", prompt]), self.size, draw)
        if self._vae is None:
            self._vae = self.cache.base.load("vae", family.dtype).to(family.device)
            if not family.roomy:
                tile(self._vae)
        return family.decode(self._vae, latents.to(family.dtype)).float().cpu()


def tile(vae: Any) -> None:
    """Let a VAE decode in tiles of half its own size: by itself it tiles only what is larger, and a sample seldom is."""
    vae.enable_tiling()
    vae.tile_sample_min_size //= 2
    vae.tile_latent_min_size //= 2


def picture(pixels: torch.Tensor) -> Image.Image:
    """Pixels as an image."""
    levels = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).numpy())


def save_image(image: Image.Image, path: Path) -> None:
    """Write a PNG, all of it or nothing."""
    part = path.with_name(f".{path.name}.part")
    try:
        image.save(part, format="PNG")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def sheet(folder: Path, prompts: Sequence[str]) -> Image.Image:
    """All samples in rows of steps and columns of prompts; of many steps some, the first and the last among them."""
    steps = sorted({int(path.name.split("-")[1]) for path in folder.glob("step-*-*.png")})
    rows = min(SHEET_ROWS, len(steps))
    shown = [steps[i * (len(steps) - 1) // max(1, rows - 1)] for i in range(rows)]
    size = (len(prompts) * (SHEET_CELL + GAP) + GAP, rows * (SHEET_CELL + LABEL) + LABEL + GAP)
    made = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(made)
    for column, prompt in enumerate(prompts):
        left = GAP + column * (SHEET_CELL + GAP)
        # Pillow's own font knows Western letters only.
        draw.text((left, 2), prompt[:SHEET_LETTERS].encode("latin-1", "replace").decode("latin-1"), fill="black")
        for row, step in enumerate(shown):
            top = LABEL + row * (SHEET_CELL + LABEL)
            draw.text((left, top + 2), f"step {step}", fill="grey")
            path = folder / f"step-{step:06d}-{column}.png"
            if path.is_file():
                with Image.open(path) as image:
                    made.paste(ImageOps.contain(image.convert("RGB"), (SHEET_CELL,) * 2), (left, top + LABEL))
    return made


def prompts_of(options: Options, photos: Sequence[Photo]) -> list[str]:
    """The prompts to sample: the given ones, else captions spread over the dataset."""
    if options.sample_prompts.strip():
        return [prompt.strip() for prompt in options.sample_prompts.split("|") if prompt.strip()]
    captions = list(dict.fromkeys(photo.caption for photo in photos if not photo.prior))
    count = min(options.sample_count, len(captions))
    return [captions[i * len(captions) // count] for i in range(count)]
