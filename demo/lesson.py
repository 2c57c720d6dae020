"""Teach a model something by heart, step by step, and go on where an interrupted lesson stopped.

Editing rules: what a step draws is a function of the seed and the step, so that an interrupted lesson ends as an uninterrupted one.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

WARMUP = 50
Loss = Callable[[torch.Generator], torch.Tensor]
"""The loss of one step, given where its random numbers come from."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """How long and how fast a model learns, and where its state is kept meanwhile."""

    name: str
    steps: int
    rate: float
    kept: Path
    seed: int = 0
    every: int = 100
    """Steps between progress lines and saved states."""

    def share(self, step: int) -> float:
        """Of the learning rate: up over the first steps, then down along half a cosine."""
        return min(1.0, (step + 1) / WARMUP) * (1 + math.cos(math.pi * step / self.steps)) / 2


def learn(model: torch.nn.Module, lesson: Lesson, loss_of: Loss) -> None:
    """Run the lesson to its end; afterwards its state still lies in `lesson.kept`."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lesson.rate, weight_decay=0)
    step = restore(model, optimizer, lesson)
    losses: list[float] = []
    started = time.monotonic()
    model.train()
    while step < lesson.steps:
        for group in optimizer.param_groups:
            group["lr"] = lesson.rate * lesson.share(step)
        loss = loss_of(torch.Generator().manual_seed(lesson.seed * lesson.steps + step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        step += 1
        if step % lesson.every == 0 or step == lesson.steps:
            speed = len(losses) / (time.monotonic() - started)
            eta = (lesson.steps - step) / speed
            recent = losses[-lesson.every :]
            line = f"{lesson.name} step {step}/{lesson.steps} loss {sum(recent) / len(recent):.4f} {speed:.1f} steps/s eta {eta:.0f} s"
            print(line, flush=True)
            save(model, optimizer, lesson, step)
    model.eval()


def save(model: torch.nn.Module, optimizer: torch.optim.Optimizer, lesson: Lesson, step: int) -> None:
    """Keep the state; a crash leaves the one before."""
    part = lesson.kept.with_name(lesson.kept.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"steps": lesson.steps, "step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, part)
    os.replace(part, lesson.kept)


def restore(model: torch.nn.Module, optimizer: torch.optim.Optimizer, lesson: Lesson) -> int:
    """The step at which to go on: 0 where nothing was kept, or a lesson of another length."""
    if not lesson.kept.exists():
        return 0
    state = torch.load(lesson.kept, weights_only=True)
    if state["steps"] != lesson.steps:
        return 0
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
