"""How the weights move: the optimisers, the course of the learning rate, and the running average of the adapter.

    check(options)             BadInput if the optimiser needs a package that is not there
    make(options, groups)      the optimiser; Prodigy and CAME are written out here, from their papers
    share(options, step)       which part of the full learning rate a step takes
    packed / unpack            an optimiser's state as tensors and plain numbers, for checkpoints without pickle
    Average                    the adapter as it was on average lately, which is often the better one

Editing rules: the state of everything here is in tensors and in numbers that JSON holds exactly, so that a resumed training goes on bit
for bit.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from lora.ends import BadInput
from lora.options import Options

Groups = list[dict[str, Any]]
# How much of the training the last, falling part of the "stable" schedule takes.
FALL = 0.2


def check(options: Options) -> None:
    """Find what is missing before anything expensive starts."""
    if options.optimizer == "adamw8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise BadInput(
            "--optimizer adamw8bit needs the package bitsandbytes; install it, or use adafactor or came, which save memory too"
        )
    if options.optimizer == "prodigy" and options.lr < 0.1:
        print(f"note: Prodigy finds the rate by itself and --lr {options.lr:g} scales what it finds; 1 is usual", flush=True)


def make(options: Options, groups: Groups) -> torch.optim.Optimizer:
    """The optimiser over groups of {"params", "lr"}."""
    decay = options.weight_decay
    match options.optimizer:
        case "adamw8bit":
            from bitsandbytes.optim import AdamW8bit

            return AdamW8bit(groups, weight_decay=decay)
        case "adafactor":
            from transformers.optimization import Adafactor

            return Adafactor(groups, weight_decay=decay, scale_parameter=False, relative_step=False)
        case "prodigy":
            return Prodigy(groups, weight_decay=decay)
        case "came":
            return Came(groups, weight_decay=decay)
        case _:
            return torch.optim.AdamW(groups, weight_decay=decay, fused=True)


class Prodigy(torch.optim.Optimizer):
    """Adam that estimates its own learning rate from how far the weights have come (Mishchenko and Defazio, 2023).

    The estimate d is shared by all groups and kept in the first one. With bias correction and safeguarded warm-up.
    """

    BETAS, EPS, START = (0.9, 0.999), 1e-8, 1e-6

    def __init__(self, groups: Groups, weight_decay: float) -> None:
        super().__init__(groups, {"weight_decay": weight_decay})
        self.param_groups[0].update(d=self.START, numerator=0.0, count=0)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Move the estimate, then the weights; the numbers come to the CPU once."""
        shared, (first, second) = self.param_groups[0], self.BETAS
        d, third, count = shared["d"], math.sqrt(second), shared["count"] + 1
        correction = math.sqrt(1 - second**count) / (1 - first**count)
        weights = [(group, weight) for group in self.param_groups for weight in group["params"] if weight.grad is not None]
        sums = torch.zeros(2, dtype=torch.float64, device=weights[0][1].device)
        for group, weight in weights:
            state, gradient = self.state[weight], weight.grad
            if not state:
                state.update(
                    {name: torch.zeros_like(weight) for name in ("mean", "square", "sum")}, origin=weight.detach().clone()
                )
            sums[0] += d / self.START * d * group["lr"] * correction * torch.sum(gradient * (state["origin"] - weight))
            state["mean"].mul_(first).add_(gradient, alpha=d * (1 - first))
            state["square"].mul_(second).addcmul_(gradient, gradient, value=d * d * (1 - second))
            state["sum"].mul_(third).add_(gradient, alpha=d / self.START * d)
            sums[1] += state["sum"].abs().sum()
        gained, length = sums.tolist()
        shared["numerator"], shared["count"] = third * shared["numerator"] + gained, count
        shared["d"] = max(d, shared["numerator"] / length) if length > 0 else d
        for group, weight in weights:
            rate, state = d * group["lr"] * correction, self.state[weight]
            weight.mul_(1 - rate * group["weight_decay"])
            weight.addcdiv_(state["mean"], state["square"].sqrt().add_(shared["d"] * self.EPS), value=-rate)


class Came(torch.optim.Optimizer):
    """Adafactor's small memory, with steps scaled by how far they can be trusted (Luo and others, 2023).

    Second moments of a matrix are kept as one number for each row and each column; a kernel is a matrix of its outputs.
    """

    BETAS, EPS, LIMIT = (0.9, 0.999, 0.9999), (1e-30, 1e-16), 1.0

    def __init__(self, groups: Groups, weight_decay: float) -> None:
        super().__init__(groups, {"weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Move the weights."""
        first, second, third = self.BETAS
        for group in self.param_groups:
            for weight in (w for w in group["params"] if w.grad is not None):
                state = self.state[weight]
                update = weight.grad * inverse_root(state, "square", weight.grad.square() + self.EPS[0], second)
                update /= (update.square().mean().sqrt() / self.LIMIT).clamp_min(1)
                mean = state.setdefault("mean", torch.zeros_like(weight)).mul_(first).add_(update, alpha=1 - first)
                if weight.dim() > 1:
                    mean = mean * inverse_root(state, "doubt", (update - mean).square() + self.EPS[1], third)
                weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(mean, alpha=-group["lr"])


def inverse_root(state: dict[str, torch.Tensor], name: str, values: torch.Tensor, decay: float) -> torch.Tensor:
    """One over the root of the running mean of values, which is kept by rows and columns where there are two."""

    def running(key: str, value: torch.Tensor) -> torch.Tensor:
        return state.setdefault(key, torch.zeros_like(value)).mul_(decay).add_(value, alpha=1 - decay)

    if values.dim() < 2:
        return running(name, values).rsqrt()
    matrix = values.flatten(1)
    rows, columns = running(f"{name}_rows", matrix.mean(1)), running(f"{name}_columns", matrix.mean(0))
    return ((rows / rows.mean()).rsqrt()[:, None] * columns.rsqrt()).view_as(values)


def share(options: Options, step: int) -> float:
    """The share of the full learning rate that a step takes, counted from 0."""
    if step < options.warmup:
        return (step + 1) / options.warmup
    done = (step - options.warmup) / max(1, options.steps - options.warmup)
    match options.lr_schedule:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        case "cosine-restarts":
            return 0.5 * (1 + math.cos(math.pi * (done * options.lr_cycles % 1)))
        case "linear":
            return 1 - done
        case "rex":
            return (1 - done) / (1 - done / 2)
        case "stable":
            return min(1.0, (1 - done) / FALL)
        case _:
            return 1.0


def flat(entry: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """The values of nested mappings under their names joined by dots; the 8-bit optimiser nests."""
    for name, value in entry.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def packed(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors by "weight.name", plain numbers of weights and groups)."""
    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, entry in state["state"].items():
        for name, value in flat(entry, f"{index}."):
            if not isinstance(value, torch.Tensor):
                numbers[name] = value
            else:  # the 8-bit optimiser's weights share one table of its levels, and a file cannot
                tensors[name] = value.clone() if name.rpartition(".")[2].startswith("qmap") else value
    plain = (bool, int, float, str)
    groups = [{name: value for name, value in group.items() if isinstance(value, plain)} for group in state["param_groups"]]
    return tensors, {"weights": numbers, "groups": groups}


def unpack(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, Any]) -> None:
    """Put back what `packed` gave."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **numbers["weights"]}.items():
        index, *outer, name = key.split(".")
        entry = state.setdefault(int(index), {})
        for step in outer:
            entry = entry.setdefault(step, {})
        entry[name] = value
    groups = [{**now, **then} for now, then in zip(optimizer.state_dict()["param_groups"], numbers["groups"], strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


class Average:
    """The exponential moving average of weights; decay 0 is no average at all."""

    def __init__(self, weights: Sequence[torch.nn.Parameter], decay: float) -> None:
        self._weights, self._decay = weights, decay
        self._kept = [weight.detach().clone() for weight in weights] if decay else []

    def update(self, step: int) -> None:
        """Take the weights of a step in; the first steps count more, or the beginning would never be forgotten."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for kept, weight in zip(self._kept, self._weights, strict=bool(self._kept)):
            kept.lerp_(weight.detach(), 1 - decay)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Within it the weights are the average."""
        own = [weight.detach().clone() for weight in self._weights] if self._kept else []
        self._put(self._kept)
        try:
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, values: Sequence[torch.Tensor]) -> None:
        for weight, value in zip(self._weights, values, strict=bool(values)):
            weight.copy_(value)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps."""
        return {str(index): kept for index, kept in enumerate(self._kept)}

    def restore(self, saved: Mapping[str, torch.Tensor]) -> None:
        """Put it back."""
        for index, kept in enumerate(self._kept):
            kept.copy_(saved[str(index)])
