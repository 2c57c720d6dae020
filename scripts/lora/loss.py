"""What is learnt from: the loss of a pass, and the validation loss that is the same at every look.

Everything random comes from generators made from (seed, position) on the CPU, so a step gives the same numbers on every device
and after every resume.

Editing rules: draws keep their order, and new ones take a generator of their own, so that old seeds mean what they meant.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lora.cache import Cache
from lora.data import Photo, group
from lora.family import Family
from lora.options import Options

VALIDATION_BATCH = 8


def generator(*parts: int) -> torch.Generator:
    """A generator for these numbers; neighbouring ones give unrelated streams."""
    mixed = int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(mixed >> 1)


def training_loss(family: Family, cache: Cache, photos: Sequence[Photo], options: Options, position: int) -> torch.Tensor:
    """The loss of one pass; `position` counts passes from the start of the training."""
    draw = generator(options.seed, position)
    dropped = torch.rand(len(photos), generator=draw) < options.caption_dropout
    captions = ["" if drop else photo.caption for photo, drop in zip(photos, dropped.tolist(), strict=True)]
    batch = family.batch(cache, photos, captions)
    shape = batch["mean"].shape
    spread, noise = (torch.randn(shape, generator=draw).to(family.device) for _ in range(2))
    times = family.pick_times(draw, shape)
    noise = family.noise(noise, generator(options.seed, position, 3))
    errors = family.errors(batch, batch["mean"] + batch["std"] * spread, noise, times).mean(dim=(1, 2, 3))
    return (errors * family.weights(times)).mean()


@torch.no_grad()
def validation_loss(family: Family, cache: Cache, photos: Sequence[Photo], seed: int) -> float:
    """Mean error over the photos with noise and times that are the same at every call; times are spread evenly."""
    total, number = 0.0, 0
    for members in group(photos, VALIDATION_BATCH, seed, epoch=0):
        batch = family.batch(cache, members, [photo.caption for photo in members])
        shape = batch["mean"].shape
        noise = torch.randn(shape, generator=generator(seed, number, 1)).to(family.device)
        times = family.even_times((torch.arange(number, number + len(members)) + 0.5) / len(photos), shape)
        total += float(family.errors(batch, batch["mean"], noise, times).mean(dim=(1, 2, 3)).sum())
        number += len(members)
    return total / number
