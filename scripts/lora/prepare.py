"""From options to a model that is ready to learn: what auto stands for on this machine, then the frozen net with fresh adapters on it.

    settle(options, base, …)        device, precision, how the net is held; before anything large is loaded
    tune(settled)                   what the libraries are told
    prepare(settled, kind, base)    the family, with adapters, quantised and compiled as it was settled

Adapters are attached on the CPU, where the net is loaded, and it moves to the GPU after that: layer by layer where it is quantised.

Editing rules: what is settled stands in `Settled.options` in auto's place, and so in each checkpoint: a training that goes on elsewhere
computes as it began.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lora import adapters, lean, memory, quantize
from lora.base import Base
from lora.ends import BadInput
from lora.family import Family
from lora.options import Options
from lora.ranks import ALONE, Ranks

# How many forms of one block torch.compile may make: sizes, precisions, training and not. Its own limit is 8.
FORMS = 64


@dataclass(frozen=True, slots=True)
class Settled:
    """What auto stands for."""

    options: Options
    """As given, with auto replaced."""
    device: torch.device
    dtype: torch.dtype
    need: memory.Need
    card: float = 0.0
    """GiB to make do with; 0 where memory is no question."""
    roomy: bool = True
    """Whether samples can be decoded whole."""
    flexible: bool = False
    """Whether gradient checkpointing was left to auto."""

    @property
    def encoding(self) -> torch.device:
        """Where the cache is filled: on the GPU, unless its encoders are larger than it."""
        small = 0 < self.card < self.need.footprint.encoding
        return torch.device("cpu") if small else self.device


def settle(options: Options, base: Base, before: Mapping[str, Any] | None = None, ranks: Ranks = ALONE) -> Settled:
    """Decide what was left to auto; `before` is the identity of the checkpoint that is continued.

    All ranks decide alike, for the smallest of their GPUs: the gradients of nets that are held otherwise do not go together.
    """
    options = memory.settled(options, before or {})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check(options, device)
    if options.precision == "auto":
        bf16 = ranks.least(device.type == "cuda" and torch.cuda.is_bf16_supported(False))
        options = dataclasses.replace(options, precision="bf16" if bf16 else "fp32")
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[options.precision]
    packages = quantize.available("nf4")
    need = memory.Need(base.kind.footprint, base.net_weights(), memory.PRECISION[options.precision], packages)
    card = ranks.least(card_of(options, device))
    if not card:
        plain = {"quantize": "none", "gradient_checkpointing": "off"}
        off = {name: value for name, value in plain.items() if getattr(options, name) == "auto"}
        return Settled(dataclasses.replace(options, **off), device, dtype, need)
    plan = memory.plan(need, options, card)
    print(f"memory: {plan.why}", flush=True)
    flexible, again = options.gradient_checkpointing == "auto", "on" if plan.gradient_checkpointing else "off"
    options = dataclasses.replace(options, quantize=plan.quantize, gradient_checkpointing=again)
    return Settled(options, device, dtype, need, card, memory.decodes(plan.estimate, options, card), flexible)


def check(options: Options, device: torch.device) -> None:
    """Find what is missing on this machine."""
    quantize.check(options.quantize)
    if options.compile and not any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))):
        raise BadInput("--compile needs a C compiler on this machine, and there is none: install gcc, or leave it out")
    old = device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9)
    if options.compile and options.quantize == "fp8" and old:
        raise BadInput(
            "--compile with --quantize fp8 needs a GPU that knows fp8 (Ada, Hopper or newer): use int8, which is more exact"
        )


def card_of(options: Options, device: torch.device) -> float:
    """GiB to make do with: as asked, else all that the GPU has, else 0."""
    if device.type != "cuda":
        return options.vram
    present = torch.cuda.get_device_properties(device).total_memory / memory.GIB
    return min(options.vram or present, present)


def tune(settled: Settled) -> None:
    """What the libraries are told before the first tensor is on the GPU."""
    if settled.device.type != "cuda":
        return
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    if settled.options.vram:
        total = torch.cuda.get_device_properties(settled.device).total_memory / memory.GIB
        # Of this rank's GPU; a card of that size would have CUDA's own on it, too, which is not counted here.
        torch.cuda.set_per_process_memory_fraction(min(1.0, max(0.0, settled.options.vram - memory.CONTEXT) / total))


def prepare(settled: Settled, kind: type[Family], base: Base) -> Family:
    """The frozen model with fresh adapters, on its device."""
    options = settled.options
    family = kind(base, options, torch.device("cpu"), settled.dtype)
    adapters.attach(family, options)
    place(family, settled)
    if lean.suits(options):
        lean.lean(family)
    if options.gradient_checkpointing == "on":
        family.net.enable_gradient_checkpointing()
    if options.compile:
        compile_blocks(family.net)
    return family


def place(family: Family, settled: Settled) -> Family:
    """The frozen net in as few bits as was settled, and all of the family on its device."""
    if settled.options.quantize != "none":
        quantize.quantize(family.net, settled.options.quantize, settled.device)
    family.move(settled.device)
    family.roomy = settled.roomy
    return family


def compile_blocks(net: Any, backend: str = "inductor") -> None:
    """Compile the blocks that the net repeats, each in its place, so that its layers keep their names.

    Blocks of one shape share what is compiled. The first bucket is compiled for its size, the second one for all sizes.
    """
    torch._dynamo.config.recompile_limit = FORMS
    net.compile_repeated_blocks(backend=backend)
