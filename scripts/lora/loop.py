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

from lora import about, adapters, checkpoint, export, optimisation
from lora.base import Base
from lora.cache import Cache, fill
from lora.captions import orders
from lora.data import Order, Photo, dataset_digest, split
from lora.ends import Interrupted, OutOfMemory
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
    options = task.options
    if options.threads:
        torch.set_num_threads(options.threads)
    optimisation.check(options)
    laps.mark("libraries")
    with joined() as ranks:
        learned, watched = split(task.photos, options.val_fraction, options.seed)
        try:
            cache = Cache(options.cache_dir, task.base, task.family, options)
            prompts = prompts_of(options, learned)
            device, dtype = choose_device(options)
            fill(cache, *to_encode(options, task.photos, prompts), device, asked)
            ranks.wait()
            laps.mark("encoding")
            model = prepare(options, task.family(task.base, options, device, dtype))
            laps.mark("model")
            run = Run(options, model, cache, Order(learned, options.batch_size, options.seed), watched, ranks)
            run.identity = identity(task, dtype, ranks)
            run.resume()
            run.announce(learned)
            run.loop(Sampler(cache, options, prompts, ranks), agreed(ranks, asked), laps)
        except torch.OutOfMemoryError as error:
            advice = "lower --batch-size or --resolution, pass --gradient-checkpointing on, or take a larger GPU"
            raise OutOfMemory(f"the GPU's memory does not suffice: {advice} ({error})") from error
        if ranks.first:
            with run.average.shown():
                finish(run, learned, task.base)


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


def identity(task: Task, dtype: torch.dtype, ranks: Ranks) -> dict[str, Any]:
    """What decides what is learnt: a checkpoint only continues under the same."""
    decisive = task.options.fingerprint()
    passes = {"grad_accumulation": task.options.grad_accumulation * ranks.count}
    return {**decisive, **passes, "base": task.base.digest, "dataset": dataset_digest(task.photos), "dtype": str(dtype)}


def to_encode(options: Options, photos: Sequence[Photo], prompts: Sequence[str]) -> tuple[list[Photo], list[str]]:
    """All images and captions that the training will ask the cache for."""
    both = [*photos, *(replace(photo, mirrored=True) for photo in photos)] if options.flip else list(photos)
    captions = [text for photo in photos for text in (photo.caption, *orders(photo.caption, options))]
    return both, ["", *captions, *prompts]


def choose_device(options: Options) -> tuple[torch.device, torch.dtype]:
    """The GPU in bf16 where it can, else fp32."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = options.precision == "bf16" or (
        options.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported(False)
    )
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    return device, torch.bfloat16 if bf16 else torch.float32


def wants_gradient_checkpointing(options: Options, family: type[Family], device: torch.device) -> bool:
    """As asked; on auto only where the activations would not fit."""
    if options.gradient_checkpointing != "auto" or device.type != "cuda":
        return options.gradient_checkpointing == "on"
    fixed, image = family.MEMORY_GIB
    needed = fixed + image * options.batch_size * (options.resolution / 1024) ** 2
    present = torch.cuda.get_device_properties(device).total_memory / 2**30
    if needed > 0.9 * present:
        print(f"gradient checkpointing is on: about {needed:.0f} GiB needed without it, the GPU has {present:.0f}", flush=True)
    return needed > 0.9 * present


def prepare(options: Options, family: Family) -> Family:
    """The frozen model with fresh adapters."""
    adapters.attach(family, options)
    if wants_gradient_checkpointing(options, type(family), family.device):
        family.net.enable_gradient_checkpointing()
    family.net.train()
    for encoder in family.encoders.values():
        encoder.train()
    return family


def finish(run: Run, learned: Sequence[Photo], base: Base) -> None:
    """Write the LoRA in both formats, read both back, and say what was made."""
    options, final = run.options, run.options.output_dir / "final"
    true = replace(options, steps=run.step, grad_accumulation=run.passes)
    files = export.write(run.model, final, options.name, about.metadata(run.model, learned, true))
    export.verify(run.model, *files)
    summary = {
        "name": options.name,
        "files": {file.name: {"size": file.stat().st_size, "sha256": checkpoint.sha256(file)} for file in files},
        "steps": run.step,
        "images": len({photo.path for photo in learned if not photo.prior}),
        "val_loss": {str(step): loss for step, loss in sorted(run.validations.items())},
        "base": {"name": base.name, "digest": base.digest},
        "dataset_digest": run.identity["dataset"],
        "device": str(run.model.device),
        "dtype": run.identity["dtype"],
        "options": asdict(options),
        "versions": {module.__name__: module.__version__ for module in (torch, diffusers, transformers, peft)}
        | {"python": platform.python_version()},
    }
    export.write_atomically(final / "training.json", (json.dumps(summary, indent=2) + "\n").encode())
    losses = [loss for _, loss in sorted(run.validations.items())]
    print(f"done: {files[0]} and {files[1].name}, validation loss {losses[0]:.4f} -> {losses[-1]:.4f}", flush=True)
