"""The course of a training: encode, prepare, resume, run, export.

Read `train`; the rest is in the order it is called. What happens between its first and its last step is in run.py.

Editing rules: with several ranks all of them run all of this; only the first one writes.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import diffusers
import peft
import torch
import transformers

from lora import adapters, checkpoint, export, memory, optimisation, preflight, prepare, prior
from lora.base import Base
from lora.cache import Cache, fill
from lora.captions import orders
from lora.data import Order, Photo, dataset_digest, split
from lora.ends import BadInput, Interrupted, OutOfMemory
from lora.family import Family
from lora.laps import Laps
from lora.options import Options
from lora.ranks import Ranks, joined
from lora.run import Run
from lora.sampling import Sampler, prompts_of


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be trained, checked."""

    options: Options
    photos: Sequence[Photo]
    base: Base
    family: type[Family]


def train(task: Task, asked: Callable[[], None], laps: Laps) -> None:
    """Run the training to its end; `asked` raises when this process has been asked to stop."""
    quieten()
    if task.options.threads:
        torch.set_num_threads(task.options.threads)
    optimisation.check(task.options)
    adapters.check(task.base, task.family, task.options)
    laps.mark("libraries")
    with joined() as ranks:
        found = checkpoint.newest(task.options.output_dir / "checkpoints")
        settled = prepare.settle(task.options, task.base, found.state()["identity"] if found else None, ranks)
        task = replace(task, options=settled.options)
        if found is not None:
            check_same(found, task, ranks)
        try:
            prepare.tune(settled)
            run, sampler = ready(task, settled, ranks, asked, laps)
            if found is not None:
                run.resume(found)
            run.announce()
            preflight.check(settled, run)
            run.loop(sampler, agreed(ranks, asked), laps)
        except RuntimeError as error:
            if not memory.is_short(error):
                raise
            advice = memory.advice(settled.need, task.options, settled.card - 1)
            raise OutOfMemory(f"the GPU's memory does not suffice. {advice} ({error})") from error
        if ranks.first:
            finish(run, task)


def ready(task: Task, settled: prepare.Settled, ranks: Ranks, asked: Callable[[], None], laps: Laps) -> tuple[Run, Sampler]:
    """A training before its first step: all is encoded, and the model is there."""
    options = task.options
    cache = Cache(options.cache_dir, task.base, task.family, options)
    photos = [*task.photos, *prior.images(cache, settled, ranks, asked)]
    learned, watched = split(photos, options.val_fraction, options.seed)
    prompts = prompts_of(options, learned)
    images, captions = to_encode(options, photos, prompts)
    fill(cache, ranks.mine(images), ranks.mine(captions), settled.encoding, asked)
    ranks.wait()
    laps.mark("encoding")
    model = prepare.prepare(settled, task.family, task.base)
    laps.mark("model")
    run = Run(options, model, cache, Order(learned, options.batch_size, options.seed), watched, ranks)
    run.identity = identity(task, ranks)
    return run, Sampler(cache, options, prompts, ranks)


def check_same(found: checkpoint.Checkpoint, task: Task, ranks: Ranks) -> None:
    """Refuse to go on from a checkpoint of another training, or from one that is past the last step, before anything is encoded."""
    checkpoint.check_same(found.state()["identity"], identity(task, ranks), found.path)
    if found.step > task.options.steps:
        raise BadInput(f"{found.path} is past --steps {task.options.steps}; ask for more steps or use another --output")


def quieten() -> None:
    """Leave standard output to what this program says."""
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def agreed(ranks: Ranks, asked: Callable[[], None]) -> Callable[[], None]:
    """Stop all ranks at the same place when one has been asked to; all ranks call it equally often."""

    def stopping() -> None:
        mine: Interrupted | None = None
        try:
            asked()
        except Interrupted as interruption:
            mine = interruption
        if ranks.any(mine is not None):
            raise mine or Interrupted("another process of this training was asked to stop; the work is kept")

    return stopping


def identity(task: Task, ranks: Ranks) -> dict[str, Any]:
    """What decides what is learnt: a checkpoint only continues under the same."""
    decisive = task.options.fingerprint()
    passes = {"grad_accumulation": task.options.grad_accumulation * ranks.count}
    return {**decisive, **passes, "base": task.base.digest, "dataset": dataset_digest(task.photos)}


def to_encode(options: Options, photos: Sequence[Photo], prompts: Sequence[str]) -> tuple[list[Photo], list[str]]:
    """All images and captions that the training will ask the cache for."""
    both = [*photos, *(replace(photo, mirrored=True) for photo in photos)] if options.flip else list(photos)
    captions = [text for photo in photos for text in (photo.caption, *orders(photo.caption, options))]
    return both, list(dict.fromkeys(["", *captions, *prompts]))


def finish(run: Run, task: Task) -> None:
    """Write the LoRA in both formats, read both back, and say what was made."""
    options, files = run.options, run.export(run.options.name)
    summary = {
        "name": options.name,
        "files": {file.name: {"size": file.stat().st_size, "sha256": checkpoint.sha256(file)} for file in files},
        "steps": run.step,
        "images": len({photo.path for photo in run.order.photos if not photo.prior}),
        "val_loss": {str(step): loss for step, loss in sorted(run.validations.items())},
        "base": {"name": task.base.name, "digest": task.base.digest},
        "dataset_digest": run.identity["dataset"],
        "device": str(run.model.device),
        "dtype": str(run.model.dtype),
        "options": asdict(options),
        "versions": {module.__name__: module.__version__ for module in (torch, diffusers, transformers, peft)}
        | {"python": platform.python_version()},
    }
    export.write_atomically(files[0].with_name("training.json"), (json.dumps(summary, indent=2) + "\n").encode())
    losses = [loss for _, loss in sorted(run.validations.items())]
    print(f"done: {files[0]} and {files[1].name}, validation loss {losses[0]:.4f} -> {losses[-1]:.4f}", flush=True)
