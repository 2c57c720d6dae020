"""What is learnt from: the loss of a pass, and the validation loss that is the same at every look.

Everything random comes from generators made from (seed, position) on the CPU, so a step gives the same numbers on every device
and after every resume. Only --dropout draws from torch's own generators, for its layers know no other: they are seeded so before
each pass, and gradient checkpointing restores them before it computes anything again.

Editing rules: draws keep their order, and new ones take a generator of their own, so that old seeds mean what they meant; the
generators' last numbers in use are 1 validation, 2 samples, 3 noise, 4 what is seen, 5 prior images, 6 dropout, 7 evaluations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from lora.cache import Cache
from lora.captions import orders
from lora.data import Photo, group
from lora.family import Family
from lora.options import Options
from lora.ranks import Ranks

VALIDATION_BATCH = 8


def generator(*parts: int) -> torch.Generator:
    """A generator for these numbers; neighbouring ones give unrelated streams."""
    return torch.Generator().manual_seed(mixed(*parts))


def mixed(*parts: int) -> int:
    """A seed for these numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0]) >> 1


def seen(photos: Sequence[Photo], options: Options, position: int) -> tuple[list[Photo], list[str]]:
    """What a pass sees of its photos: perhaps mirrored, and with their tags in another order."""
    draw = generator(options.seed, position, 4)
    mirror, order = (torch.rand(len(photos), generator=draw).tolist() for _ in range(2))
    shown = [replace(photo, mirrored=options.flip and chance < 0.5) for photo, chance in zip(photos, mirror, strict=True)]
    several = [orders(photo.caption, options) for photo in photos]
    return shown, [texts[int(place * len(texts))] for texts, place in zip(several, order, strict=True)]


def image_errors(errors: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The mean error of each image, (n,), over where it counts."""
    if "weight" not in batch:
        return errors.mean(dim=(1, 2, 3))
    weight = batch["weight"].expand_as(errors)
    return (errors * weight).sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3)).clamp_min(1e-6)


def training_loss(family: Family, cache: Cache, photos: Sequence[Photo], options: Options, position: int) -> torch.Tensor:
    """The loss of one pass; `position` counts passes from the start of the training."""
    family.learn(True)
    torch.manual_seed(mixed(options.seed, position, 6))
    draw = generator(options.seed, position)
    dropped = torch.rand(len(photos), generator=draw) < options.caption_dropout
    photos, captions = seen(photos, options, position)
    captions = ["" if drop else caption for caption, drop in zip(captions, dropped.tolist(), strict=True)]
    batch = family.batch(cache, photos, captions)
    shape = batch["mean"].shape
    spread, noise = (torch.randn(shape, generator=draw).to(family.device) for _ in range(2))
    times = family.pick_times(draw, shape)
    noise = family.noise(noise, generator(options.seed, position, 3))
    errors = image_errors(family.errors(batch, batch["mean"] + batch["std"] * spread, noise, times), batch)
    counts = torch.tensor([options.prior_weight if photo.prior else 1.0 for photo in photos], device=family.device)
    return (errors * family.weights(times) * counts).mean()


@torch.no_grad()
def validation_loss(family: Family, cache: Cache, photos: Sequence[Photo], seed: int, ranks: Ranks) -> float:
    """Mean error over the photos with noise and times that are the same at every call; times are spread evenly.

    The ranks share the passes, and add what comes of them up in the same order; all call it equally often.
    """
    family.learn(False)
    passes = group([replace(photo, repeats=1) for photo in photos], VALIDATION_BATCH, seed, epoch=0)
    starts = [sum(map(len, passes[:index])) for index in range(len(passes))]
    sums = torch.zeros(len(passes), dtype=torch.float64)
    for index in ranks.mine(range(len(passes))):
        members, number = passes[index], starts[index]
        batch = family.batch(cache, members, [photo.caption for photo in members])
        shape = batch["mean"].shape
        noise = torch.randn(shape, generator=generator(seed, number, 1)).to(family.device)
        times = family.even_times((torch.arange(number, number + len(members)) + 0.5) / len(photos), shape)
        sums[index] = float(image_errors(family.errors(batch, batch["mean"], noise, times), batch).sum())
    return sum(ranks.total(sums).tolist()) / len(photos)
