"""The table of what the trainers choose for each card, by their own arithmetic: docs/memory.md.

Rules for editing: figures come from scripts/lora/memory.py and each family's FOOTPRINT; what they mean is told in training.md.
"""

from __future__ import annotations

import importlib
from typing import Any

from docs import flags

FAMILIES = ("sd15", "sdxl", "flux")
HEAD = ["| card | net | checkpointing | needed | weights | adapter | activations |", "|---|---|---|---|---|---|---|"]
INTRODUCTION = """\
# Memory of the training programs

Made from `scripts/lora/memory.py` by `make docs`: what `--quantize auto` and `--gradient-checkpointing auto` choose with the
defaults of each program, and the GiB that it is expected to need at its peak. On the card itself one pass is measured before the first
step. How the figures come about, and what can be done about them, is told in [training.md](training.md).
"""


def row(memory: Any, need: Any, options: Any, card: int) -> str:
    """One card."""
    try:
        found = memory.plan(need, options, card * memory.USABLE)
    except importlib.import_module("lora.ends").OutOfMemory as error:
        advice = str(error).partition("What would fit: ")[2].rpartition("; a GPU of")[0]
        return f"| {card} GB | does not fit; `{advice.replace(' (about', '` (about')} | | | | | |"
    part = found.estimate
    held = "in full, bf16" if found.quantize == "none" else found.quantize
    again = "on" if found.gradient_checkpointing else "off"
    return (
        f"| {card} GB | {held} | {again} | {part.total:.1f} | {part.frozen:.1f} | {part.learning:.1f} | {part.activations:.1f} |"
    )


def make() -> str:
    """The page."""
    lines = INTRODUCTION.splitlines()
    for family in FAMILIES:
        flags.options_of(f"{family}_lora/train")
        memory, trainer = importlib.import_module("lora.memory"), importlib.import_module(f"{family}_lora.train").TOOL
        options, footprint = trainer.options(), trainer.kind.footprint
        need = memory.Need(footprint, footprint.weights)
        told = f"{options.resolution} px, batch {options.batch_size}, rank {options.rank}, {options.targets}, {options.optimizer}"
        lines += ["", f"## `{family}-lora@1`", "", f"{told}; {footprint.weights:g} billion weights:", "", *HEAD]
        lines += [row(memory, need, options, card) for card in memory.CARDS]
    return "\n".join([*lines, ""])
