"""The training itself: prepare, resume, step, watch, export.

Read `train` first; the rest is in the order it is called. The learning rate, the data order and all noise are functions of the
step, so adapter, optimiser and step are the whole state.

Editing rules: at the top of each turn of the loop the training can stop and be resumed bit for bit; nothing may carry over from
one step to the next but the adapter and the optimiser.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import diffusers
import peft
import torch
import transformers

from lora import about, adapters, checkpoint, export, memory, optimisation, preflight, prepare
from lora.base import Base
from lora.cache import Cache, fill
from lora.captions import orders
from lora.data import Order, Photo, dataset_digest, split
from lora.ends import BadInput, Interrupted, NotANumber, OutOfMemory
from lora.family import Family
from lora.loss import training_loss, validation_loss
from lora.options import Options
from lora.sampling import Sampler, prompts_of


def train(options: Options, photos: Sequence[Photo], base: Base, kind: type[Family], stopping: Callable[[], None]) -> None:
    """Run the training to its end; `stopping` raises when it has been asked to stop."""
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if options.threads:
        torch.set_num_threads(options.threads)
    optimisation.check(options)
    settled = prepare.settle(options, base)
    options = settled.options
    prepare.tune(settled)
    learned, watched = split(photos, options.val_fraction, options.seed)
    prompts = prompts_of(options, learned)
    cache = Cache(options.cache_dir, base, kind, options)
    try:
        fill(cache, *to_encode(options, photos, prompts), settled.encoding, stopping)
        model = prepare.prepare(settled, kind, base)
        run = Run(options, model, cache, Order(learned, options.batch_size, options.seed), watched)
        run.identity = {**options.fingerprint(), "base": base.digest, "dataset": dataset_digest(photos)}
        run.resume()
        run.announce(learned)
        preflight.check(settled, model, cache, learned, watched)
        run.loop(Sampler(cache, options, prompts), stopping)
    except torch.OutOfMemoryError as error:
        advice = memory.advice(settled.need, options, settled.card - 1)
        raise OutOfMemory(f"the GPU's memory does not suffice. {advice} ({error})") from error
    with run.average.shown():
        finish(run, learned, base)


def to_encode(options: Options, photos: Sequence[Photo], prompts: Sequence[str]) -> tuple[list[Photo], list[str]]:
    """All images and captions that the training will ask the cache for."""
    both = [*photos, *(replace(photo, mirrored=True) for photo in photos)] if options.flip else list(photos)
    captions = [text for photo in photos for text in (photo.caption, *orders(photo.caption, options))]
    return both, ["", *captions, *prompts]


@dataclass(slots=True)
class Run:
    """A training on its way."""

    options: Options
    model: Family
    cache: Cache
    order: Order
    watched: Sequence[Photo]
    identity: dict[str, Any] = field(default_factory=dict)
    parameters: list[torch.nn.Parameter] = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    average: optimisation.Average = field(init=False)
    step: int = 0
    validations: dict[int, float] = field(default_factory=dict)
    since_log: list[tuple[float, float]] = field(default_factory=list)
    """(loss, seconds) of each step since the last progress line."""

    def __post_init__(self) -> None:
        """Make the optimiser over what learns."""
        groups = []
        for part in self.model.parts().values():
            rate = self.options.lr if part is self.model.net else self.options.text_lr
            groups.append({"params": [p for p in part.parameters() if p.requires_grad], "lr": rate, "full_lr": rate})
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.optimizer = optimisation.make(self.options, groups)
        self.average = optimisation.Average(self.parameters, self.options.ema)

    def announce(self, learned: Sequence[Photo]) -> None:
        """Print what follows from the options, once."""
        steps, per_step = self.options.steps, self.options.batch_size * self.options.grad_accumulation
        names = len({photo.path for photo in learned if not photo.prior})
        count = sum(len(adapters.layers(part)) for part in self.model.parts().values())
        print(
            f"{sum(p.numel() for p in self.parameters) / 1e6:.2f} M weights learn in {count} layers from {names} images,"
            f" {steps} steps of {per_step} = {steps * per_step / names:.1f} views of each,"
            f" on {self.model.device} in {str(self.model.dtype).removeprefix('torch.')}",
            flush=True,
        )

    def resume(self) -> None:
        """Continue from the newest checkpoint that verifies, if there is one."""
        found = checkpoint.newest(self.options.output_dir / "checkpoints")
        if found is None:
            return
        state = found.state()
        checkpoint.check_same(state["identity"], self.identity, found.path)
        adapters.restore(self.model, found.tensors("adapter"))
        optimisation.unpack(self.optimizer, found.tensors("optimizer"), state["optimizer"])
        if self.options.ema:
            self.average.restore(found.tensors("average"))
        self.step = found.step
        self.validations = {int(step): loss for step, loss in state["validations"].items()}
        print(f"resumed at step {self.step} from {found.path.name}", flush=True)
        if self.step > self.options.steps:
            raise BadInput(f"{found.path} is past --steps {self.options.steps}; ask for more steps or use another --output")

    def save(self) -> None:
        """Write a checkpoint of this step unless it is there."""
        folder = self.options.output_dir / "checkpoints"
        path = folder / checkpoint.name_of(self.step)
        if path.is_dir() and not checkpoint.fault(path):
            return
        moments, numbers = optimisation.packed(self.optimizer)
        tensors = {"adapter": adapters.tensors(self.model), "optimizer": moments}
        if self.options.ema:
            tensors["average"] = self.average.tensors()
        state = {"identity": self.identity, "validations": self.validations, "optimizer": numbers}
        checkpoint.save(folder, self.step, tensors, state)
        checkpoint.prune(folder, self.options.keep_checkpoints)
        print(f"checkpoint {path.name}", flush=True)

    def loop(self, sampler: Sampler, stopping: Callable[[], None]) -> None:
        """Alternate between looking at the model and one step, until the last step was looked at."""
        try:
            while True:
                stopping()
                self.look(sampler, stopping)
                if self.step == self.options.steps:
                    return
                self.advance()
        except Interrupted:
            self.save()
            raise

    def look(self, sampler: Sampler, stopping: Callable[[], None]) -> None:
        """Progress line, checkpoint, validation and samples, where they are due."""
        first, last = self.step == 0, self.step == self.options.steps
        if self.since_log and (last or self.step % self.options.log_every == 0):
            self.report()
        if last or (not first and due(self.step, self.options.checkpoint_every)):
            self.save()
        if (first or last or due(self.step, self.options.val_every)) and self.step not in self.validations:
            stopping()
            with self.average.shown():
                self.validations[self.step] = validation_loss(self.model, self.cache, self.watched, self.options.seed)
            print(f"validation step {self.step} loss {self.validations[self.step]:.4f}", flush=True)
            self.record({"val_loss": self.validations[self.step]})
        if sampler.prompts and (last or due(self.step, self.options.sample_every)):
            with self.average.shown():
                sampler.write(self.model, self.step, stopping)

    def advance(self) -> None:
        """One optimiser step."""
        started = time.monotonic()
        options, share = self.options, optimisation.share(self.options, self.step)
        total = torch.zeros((), device=self.model.device)
        for position in range(self.step * options.grad_accumulation, (self.step + 1) * options.grad_accumulation):
            loss = (
                training_loss(self.model, self.cache, self.order.batch(position), options, position) / options.grad_accumulation
            )
            loss.backward()
            total += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, options.clip or math.inf)
        if not math.isfinite(float(total + norm)):
            raise NotANumber(
                f"at step {self.step + 1} the loss is {float(total)} and the gradient's norm {float(norm)}; nothing of this step was kept:"
                " lower --lr, add --warmup, or check the images of this run"
            )
        for entry in self.optimizer.param_groups:
            entry["lr"] = entry["full_lr"] * share
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.average.update(self.step)
        self.since_log.append((float(total), time.monotonic() - started))

    def report(self) -> None:
        """The progress line and its metrics: mean loss and speed since the last one."""
        count = len(self.since_log)
        loss, seconds = (sum(column) for column in zip(*self.since_log, strict=True))
        self.since_log.clear()
        speed, rate = count / seconds, self.options.lr * optimisation.share(self.options, self.step - 1)
        eta = (self.options.steps - self.step) / speed
        line = f"step {self.step}/{self.options.steps} loss {loss / count:.4f} lr {rate:.1e} {speed:.2f} steps/s eta {eta:.0f} s"
        print(line, flush=True)
        self.record({"loss": loss / count, "lr": rate, "speed_steps_per_s": round(speed, 4), "eta_s": round(eta, 1)})

    def record(self, values: Mapping[str, float]) -> None:
        """Append one line of metrics; a resumed training may repeat lines after its checkpoint, with the same values."""
        self.options.metrics_path.parent.mkdir(parents=True, exist_ok=True)
        with self.options.metrics_path.open("a", encoding="utf-8") as file:
            file.write(
                json.dumps({"step": self.step, **values, "time": datetime.now(UTC).isoformat(timespec="milliseconds")}) + "\n"
            )


def due(step: int, every: int) -> bool:
    """Whether something done every so many steps (0: never) is due now."""
    return every > 0 and step % every == 0


def finish(run: Run, learned: Sequence[Photo], base: Base) -> None:
    """Write the LoRA in both formats, read both back, and say what was made."""
    options, final = run.options, run.options.output_dir / "final"
    files = export.write(run.model, final, options.name, about.metadata(run.model, learned))
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
        "dtype": str(run.model.dtype),
        "options": asdict(options),
        "versions": {module.__name__: module.__version__ for module in (torch, diffusers, transformers, peft)}
        | {"python": platform.python_version()},
    }
    export.write_atomically(final / "training.json", (json.dumps(summary, indent=2) + "\n").encode())
    losses = [loss for _, loss in sorted(run.validations.items())]
    print(f"done: {files[0]} and {files[1].name}, validation loss {losses[0]:.4f} -> {losses[-1]:.4f}", flush=True)
