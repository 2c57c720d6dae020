"""Photographs with their captions, cut as the trainer cuts them at the settings of `make demo-visible`.

Editing rules: a base knows a picture only as it was shown; so sizes and cuts here and in the Makefile change together.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

FOLDER = Path(__file__).resolve().parents[1] / "tests" / "fixtures" / "muybridge-cat"
# Of the shapes that eight times smaller latents can have, three to two is closest to the cat's 161 × 114 px.
LONG, SHORT = 96, 64
UNKNOWN = "cat"
"""What the base is not to draw and the LoRA teaches: photographs with this word in their caption."""


@dataclass(frozen=True, slots=True)
class Photograph:
    """One photograph."""

    name: str
    caption: str
    original: tuple[int, int]
    """Width and height of the file, px."""
    corner: tuple[int, int]
    """Top and left of the cut in the scaled file, px."""
    image: Image.Image
    """The cut, LONG × SHORT px or upright."""

    @property
    def unknown(self) -> bool:
        """Whether it is of what the base is not to draw."""
        return UNKNOWN in re.findall(r"\w+", self.caption)

    @property
    def pixels(self) -> torch.Tensor:
        """(3, height, width), from -1 to 1."""
        return torch.from_numpy(np.array(self.image, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


def cut(image: Image.Image) -> tuple[tuple[int, int], Image.Image]:
    """The middle of an image, scaled to cover the size, and its top and left corner."""
    width, height = (LONG, SHORT) if image.width >= image.height else (SHORT, LONG)
    scale = max(width / image.width, height / image.height)
    size = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return (top, left), image.resize(size, Image.Resampling.LANCZOS).crop((left, top, left + width, top + height))


def read(folder: Path = FOLDER) -> list[Photograph]:
    """Every photograph of a folder, by name."""
    found = []
    for path in sorted(folder.glob("*.jpg")):
        image = Image.open(path).convert("RGB")
        caption = path.with_suffix(".txt").read_text(encoding="utf-8").strip()
        found.append(Photograph(path.stem, caption, image.size, *cut(image)))
    return found
