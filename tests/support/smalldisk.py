"""A folder that is a small disk of its own, and how it gets full.

Rules for editing: needs root, and leaves the test out where it is not; the disk goes at the end, whatever still uses it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_BLOCK = 4096


@contextmanager
def small_disk(folder: Path, size: str, *, names: int | None = None) -> Iterator[Path]:
    """Mount a disk of that size (`512k`) on a folder, with room for so many files and folders where that is given."""
    folder.mkdir(parents=True, exist_ok=True)
    options = f"size={size}" if names is None else f"size={size},nr_inodes={names}"
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs root, to mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def grow(folder: Path, size: str) -> None:
    """Let a small disk have that size from now on."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Write into one file until nothing more can be written; return it."""
    path = folder / "fill"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(_BLOCK))
        except OSError:
            return path
