"""What the names of a dataset's files tell: the facts that presets are chosen by.

Rules for editing: pure; no file is opened. An image is what a training takes for one: its mask is none, and neither is a hidden file.
"""

from __future__ import annotations

from collections.abc import Iterable

from remote_trainer.dataset.images import SUFFIXES
from remote_trainer.dataset.tree import SKIPPED
from remote_trainer.model import Facts

_IMAGES = (*SUFFIXES, ".tif", ".tiff", ".avif")  # trainings read the last ones, too, though nothing here looks into them
_MASK = ".mask.png"


def facts_of(files: Iterable[str]) -> Facts:
    """Return the facts of a dataset with these files (relative paths)."""
    shipped = [parts for path in files if SKIPPED.isdisjoint(parts := path.split("/"))]
    return Facts(images=sum(_is_image(parts[-1].lower()) for parts in shipped), files=len(shipped))


def _is_image(name: str) -> bool:
    return name.endswith(_IMAGES) and not name.endswith(_MASK) and not name.startswith(".")
