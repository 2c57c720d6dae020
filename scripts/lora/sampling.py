"""Sample images on the way, always of the same prompts from the same noise.

Editing rules: a sample that is there is kept; one that is being written begins with a dot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lora.cache import Cache
from lora.data import Photo, buckets, nearest
from lora.family import Family
from lora.loss import generator
from lora.options import Options


class Sampler:
    """Makes sample images with the model as it is; the VAE is loaded at the first one."""

    def __init__(self, cache: Cache, options: Options, prompts: Sequence[str]) -> None:
        self.cache, self.options, self.prompts = cache, options, prompts
        sizes = buckets(options.resolution, options.bucket_step, *options.bucket_limits(options.resolution))
        self.size = nearest(1, 1, sizes)
        self._vae: Any = None

    @torch.no_grad()
    def write(self, family: Family, step: int, stopping: Callable[[], None]) -> list[Path]:
        """samples/step-000100-0.png and so on, one for each prompt, always from the same noise; those that are there are kept."""
        folder = self.options.output_dir / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"step-{step:06d}-{number}.png" for number in range(len(self.prompts))]
        for number, (path, prompt) in enumerate(zip(paths, self.prompts, strict=True)):
            if path.exists():
                continue
            stopping()
            part = path.with_name(f".{path.name}.part")
            self.image(family, prompt, generator(self.options.seed, number, 2)).save(part, format="PNG")
            part.replace(path)
        return paths

    @torch.no_grad()
    def image(self, family: Family, prompt: str, draw: torch.Generator) -> Image.Image:
        """One picture of a prompt, from that generator's noise."""
        latents = family.denoise(family.texts(self.cache, ["", prompt]), self.size, draw)
        if self._vae is None:
            self._vae = self.cache.base.load("vae", family.dtype).to(family.device)
        pixels = family.decode(self._vae, latents.to(family.dtype))
        levels = ((pixels.float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return Image.fromarray(levels.permute(1, 2, 0).numpy())


def prompts_of(options: Options, photos: Sequence[Photo]) -> list[str]:
    """The prompts to sample: the given ones, else captions spread over the dataset."""
    if options.sample_prompts.strip():
        return [prompt.strip() for prompt in options.sample_prompts.split("|") if prompt.strip()]
    captions = list(dict.fromkeys(photo.caption for photo in photos if not photo.prior))
    count = min(options.sample_count, len(captions))
    return [captions[i * len(captions) // count] for i in range(count)]
