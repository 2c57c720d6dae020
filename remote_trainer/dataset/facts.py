"""What the names of a dataset's files tell: the facts that presets are chosen by.

Rules for editing: pure; no file is opened. An image is what a training takes for one: its mask is none, and neither is a hidden file.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

from remote_trainer.dataset.images import SUFFIXES
from remote_trainer.dataset.tree import SKIPPED
from remote_trainer.model import Facts

_IMAGES = SUFFIXES | {".tif", ".tiff", ".avif"}  # trainings read these, too, though nothing here looks into them
_MASK = ".mask.png"


def facts_of(files: Iterable[str]) -> Facts:
    """Return the facts of a dataset with these files (relative paths)."""
    shipped = [path for path in map(PurePosixPath, files) if SKIPPED.isdisjoint(path.parts)]
    return Facts(images=sum(map(_is_image, shipped)), files=len(shipped))


def _is_image(path: PurePosixPath) -> bool:
    name = path.name.lower()
    return path.suffix.lower() in _IMAGES and not name.startswith(".") and not name.endswith(_MASK)
