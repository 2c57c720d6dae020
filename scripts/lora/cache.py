"""Encoded images and captions on disk, so that the VAE and the text encoders run once and then leave the GPU.

    fill(cache, photos, captions, …)   encodes what is missing; a second run with the same base and images encodes nothing
    missing(…), encode(…)              its two halves: processes that train together encode a share each of what is missing
    Cache.images(…), Cache.text(…)     the tensors of a pass, read once and then kept in memory (kept.py)

Each entry is one safetensors file, named by everything it depends on: content, size, base model and the version of this code.
An image is kept as the mean and deviation of its latent distribution, and a sample of it is drawn at each step.

Editing rules: change VERSION when an entry would come out differently; write through `write_entry` (whole or not at all).
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lora.base import Base
from lora.data import Photo
from lora.ends import BadInput
from lora.family import Family
from lora.files import shown
from lora.images import load_mask, load_pixels, quiet
from lora.kept import Kept, Tensors
from lora.memory import is_short
from lora.options import Options

VERSION = "1"
AHEAD = 4
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Cache:
    """The folder of entries for one base model."""

    folder: Path
    base: Base
    family: type[Family]
    options: Options
    kept: Kept = field(default_factory=Kept, repr=False)

    @property
    def encoders(self) -> tuple[str, ...]:
        """The text encoders that speak through the cache: those that do not learn."""
        learning = self.family.LEARNING_TEXTS if self.options.text_lr else ()
        return tuple(name for name in self.family.TEXTS if name not in learning)

    def path(self, kind: str, *parts: object) -> Path:
        """Where an entry lies; the name holds everything the content depends on."""
        text = "\n".join(str(part) for part in (VERSION, self.base.digest, *parts))
        return self.folder / kind / (hashlib.sha256(text.encode()).hexdigest()[:40] + ".safetensors")

    def image_path(self, photo: Photo) -> Path:
        """The latent distribution of a photo in its bucket."""
        more = [*([f"mask {photo.mask}"] if photo.mask else []), *(["mirrored"] if photo.mirrored else [])]
        return self.path("images", photo.sha256, photo.bucket, *more)

    def text_path(self, caption: str) -> Path:
        """The embeddings of a caption by the encoders that do not learn."""
        some = () if len(self.encoders) == len(self.family.TEXTS) else self.encoders
        return self.path("texts", *some, *self.family.text_settings(self.options), caption)

    def text(self, caption: str, device: torch.device) -> Tensors:
        """The embeddings of a caption, without a first dimension."""
        if not self.encoders:
            return {}
        return {key: value.float() for key, value in self.kept.read(self.text_path(caption), device).items()}

    def images(self, photos: Sequence[Photo], device: torch.device) -> Tensors:
        """Stacked entries: mean and std (n, c, h, w), and with masks the weight of each place (n, 1, h, w)."""
        rows = [self.kept.read(self.image_path(photo), device) for photo in photos]
        if self.options.masks != "none":
            floor = self.options.mask_background
            for row in rows:
                mask = row.pop("mask", None)
                row["weight"] = torch.ones_like(row["mean"][:1]) if mask is None else floor + (1 - floor) * mask
        return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def readable(path: Path) -> bool:
    """Whether an entry is there and whole (a host that lost power may have left an empty file)."""
    try:
        with safe_open(path, framework="pt"):
            return True
    except (OSError, SafetensorError):
        return False


def write_entry(path: Path, tensors: Tensors) -> None:
    """Write an entry so that a reader sees all of it or none; where there is no room for it, nothing of it stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        save_file({key: value.contiguous().cpu() for key, value in tensors.items()}, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def counted(
    items: Sequence[Item], what: str, stopping: Callable[[], None], verbs: tuple[str, str] = ("encoding", "encoded")
) -> Iterator[Item]:
    """The items, with a progress line every few seconds; `stopping` raises when the training is to end."""
    started = last = time.monotonic()
    for number, item in enumerate(items):
        stopping()
        yield item
        if (now := time.monotonic()) - last > 5:
            print(f"{verbs[0]} {what} {number + 1}/{len(items)}", flush=True)
            last = now
    if items:
        print(f"{verbs[1]} {len(items)} {what} in {time.monotonic() - started:.1f} s", flush=True)


def missing(cache: Cache, photos: Sequence[Photo], captions: Sequence[str]) -> tuple[list[Photo], list[str]]:
    """The images and captions that the cache lacks, each once."""
    images = {cache.image_path(photo): photo for photo in photos}
    texts = {cache.text_path(caption): caption for caption in captions} if cache.encoders else {}
    return [images[path] for path in images if not readable(path)], [texts[path] for path in texts if not readable(path)]


def encode(
    cache: Cache, images: Sequence[Photo], captions: Sequence[str], device: torch.device, stopping: Callable[[], None]
) -> None:
    """Encode these; models that are not needed are not loaded."""
    with torch.inference_mode():
        if images:
            encode_images(cache, images, device, stopping)
        if captions:
            encode_texts(cache, captions, device, stopping)
    if device.type == "cuda":
        torch.cuda.empty_cache()


def fill(
    cache: Cache, photos: Sequence[Photo], captions: Sequence[str], device: torch.device, stopping: Callable[[], None]
) -> None:
    """Encode what the cache lacks."""
    encode(cache, *missing(cache, photos, captions), device, stopping)


def encode_images(cache: Cache, photos: Sequence[Photo], device: torch.device, stopping: Callable[[], None]) -> None:
    """One photo at a time in fp32: SDXL's VAE overflows in half precision. The next ones are decoded meanwhile."""
    vae = cache.base.load("vae", torch.float32).to(device)
    with quiet(), ThreadPoolExecutor(AHEAD) as pool:
        for photo, levels in zip(counted(photos, "images", stopping), decoded(photos, pool), strict=True):
            pixels = torch.from_numpy(levels).permute(2, 0, 1)[None].to(device, torch.float32) / 127.5 - 1
            tensors = distribution(cache.family, vae, pixels)
            if not all(torch.isfinite(value).all() for value in tensors.values()):
                raise BadInput(
                    f"{shown(photo.path)} encodes to values that are not numbers; the image or the base model's VAE is damaged"
                )
            if photo.mask:
                tensors["mask"] = shrunk_mask(photo, cache.options.masks, tensors["mean"])
            write_entry(cache.image_path(photo), tensors)


def distribution(family: type[Family], vae: Any, pixels: torch.Tensor) -> Tensors:
    """What the VAE makes of an image: in tiles as large as it was made for, once one was too large for the GPU."""
    try:
        return family.encode_pixels(vae, pixels)
    except RuntimeError as error:
        if vae.use_tiling or not is_short(error):
            raise
    size = f"{pixels.shape[3]}×{pixels.shape[2]}"
    print(
        f"note: the GPU has no room to encode an image of {size} px at once; from here on larger ones are encoded in tiles",
        flush=True,
    )
    vae.enable_tiling()
    return family.encode_pixels(vae, pixels)


def decoded(photos: Sequence[Photo], pool: ThreadPoolExecutor) -> Iterator[np.ndarray]:
    """The pixels of each photo (h, w, 3), a few made ahead: a GPU encodes faster than one thread decodes large files."""
    waiting = deque(pool.submit(pixels_of, photo) for photo in photos[:AHEAD])
    for number in range(len(photos)):
        found = waiting.popleft().result()
        waiting += [pool.submit(pixels_of, photo) for photo in photos[number + AHEAD : number + AHEAD + 1]]
        yield found


def pixels_of(photo: Photo) -> np.ndarray:
    """The pixels of one photo; BadInput if the file is no longer what was examined."""
    try:
        return np.array(load_pixels(photo))
    except ValueError as error:
        raise BadInput(f"{shown(photo.path)}: {error}; was it changed after the start?") from error


def shrunk_mask(photo: Photo, source: str, latents: torch.Tensor) -> torch.Tensor:
    """How much each place of the latents counts, (1, h, w) in 0..1."""
    grey = torch.from_numpy(np.array(load_mask(photo, source))).float()[None, None] / 255
    return torch.nn.functional.interpolate(grey, size=latents.shape[-2:], mode="area")[0]


def encode_texts(cache: Cache, captions: Sequence[str], device: torch.device, stopping: Callable[[], None]) -> None:
    """Each caption by every encoder that does not learn."""
    tokenizers = {name: cache.family.tokenizer(cache.base, name, cache.options) for name in cache.encoders}
    encoders = {name: cache.base.load(name, cache.family.text_precision(name, device)).to(device) for name in cache.encoders}
    limit = max(tokenizer.model_max_length for tokenizer in tokenizers.values())
    shortened = 0
    for caption in counted(captions, "captions", stopping):
        tensors = {key: value[0] for key, value in cache.family.encode_texts(tokenizers, encoders, [caption]).items()}
        shortened += all(len(tokenizer(caption).input_ids) > limit for tokenizer in tokenizers.values())
        if not all(torch.isfinite(value).all() for value in tensors.values()):
            raise BadInput(
                f"the caption {caption[:60]!r} encodes to values that are not numbers; the base's text encoder is damaged"
            )
        write_entry(cache.text_path(caption), tensors)
    if shortened:
        print(
            f"note: {shortened} captions are longer than the {limit} tokens that are read; the rest of each is ignored",
            flush=True,
        )
