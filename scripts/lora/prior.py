"""Prior images that the base makes itself: what it knows of a prompt before anything is learnt, so that it does not forget it.

    images(cache, device, dtype, stopping)   makes what is missing of --prior-images pictures of --prior-prompt, and surveys them

They lie in the cache as PNG and caption, in a folder named by everything they depend on, and are made once. A training that goes on at
another machine makes them again there, perhaps with other roundings; that is why its checkpoints know them by prompt, number, base and
settings, which `Options.fingerprint` has, and not by their bytes.

Editing rules: the n-th picture is a function of the seed and n; change VERSION when a picture would come out differently; the base is
loaded only where a picture is missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image

from lora.cache import Cache, counted, fill
from lora.data import Photo, survey_paths
from lora.ends import BadInput
from lora.loss import generator
from lora.sampling import Sampler, picture

VERSION = "1"
STREAM = 5


def images(cache: Cache, device: torch.device, dtype: torch.dtype, stopping: Callable[[], None]) -> list[Photo]:
    """The prior images that the base makes; none unless they are asked for."""
    options = cache.options
    if not options.prior_prompt:
        return []
    folder = folder_of(cache, dtype)
    if lacking := missing(folder, options.prior_images):
        # Here the text encoders are the base's own, even if they are about to learn.
        plain = dataclasses.replace(cache, options=dataclasses.replace(options, text_lr=0.0))
        make(plain, folder, lacking, (device, dtype), stopping)
    paths = [path_of(folder, number) for number in range(options.prior_images)]
    return [dataclasses.replace(photo, made=True) for photo in survey_paths(options, folder, paths, prior=True)]


def folder_of(cache: Cache, dtype: torch.dtype) -> Path:
    """Where they lie: the name holds everything that they depend on, but not how many there are, so that more can be added."""
    options, family = cache.options, cache.family
    settings = {
        name: getattr(options, name, None)
        for name in (
            "resolution",
            "bucket_step",
            "bucket_min",
            "bucket_max",
            "seed",
            "sample_steps",
            "sample_guidance",
            "quantize",
        )
    }
    parts = (VERSION, cache.base.digest, dtype, *settings.items(), *family.text_settings(options), options.prior_prompt)
    return cache.folder / "prior" / hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:40]


def path_of(folder: Path, number: int) -> Path:
    """Where a picture lies."""
    return folder / f"{number:05d}.png"


def missing(folder: Path, count: int) -> list[int]:
    """The numbers of the pictures that are not there or not whole (a host that lost power may have left an empty file)."""
    return [number for number in range(count) if not whole(path_of(folder, number))]


def whole(path: Path) -> bool:
    """Whether a picture and its caption are there, and the picture's checksums are right."""
    try:
        with Image.open(path) as image:
            image.verify()
        return path.with_suffix(".txt").is_file()
    except (OSError, SyntaxError):
        return False


def make(
    cache: Cache,
    folder: Path,
    numbers: Sequence[int],
    place: tuple[torch.device, torch.dtype],
    stopping: Callable[[], None],
) -> None:
    """Make the pictures of these numbers; each one that is finished stays, whatever ends the program."""
    prompt = cache.options.prior_prompt
    fill(cache, [], ["", prompt], place[0], stopping)
    family = cache.family(cache.base, cache.options, *place)
    sampler = Sampler(cache, cache.options, [prompt])
    folder.mkdir(parents=True, exist_ok=True)
    for number in counted(numbers, "prior images", stopping, ("making", "made")):
        pixels = sampler.pixels(family, prompt, generator(cache.options.seed, number, STREAM))
        if not torch.isfinite(pixels).all():
            raise BadInput(
                f"the base's image of --prior-prompt {prompt!r} is of values that are not numbers; the base is damaged"
            )
        write(path_of(folder, number), pixels, prompt)
    del family, sampler
    if place[0].type == "cuda":
        torch.cuda.empty_cache()


def write(path: Path, pixels: torch.Tensor, caption: str) -> None:
    """Write a picture and its caption so that the picture is there only if both are whole."""
    path.with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        picture(pixels).save(part, format="PNG")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
