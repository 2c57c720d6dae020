"""A training on its way: its state, its steps, and what it does between them.

Read `Run.loop` first. Adapter, optimiser, the losses so far and the step are the whole state; data order and noise follow from the step.

Editing rules: at the top of each turn of the loop the training can stop and be resumed bit for bit; nothing may carry over from
one step to the next but what `save` writes. All ranks run all of this, and meet in each step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from lora import about, adapters, checkpoint, export, optimisation, watch
from lora.cache import Cache
from lora.data import Order, Photo
from lora.ends import Interrupted, NotANumber
from lora.family import Family
from lora.laps import Laps
from lora.loss import training_loss, validation_loss
from lora.metrics import Metrics
from lora.options import Options
from lora.ranks import Ranks
from lora.sampling import Sampler


@dataclass(slots=True)
class Run:
    """A training on its way."""

    options: Options
    model: Family
    cache: Cache
    order: Order
    watched: Sequence[Photo]
    ranks: Ranks
    identity: dict[str, Any] = field(default_factory=dict)
    parameters: list[torch.nn.Parameter] = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    average: optimisation.Average = field(init=False)
    metrics: Metrics = field(init=False)
    step: int = 0
    validations: dict[int, float] = field(default_factory=dict)
    recent: list[float] = field(default_factory=list)
    """Losses that were learnt from lately."""
    rollbacks: int = 0
    """How often a loss has sent the training back."""
    since_log: list[tuple[float, float]] = field(default_factory=list)
    """(loss, seconds) of each step since the last progress line."""
    start: dict[str, torch.Tensor] = field(init=False)
    """The adapters' first weights, for a training that is sent back to its start."""

    def __post_init__(self) -> None:
        """Make the optimiser over what learns."""
        self.start = {name: value.detach().cpu().clone() for name, value in adapters.tensors(self.model).items()}
        self.metrics = Metrics(self.options, self.ranks.first)
        self.begin()

    def begin(self) -> None:
        """Be at the first step."""
        adapters.restore(self.model, self.start)
        groups = []
        for part in self.model.parts().values():
            rate = self.options.lr if part is self.model.net else self.options.text_lr
            groups.append({"params": [p for p in part.parameters() if p.requires_grad], "lr": rate, "full_lr": rate})
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.optimizer = optimisation.make(self.options, groups)
        self.average = optimisation.Average(self.parameters, self.options.ema)
        self.step, self.validations, self.recent = 0, {}, []

    @property
    def passes(self) -> int:
        """Passes of a step, those of all ranks."""
        return self.options.grad_accumulation * self.ranks.count

    @property
    def over(self) -> bool:
        """Whether no step is left."""
        return self.step == self.options.steps or watch.finished(self.options, self.validations)

    def announce(self) -> None:
        """Print what follows from the options, once."""
        steps, per_step = self.options.steps, self.options.batch_size * self.passes
        photos = self.order.photos
        names = len({photo.path for photo in photos if not photo.prior})
        views = steps * per_step / (2 if any(photo.prior for photo in photos) else 1) / names
        count = sum(len(adapters.layers(part)) for part in self.model.parts().values())
        print(
            f"{sum(p.numel() for p in self.parameters) / 1e6:.2f} M weights learn in {count} layers from {names} images,"
            f" {steps} steps of {per_step} = {views:.1f} views of each,"
            f" on {self.ranks.count} × {self.model.device} in {str(self.model.dtype).removeprefix('torch.')}",
            flush=True,
        )

    def resume(self, found: checkpoint.Checkpoint) -> None:
        """Continue from a checkpoint of this training."""
        self.restore(found)
        self.rollbacks = int(found.state()["rollbacks"])
        print(f"resumed at step {self.step} from {found.path.name}", flush=True)

    def restore(self, found: checkpoint.Checkpoint) -> None:
        """Be where a checkpoint was written."""
        state = found.state()
        adapters.restore(self.model, found.tensors("adapter"))
        optimisation.unpack(self.optimizer, found.tensors("optimizer"), state["optimizer"])
        if self.options.ema:
            self.average.restore(found.tensors("average"))
        self.step, self.recent = found.step, state["recent"]
        self.validations = {int(step): loss for step, loss in state["validations"].items()}

    def save(self) -> None:
        """Write a checkpoint of this step unless it is there."""
        folder = self.options.output_dir / "checkpoints"
        path = folder / checkpoint.name_of(self.step)
        if not self.ranks.first or (path.is_dir() and not checkpoint.fault(path)):
            return
        moments, numbers = optimisation.packed(self.optimizer)
        tensors = {"adapter": adapters.tensors(self.model), "optimizer": moments}
        if self.options.ema:
            tensors["average"] = self.average.tensors()
        state = {"identity": self.identity, "validations": self.validations, "optimizer": numbers}
        checkpoint.save(folder, self.step, tensors, {**state, "recent": self.recent, "rollbacks": self.rollbacks})
        checkpoint.prune(folder, self.options.keep_checkpoints, 0 if self.over else self.options.checkpoint_every)
        print(f"checkpoint {path.name}", flush=True)

    def loop(self, sampler: Sampler, stopping: Callable[[], None], laps: Laps) -> None:
        """Alternate between looking at the model and one step, until the last step was looked at."""
        try:
            while True:
                stopping()
                self.look(sampler, stopping)
                if self.over:
                    return
                laps.mark("first look")
                self.advance(sampler)
                laps.finish("first step")
        except Interrupted:
            self.save()
            raise

    def look(self, sampler: Sampler, stopping: Callable[[], None]) -> None:
        """Progress line, validation, checkpoint, LoRA and samples, where they are due."""
        first, last = self.step == 0, self.over
        if self.since_log and (last or self.step % self.options.log_every == 0):
            self.report()
        if (first or last or due(self.step, self.options.val_every)) and self.step not in self.validations:
            stopping()
            self.validate()
            last = self.over
        if last or (not first and due(self.step, self.options.checkpoint_every)):
            self.save()
        if not (first or last) and due(self.step, self.options.export_every) and self.ranks.first:
            self.export(f"{self.options.name}-{self.step:06d}")
        if sampler.prompts and (last or due(self.step, self.options.sample_every)):
            with self.average.shown():
                sampler.write(self.model, self.step, stopping)

    def export(self, name: str) -> tuple[Path, Path]:
        """Write the LoRA as it is now in both formats, and read both back."""
        true = replace(self.options, name=name, steps=self.step, grad_accumulation=self.passes)
        with self.average.shown():
            told = about.metadata(self.model, self.order.photos, true)
            files = export.write(self.model, self.options.output_dir / "final", name, told)
            export.verify(self.model, *files)
        return files

    def validate(self) -> None:
        """Take the validation loss of this step, and tell what follows from it."""
        before = watch.plateaus(self.validations, self.options.patience)
        with self.average.shown():
            loss = validation_loss(self.model, self.cache, self.watched, self.options.seed, self.ranks)
        self.validations[self.step] = loss
        print(f"validation step {self.step} loss {loss:.4f}", flush=True)
        self.metrics.record(self.step, {"val_loss": loss})
        if self.options.plateau != "none" and watch.plateaus(self.validations, self.options.patience) > before:
            what = "the training ends" if self.options.plateau == "stop" else "the rate is halved"
            print(f"plateau: {self.options.patience} validations in a row found no lower loss; {what}", flush=True)

    def advance(self, sampler: Sampler) -> None:
        """One optimiser step, or back to the last checkpoint if its loss is not one to learn from."""
        started = time.monotonic()
        options, total = self.options, torch.zeros((), device=self.model.device)
        for position in self.ranks.mine(range(self.step * self.passes, (self.step + 1) * self.passes)):
            loss = training_loss(self.model, self.cache, self.order.batch(position), options, position) / self.passes
            loss.backward()
            total += loss.detach()
        self.ranks.sum_gradients(self.parameters, total)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, options.clip or math.inf)
        mean, bound = torch.stack([total, norm.to(total.dtype)]).tolist()
        if self.refuse(mean, bound, sampler):
            return
        share = optimisation.share(options, self.step) * watch.rate(options, self.rollbacks, self.validations)
        for entry in self.optimizer.param_groups:
            entry["lr"] = entry["full_lr"] * share
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.average.update(self.step)
        watch.remember(self.recent, mean)
        self.since_log.append((mean, time.monotonic() - started))

    def refuse(self, loss: float, norm: float, sampler: Sampler) -> bool:
        """Whether the loss is no number, or a spike, and the training was sent back because of it."""
        finite, times = math.isfinite(loss + norm), watch.spiked(self.recent, loss, self.options.spike)
        if finite and not times:
            return False
        what = f"{times:.1f} times the largest of late" if finite else "no number to learn from"
        seen = f"at step {self.step + 1} the loss is {loss:.4g} and the gradient's norm {norm:.4g}, {what}"
        if self.rollbacks < self.options.rollbacks:
            self.roll_back(seen, sampler)
            return True
        if finite:
            print(f"note: {seen}; --rollbacks are used up, and it is learnt from", flush=True)
            return False
        raise NotANumber(
            f"{seen}; nothing of this step was kept: lower --lr, add --warmup, or check the images of this run"
            + (f" (it was sent back {self.rollbacks} times, at half the rate each time)" if self.rollbacks else "")
        )

    def roll_back(self, seen: str, sampler: Sampler) -> None:
        """Go on from the last checkpoint, or from the start, at half the rate.

        A run that dies before its next checkpoint comes here again, for all is as it was, and takes the same turn.
        """
        left, self.rollbacks = self.step, self.rollbacks + 1
        self.optimizer.zero_grad()
        self.ranks.wait()
        folder, found = self.options.output_dir / "checkpoints", self.last_due()
        self.begin()
        if found is not None:
            self.restore(found)
        self.ranks.wait()
        if self.ranks.first:
            checkpoint.forget(folder, self.step)
            export.forget(self.options.output_dir / "final", self.options.name, self.step)
        sampler.forget(self.step)
        self.since_log.clear()
        print(f"rolled back to step {self.step}: {seen}; the rate is halved from here on", flush=True)
        self.metrics.record(left, {"rolled_back_to": self.step})

    def last_due(self) -> checkpoint.Checkpoint | None:
        """The checkpoint that a training which was never stopped would have last; where its machine was lost, what is there instead."""
        folder, every = self.options.output_dir / "checkpoints", self.options.checkpoint_every
        if not every or self.step < every:
            return None
        return checkpoint.newest(folder, every) or checkpoint.newest(folder)

    def report(self) -> None:
        """The progress line and its metrics: mean loss and speed since the last one."""
        count = len(self.since_log)
        loss, seconds = (sum(column) for column in zip(*self.since_log, strict=True))
        self.since_log.clear()
        speed, rate = count / seconds, self.optimizer.param_groups[0]["lr"]
        eta = (self.options.steps - self.step) / speed
        line = f"step {self.step}/{self.options.steps} loss {loss / count:.4f} lr {rate:.1e} {speed:.2f} steps/s eta {eta:.0f} s"
        print(line, flush=True)
        values = {"loss": loss / count, "lr": rate, "speed_steps_per_s": round(speed, 4), "eta_s": round(eta, 1)}
        self.metrics.record(self.step, values)


def due(step: int, every: int) -> bool:
    """Whether something done every so many steps (0: never) is due now."""
    return every > 0 and step % every == 0
