"""The memory that a training really needs, measured on the GPU before its first step.

    check(settled, run)                    one pass of the largest batch; OutOfMemory, with what would fit, if that is too much

Estimates (memory.py) chose how the net is held; here they meet the card. If there is no room, and it was left to auto, activations are
computed again in backward from here on.

Editing rules: nothing is left behind, no gradient and no random number drawn, so that the steps are those of a training without it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch

from lora import memory
from lora.cache import Cache
from lora.data import Photo
from lora.ends import OutOfMemory
from lora.family import Family
from lora.loss import VALIDATION_BATCH, training_loss, validation_loss
from lora.prepare import Settled
from lora.ranks import Ranks
from lora.run import Run


def largest(photos: Sequence[Photo], batch_size: int) -> list[Photo]:
    """The batch with the most pixels that these photos make."""
    by_bucket: dict[tuple[int, int], list[Photo]] = defaultdict(list)
    for photo in photos:
        by_bucket[photo.bucket] += [photo] * photo.repeats
    batches = [members[:batch_size] for members in by_bucket.values()]
    return max(batches, key=lambda batch: len(batch) * batch[0].bucket[0] * batch[0].bucket[1])


def attempt(model: Family, cache: Cache, learned: Sequence[Photo], watched: Sequence[Photo]) -> None:
    """Forward and backward of the largest batch, and the largest look at the validation loss."""
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            training_loss(model, cache, largest(learned, cache.options.batch_size), cache.options, 0).backward()
            validation_loss(model, cache, largest(watched, VALIDATION_BATCH), cache.options.seed, Ranks())
    finally:
        for part in model.parts().values():
            part.zero_grad(set_to_none=True)


def measured(model: Family, cache: Cache, learned: Sequence[Photo], watched: Sequence[Photo]) -> float | None:
    """GiB at the peak of an attempt on a GPU; None if they were not there."""
    torch.cuda.reset_peak_memory_stats(model.device)
    try:
        attempt(model, cache, learned, watched)
        torch.cuda.reset_peak_memory_stats(model.device)  # the first one has also tried which convolutions are the fastest
        attempt(model, cache, learned, watched)
    except RuntimeError as error:
        if not memory.is_short(error):
            raise
        return None
    finally:
        torch.cuda.empty_cache()
    return torch.cuda.max_memory_allocated(model.device) / memory.GIB


def check(settled: Settled, run: Run) -> None:
    """Say what is needed and what is there; on a CPU there is nothing to find out."""
    model, options = run.model, settled.options
    if model.device.type != "cuda":
        return
    weights = sum(parameter.numel() for parameter in run.parameters)
    state = 0 if run.optimizer.state else memory.STATES[options.optimizer]  # of a resumed training it is there, and measured
    rest = memory.CONTEXT + weights * (state + (4 if options.ema else 0)) / memory.GIB
    again, photos = options.gradient_checkpointing == "on", (run.order.photos, run.watched)
    peak = measured(model, run.cache, *photos)
    if (peak is None or peak + rest > settled.card) and settled.flexible and not again:
        print("memory: there is less than was estimated; gradient checkpointing is on", flush=True)
        again = True
        model.net.enable_gradient_checkpointing()
        peak = measured(model, run.cache, *photos)
    now = (options.quantize, again)
    if peak is not None and peak + rest <= settled.card:
        print(f"memory: {peak + rest:.1f} GiB needed, {settled.card:.1f} there; {memory.told(now)}", flush=True)
        return
    found = "more than that" if peak is None else f"{peak + rest:.1f}"
    less = min(settled.card, memory.estimate(settled.need, options, now).total) - memory.CONTEXT
    raise OutOfMemory(
        f"the GPU's memory does not suffice: there are {settled.card:.1f} GiB, and a step needs {found} with {memory.told(now)}."
        f" {memory.advice(settled.need, options, less)}"
    )
