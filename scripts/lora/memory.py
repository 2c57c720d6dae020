"""How much GPU memory a training needs, and what to turn on so that it fits: known before the model is loaded.

    estimate(need, options, rung)   GiB by kind
    plan(need, options, card)       the first rung of the family's ladder that fits; OutOfMemory says what else would

A rung is (how the frozen net is held, whether activations are computed again in backward). The ladder of each family has the fastest and
most exact first. What the card then really needs is measured by preflight.py before the first step.

Editing rules: standard library only; a family's constants say where they are from; a test compares estimates with published figures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora.ends import OutOfMemory
from lora.options import Options

GIB = 2**30
CARDS = (8, 12, 16, 24, 48, 80)
# A card of so many GB has this share of as many GiB.
USABLE = 0.98
# What is estimated this far above a card may still fit, which is measured on it.
DOUBT = 1.1
# Bytes for each weight of a frozen layer: nf4 has a scale of 8 bits for 64 weights.
HELD = {"int8": 1.0, "fp8": 1.0, "nf4": 0.5 + 1 / 64}
PRECISION = {"bf16": 2, "fp32": 4}
# Bytes of an optimiser's state for each weight that learns, in fp32; those in rows and columns are next to nothing.
STATES = {"adamw": 8, "adamw8bit": 2, "prodigy": 16, "adafactor": 0, "came": 4}
# The weight in fp32, its gradient, and its copy in the precision of the pass.
LEARNING = 4 + 4 + 2
# GiB of CUDA's own, which its allocator does not count.
CONTEXT = 0.5
# CUDA's own, the libraries' workspaces, and what the allocator cannot use between blocks.
RESERVE = 1.0
"""GiB"""
DECODING = 4.0
"""GiB that the VAE needs for a sample of 1024² in bf16."""

Rung = tuple[str, bool]


@dataclass(frozen=True, slots=True)
class Activations:
    """What a pass leaves for backward, in GiB with 2 bytes a value."""

    image: float
    """For one image of 1024² px, in proportion to its area."""
    caption: float = 0.0
    """For its caption, whatever the image's size."""

    def of(self, side: int) -> float:
        """For an image of about this squared."""
        return self.image * side**2 / 2**20 + self.caption


@dataclass(frozen=True, slots=True)
class Targets:
    """What --targets names, in the real net."""

    rank_one: float
    """Weights of a LoRA of rank 1, in millions."""
    kept: Activations


@dataclass(frozen=True, slots=True)
class Footprint:
    """What the memory of a family follows from."""

    weights: float
    """Weights of the net, in billions."""
    blocks: float
    """Those of them in the linear layers of its blocks, which can be held in few bits."""
    texts: float
    """Weights of the text encoders that may learn, in billions."""
    encoding: float
    """GiB that it takes to fill the cache, by the largest encoder."""
    targets: Mapping[str, Targets]
    checkpointed: Activations
    """What checkpointing keeps, and the activations of one block."""
    ladder: Sequence[Rung]


@dataclass(frozen=True, slots=True)
class Estimate:
    """GiB by kind."""

    frozen: float
    learning: float
    activations: float
    reserve: float = RESERVE

    @property
    def total(self) -> float:
        """All of it, GiB."""
        return self.frozen + self.learning + self.activations + self.reserve

    def __str__(self) -> str:
        parts = f"weights {self.frozen:.1f}, adapter {self.learning:.1f}, activations {self.activations:.1f}"
        return f"{self.total:.1f} GiB ({parts}, reserve {self.reserve:.1f})"


@dataclass(frozen=True, slots=True)
class Need:
    """What is to fit."""

    footprint: Footprint
    weights: float
    """Weights of this base's net, in billions: a smaller one needs less of everything."""
    width: int = 2
    """Bytes of a value in a pass."""
    packages: bool = True
    """Whether nf4's package is there."""


def estimate(need: Need, options: Options, rung: Rung) -> Estimate:
    """What a training needs with the net so held, in GiB."""
    family, (held, again) = need.footprint, rung
    share = need.weights / family.weights
    blocks = family.blocks * share if held != "none" else 0.0
    texts = family.texts if options.text_lr else 0.0
    frozen = (need.weights + texts - blocks) * need.width + blocks * HELD.get(held, 0)
    targets = family.targets[options.targets]
    state = STATES[options.optimizer] + LEARNING + (4 if options.ema else 0)
    learning = targets.rank_one * share * options.rank * (2 if options.network == "loha" else 1) * state / 1e3
    kept = (family.checkpointed if again else targets.kept).of(max(options.resolutions))
    activations = kept * share * options.batch_size * need.width / 2
    return Estimate(frozen * 1e9 / GIB, learning * 1e9 / GIB, activations)


@dataclass(frozen=True, slots=True)
class Plan:
    """What auto stands for on a card."""

    quantize: str
    gradient_checkpointing: bool
    estimate: Estimate
    why: str


def rungs(need: Need, options: Options) -> list[Rung]:
    """The rungs that the options allow, the best first."""
    asked = options.quantize
    found = list(need.footprint.ladder) if asked == "auto" else [(asked, False), (asked, True)]
    if asked == "auto" and options.network == "dora":
        found = [rung for rung in found if rung[0] == "none"]  # a DoRA's strengths are those of exact weights
    if asked == "auto" and not need.packages:
        found = [rung for rung in found if rung[0] != "nf4"]
    wanted = {"auto": (False, True), "on": (True,), "off": (False,)}[options.gradient_checkpointing]
    return [rung for rung in found if rung[1] in wanted]


def told(rung: Rung) -> str:
    """A rung in words."""
    held = "net in full" if rung[0] == "none" else f"net in {rung[0]}"
    return f"{held}, gradient checkpointing {'on' if rung[1] else 'off'}"


def plan(need: Need, options: Options, card: float) -> Plan:
    """The best that fits a card of so many GiB, or the least that might; OutOfMemory with what would, if nothing does."""
    allowed = rungs(need, options)
    figures = [estimate(need, options, rung) for rung in allowed]
    place = next((n for n, found in enumerate(figures) if found.total <= card), len(allowed) - 1)
    rung, found = allowed[place], figures[place]
    if found.total > card * DOUBT:
        raise OutOfMemory(
            f"the GPU's memory does not suffice: this training needs about {found} even with {told(rung)}, and there are {card:.1f}."
            f" {advice(need, options, card)}"
        )
    before = f" ({told(allowed[place - 1])}: {figures[place - 1].total:.1f} GiB)" if place else ""
    return Plan(*rung, found, f"about {found} of {card:.1f}: {told(rung)}{before}")


def advice(need: Need, options: Options, card: float) -> str:
    """What would fit, each with its estimate."""

    def fitting(some: Iterable[tuple[str, Options]]) -> list[str]:
        figures = ((said, min(estimate(need, changed, rung).total for rung in rungs(need, changed))) for said, changed in some)
        return [f"{said} (about {figure:.1f} GiB)" for said, figure in figures if figure <= card]

    found = fitting(changes(options)) or fitting([together(options)])
    least = min(estimate(need, options, rung).total for rung in rungs(need, options))
    larger = next((f"a GPU of {size} GB" for size in CARDS if size * USABLE >= least), f"a GPU of more than {CARDS[-1]} GB")
    return f"What would fit: {'; '.join([*found, larger])}"


def changes(options: Options) -> Iterator[tuple[str, Options]]:
    """Smaller trainings, each one change away, in words of the command line."""

    def one(said: str, **values: Any) -> tuple[str, Options]:
        return said, dataclasses.replace(options, **values)

    if options.gradient_checkpointing == "off":
        yield one("--gradient-checkpointing auto", gradient_checkpointing="auto")
    if options.quantize not in ("auto", "nf4") and options.network != "dora":
        yield one("--quantize auto", quantize="auto")
    if options.batch_size > 1:
        size = next(n for n in range(options.batch_size // 2, 0, -1) if options.batch_size % n == 0)
        passes = options.grad_accumulation * options.batch_size // size
        yield one(f"--batch-size {size} --grad-accumulation {passes}", batch_size=size, grad_accumulation=passes)
    for size in (size for size in (1024, 768, 512) if size < max(options.resolutions)):
        yield one(f"--resolution {size}", resolution=size, more_resolutions="")
    if STATES[options.optimizer] > STATES["adafactor"]:
        yield one("--optimizer adafactor", optimizer="adafactor")
    if options.rank > 4:
        yield one(f"--rank {options.rank // 4}", rank=options.rank // 4)
    if options.network == "dora":
        yield one("--network lora", network="lora")
    if options.text_lr:
        yield one("--text-lr 0", text_lr=0.0)


def together(options: Options) -> tuple[str, Options]:
    """Several of these changes at once."""
    size, rank = min(512, options.resolution), min(4, options.rank)
    least = {"batch_size": 1, "resolution": size, "more_resolutions": "", "optimizer": "adafactor", "rank": rank, "text_lr": 0.0}
    auto = {"quantize": "auto", "gradient_checkpointing": "auto"}
    said = f"--batch-size 1 --resolution {size} --optimizer adafactor --rank {rank}"
    return said, dataclasses.replace(options, **least, **auto)


def decodes(found: Estimate, options: Options, card: float) -> bool:
    """Whether a sample can be decoded whole beside the net: its activations are gone by then."""
    size = max(options.resolutions) ** 2 / 2**20
    return found.total - found.activations + DECODING * size * PRECISION[options.precision] / 2 <= card


def settled(options: Options, before: Mapping[str, Any]) -> Options:
    """The options with what auto stood for when the training began: a checkpoint of it goes on with the same numbers only."""
    kept = {name: before[name] for name in ("quantize", "precision") if getattr(options, name) == "auto" and name in before}
    return dataclasses.replace(options, **{name: value for name, value in kept.items() if value != "auto"})


def is_short(error: RuntimeError) -> bool:
    """Whether an error says that a GPU's memory does not suffice, in the words of torch or of a library below it."""
    return any(words in str(error) for words in ("out of memory", "ALLOC_FAILED"))
