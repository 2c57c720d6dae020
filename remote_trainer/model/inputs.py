"""Trees that are shipped to a host. Rules for editing: as in the package's docstring."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A part of an input that travels and is verified by itself, named by its SHA-256 (hex).

    Without ``path`` it is a tar of whole files; with one it is the bytes of that big file from ``offset`` on.
    """

    sha256: str
    size: int
    path: str = ""
    offset: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A tree shipped to the host under its digest: the dataset, the tool's own files, a base model.

    ``digest`` is the SHA-256 (hex) of the list of its chunks (dataset/manifest.py), so it is the same wherever the tree is packed.
    """

    name: str  # "dataset", "tool", "base"
    source: str  # where it was read from, for people
    digest: str
    size: int  # bytes of all chunks
    files: int
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of a job's data when it is submitted; presets are chosen by it, and name its fields."""

    images: int = 0  # image files, without masks (NAME.mask.png)
    files: int = 0
