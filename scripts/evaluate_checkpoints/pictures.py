"""The pictures that are compared: each checkpoint draws the same prompts from the same noise.

    plan(…)      every picture there is to be, in order
    Model        the base with an adapter that takes the weights of one checkpoint after the other
    draw(…)      draws the pictures that are not there yet

A picture's name says checkpoint, prompt and seed, and by a digest everything else that decides what is on it: an evaluation that was
stopped goes on with the pictures that are there, and never with those of other settings.

Editing rules: a picture that is there is kept; one that is being written begins with a dot; what changes a picture is in `digest`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from lora import adapters, prepare
from lora.base import Base
from lora.cache import Cache, fill
from lora.checkpoint import Checkpoint, sha256
from lora.ends import BadInput
from lora.family import Family
from lora.loss import generator
from lora.optimisation import Average
from lora.options import Options
from lora.ranks import Ranks
from lora.sampling import Sampler, save_image
from lora.sampling import picture as drawn

# As in scripts/lora/loss.py, which has the numbers in use.
STREAM = 7
# Grows when the same settings would give another picture.
VERSION = "2"


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture there is to be."""

    path: Path
    checkpoint: Checkpoint
    prompt: int
    """Its place among the prompts."""
    seed: int


def digest(checkpoint: Checkpoint, prompt: str, base: Base, shown: Options) -> str:
    """What decides a picture besides its seed."""
    manifest = sha256(checkpoint.path / "manifest.json")
    decisive = (VERSION, manifest, base.digest, prompt, shown.resolution, shown.sample_steps, shown.sample_guidance)
    return hashlib.sha256("\n".join(str(part) for part in decisive).encode()).hexdigest()[:10]


def plan(
    folder: Path, checkpoints: Sequence[Checkpoint], base: Base, shown: Options, wanted: tuple[Sequence[str], Sequence[int]]
) -> list[Picture]:
    """All pictures, checkpoint by checkpoint, of (prompts, seeds)."""
    prompts, seeds = wanted
    found = []
    for checkpoint in checkpoints:
        for number, prompt in enumerate(prompts):
            mark = digest(checkpoint, prompt, base, shown)
            names = {seed: f"{checkpoint.path.name}-prompt{number + 1}-seed{seed}-{mark}.png" for seed in seeds}
            found += [Picture(folder / name, checkpoint, number, seed) for seed, name in names.items()]
    return found


class Model:
    """The base with an adapter; loaded when it is first needed, since a finished evaluation needs none of it."""

    def __init__(self, base: Base, kind: type[Family], shown: Options) -> None:
        self.base, self.kind = base, kind
        self.settled = prepare.settle(shown, base)
        prepare.tune(self.settled)
        self._family: Family | None = None

    @property
    def shown(self) -> Options:
        """The options of the pictures, with what auto stands for."""
        return self.settled.options

    @property
    def family(self) -> Family:
        """The base, with an adapter as fresh as at the training's first step."""
        if self._family is None:
            self._family = prepare.prepare(self.settled, self.kind, self.base)
        return self._family

    @contextmanager
    def at(self, checkpoint: Checkpoint) -> Iterator[Family]:
        """The model as it was at a checkpoint: where the training kept an average, it is the average that counts."""
        family = self.family
        try:
            adapters.restore(family, checkpoint.tensors("adapter"))
            average = Average(learnt(family), self.shown.ema)
            if self.shown.ema:
                average.restore(checkpoint.tensors("average"))
        except (KeyError, RuntimeError, ValueError) as error:
            raise BadInput(f"{checkpoint.path} does not fit the adapter that its training describes: {error}") from error
        with average.shown():
            yield family


def learnt(family: Family) -> list[torch.nn.Parameter]:
    """The adapters' weights, in the order in which a training's average keeps them."""
    return [parameter for part in family.parts().values() for parameter in part.parameters() if parameter.requires_grad]


def draw(pictures: Sequence[Picture], prompts: Sequence[str], model: Model, cache: Cache, stopping: Callable[[], None]) -> None:
    """Draw what is not there; the model is not loaded if all is."""
    missing = [picture for picture in pictures if not picture.path.is_file()]
    if not missing:
        return
    print(f"{len(pictures) - len(missing)} of {len(pictures)} pictures are there", flush=True)
    missing[0].path.parent.mkdir(parents=True, exist_ok=True)
    fill(cache, [], ["", *prompts], model.settled.encoding, stopping)
    sampler, started, done = Sampler(cache, model.shown, prompts, Ranks()), time.monotonic(), 0
    for checkpoint in dict.fromkeys(picture.checkpoint for picture in missing):
        with model.at(checkpoint) as family:
            for picture in (picture for picture in missing if picture.checkpoint == checkpoint):
                stopping()
                pixels = sampler.pixels(family, prompts[picture.prompt], generator(picture.seed, 0, STREAM))
                save_image(drawn(pixels), picture.path)
                done += 1
                tell(picture, len(pictures) - len(missing) + done, len(pictures), (time.monotonic() - started) / done)


def tell(picture: Picture, number: int, count: int, seconds: float) -> None:
    """The progress line."""
    rest = f"eta {seconds * (count - number):.0f} s"
    print(
        f"picture {number}/{count}: {picture.checkpoint.path.name} prompt {picture.prompt + 1} seed {picture.seed} {rest}",
        flush=True,
    )


def tidy(folder: Path, pictures: Sequence[Picture]) -> None:
    """Delete pictures of other settings or checkpoints: the folder holds what the report shows."""
    wanted = {picture.path.name for picture in pictures}
    for path in folder.glob("*.png"):
        if path.name not in wanted:
            path.unlink()
    for path in folder.glob(".*.part"):
        path.unlink()
