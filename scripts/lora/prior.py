"""Prior images that the base makes itself: what it knows of a prompt before anything is learnt, so that it does not forget it.

    images(cache, settled, ranks, stopping)   makes what is missing of --prior-images pictures of --prior-prompt, and surveys them

They lie in the cache as PNG and caption, in a folder named by everything they depend on, and are made once. A training that goes on at
another machine makes them again there, perhaps with other roundings; that is why its checkpoints know them by prompt, number, base and
settings, which `Options.fingerprint` has, and not by their bytes.

Editing rules: the n-th picture is a function of the seed and n; change VERSION when a picture would come out differently; the base is
loaded only where a picture is missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from PIL import Image

from lora.cache import Cache, counted, fill
from lora.data import Photo, survey_paths
from lora.ends import BadInput
from lora.loss import generator
from lora.prepare import Settled, place
from lora.ranks import Ranks
from lora.sampling import Sampler, picture, save_image

VERSION = "1"
STREAM = 5


def images(cache: Cache, settled: Settled, ranks: Ranks, stopping: Callable[[], None]) -> list[Photo]:
    """The prior images that the base makes, shared out among the ranks; none unless they are asked for."""
    options = cache.options
    if not options.prior_prompt:
        return []
    folder = folder_of(cache, settled)
    paths = [folder / f"{number:05d}.png" for number in range(options.prior_images)]
    if lacking := [number for number in ranks.mine(range(len(paths))) if not whole(paths[number])]:
        # Here the text encoders are the base's own, even if they are about to learn.
        plain = dataclasses.replace(cache, options=dataclasses.replace(options, text_lr=0.0))
        folder.mkdir(parents=True, exist_ok=True)
        make(plain, settled, {number: paths[number] for number in lacking}, stopping)
    ranks.wait()
    options = dataclasses.replace(options, min_image=1)  # that is asked of what somebody gave
    return [dataclasses.replace(photo, made=True) for photo in survey_paths(options, folder, paths, prior=True)]


def folder_of(cache: Cache, settled: Settled) -> Path:
    """Where they lie: the name holds everything that they depend on, but not how many there are, so that more can be added."""
    options = settled.options
    settings = {
        name: getattr(options, name)
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
    more = (settled.dtype, *settings.items(), *cache.family.text_settings(options), options.prior_prompt)
    text = "\n".join(map(str, (VERSION, cache.base.digest, *more)))
    return cache.folder / "prior" / hashlib.sha256(text.encode()).hexdigest()[:40]


def whole(path: Path) -> bool:
    """Whether a picture and its caption are there, and the picture's checksums are right: a power cut may have left an empty file."""
    try:
        with Image.open(path) as image:
            image.verify()
        return path.with_suffix(".txt").is_file()
    except (OSError, SyntaxError):
        return False


def make(cache: Cache, settled: Settled, paths: Mapping[int, Path], stopping: Callable[[], None]) -> None:
    """Make the pictures of these numbers; each one that is finished stays, whatever ends the program."""
    options, prompt = cache.options, cache.options.prior_prompt
    fill(cache, [], ["", prompt], settled.encoding, stopping)
    family = place(cache.family(cache.base, options, torch.device("cpu"), settled.dtype), settled)
    sampler = Sampler(cache, options, [prompt], Ranks())
    for number in counted(list(paths), "prior images", stopping, ("making", "made")):
        pixels = sampler.pixels(family, prompt, generator(options.seed, number, STREAM))
        if not torch.isfinite(pixels).all():
            raise BadInput(
                f"the base's image of --prior-prompt {prompt!r} is of values that are not numbers; the base is damaged"
            )
        paths[number].with_suffix(".txt").write_text(prompt + "\n", encoding="utf-8")
        save_image(picture(pixels), paths[number])
    del family, sampler
    if settled.device.type == "cuda":
        torch.cuda.empty_cache()
