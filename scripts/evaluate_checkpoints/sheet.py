"""sheet.png: all pictures side by side, a row for each checkpoint, a column for each prompt and seed, the best marked.

Editing rules: nothing is computed here but places.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluate_checkpoints.pictures import Picture
from evaluate_checkpoints.scoring import Verdict
from lora.sampling import save_image
from PIL import Image, ImageDraw, ImageFont

WIDEST = 4000
GAP, SPACE, MARGIN, LABEL = 6, 22, 24, 150
INK, FAINT, PAPER, MARK = "#1d2430", "#6b7484", "#ffffff", "#1a8f4c"


@dataclass(frozen=True, slots=True)
class Grid:
    """Where each picture goes."""

    cell: int
    """Side of a picture, px."""
    prompts: int
    seeds: int
    rows: int
    head: int
    """Height of the prompts and seeds above the pictures, px."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the sheet."""
        last = self.corner(self.rows - 1, self.prompts - 1, self.seeds - 1)
        return last[0] + self.cell + MARGIN, last[1] + self.cell + MARGIN

    def corner(self, row: int, prompt: int, seed: int) -> tuple[int, int]:
        """(left, top) of a picture."""
        column = prompt * (self.seeds * (self.cell + GAP) - GAP + SPACE) + seed * (self.cell + GAP)
        return MARGIN + LABEL + column, MARGIN + self.head + row * (self.cell + 2 * GAP)


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font."""
    return ImageFont.load_default(size)


def wrapped(text: str, width: int, size: int, lines: int) -> str:
    """A prompt in at most so many lines of that width, px."""
    return "\n".join(textwrap.wrap(text, max(8, int(width / (size * 0.52))), max_lines=lines, placeholder=" …"))


def make(path: Path, pictures: Sequence[Picture], prompts: Sequence[str], seeds: Sequence[int], verdict: Verdict) -> None:
    """Write the sheet."""
    with Image.open(pictures[0].path) as first:
        side = first.width
    columns = len(prompts) * len(seeds)
    cell = max(48, min(256, max(side, 128), (WIDEST - LABEL - 2 * MARGIN) // columns - GAP))
    rows = {step: number for number, step in enumerate(sorted(verdict.scores))}
    grid = Grid(cell, len(prompts), len(seeds), len(rows), head=86)
    sheet = Image.new("RGB", grid.size, PAPER)
    pen = ImageDraw.Draw(sheet)
    heads(pen, grid, prompts, seeds)
    labels(pen, grid, rows, verdict)
    for picture in pictures:
        with Image.open(picture.path) as image:
            small = image.convert("RGB").resize(
                (cell, cell), Image.Resampling.LANCZOS if side >= cell else Image.Resampling.BICUBIC
            )
        sheet.paste(small, grid.corner(rows[picture.checkpoint.step], picture.prompt, seeds.index(picture.seed)))
    save_image(sheet, path)


def heads(pen: ImageDraw.ImageDraw, grid: Grid, prompts: Sequence[str], seeds: Sequence[int]) -> None:
    """The prompts and, below them, the seeds."""
    width = grid.seeds * (grid.cell + GAP) - GAP
    for number, prompt in enumerate(prompts):
        left = grid.corner(0, number, 0)[0]
        pen.multiline_text((left, MARGIN), wrapped(prompt or "(empty prompt)", width, 15, 3), INK, font(15), spacing=4)
        for place, seed in enumerate(seeds):
            left, top = grid.corner(0, number, place)
            pen.text((left + grid.cell / 2, top - 6), f"seed {seed}", FAINT, font(13), anchor="mb")


def labels(pen: ImageDraw.ImageDraw, grid: Grid, rows: Mapping[int, int], verdict: Verdict) -> None:
    """The checkpoints and their scores; the best one has a frame around its row."""
    for step, row in rows.items():
        top = grid.corner(row, 0, 0)[1]
        best = step == verdict.best
        if best:
            box = (MARGIN - GAP, top - GAP, grid.size[0] - MARGIN + GAP, top + grid.cell + GAP - 1)
            pen.rectangle(box, outline=MARK, width=3, fill="#eef8f1")
        middle = top + grid.cell / 2
        pen.text((MARGIN + 8, middle - 12), f"step {step}", MARK if best else INK, font(20), anchor="lm")
        pen.text(
            (MARGIN + 8, middle + 12),
            f"{verdict.scores[step]:.3f}{'  best' if best else ''}",
            MARK if best else FAINT,
            font(15),
            anchor="lm",
        )
