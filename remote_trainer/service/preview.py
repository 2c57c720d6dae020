"""What a checked order would ship, measured without packing it; and packing a dataset ahead of any job.

Rules for editing: ``transfers`` reads folders and writes nothing.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from remote_trainer import plugins
from remote_trainer.config import Settings
from remote_trainer.dataset.cache import Cache
from remote_trainer.dataset.pack import pack
from remote_trainer.dataset.sources import WEIGHTS, open_source
from remote_trainer.dataset.tree import scan, scan_file
from remote_trainer.model import Input
from remote_trainer.recipe.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """One input that would be shipped; sizes are None where they are known only once it is packed (archives, buckets)."""

    name: str
    source: str
    files: int | None = None
    size: int | None = None  # bytes


async def transfers(recipe: Recipe, sources: Mapping[str, str]) -> list[Transfer]:
    """Return what would be sent to a host that has nothing of it yet: inputs by name, and the tool's files."""
    return await asyncio.to_thread(_transfers, recipe, sources)


def _transfers(recipe: Recipe, sources: Mapping[str, str]) -> list[Transfer]:
    linked = {rule.name for rule in recipe.inputs if rule.outside_links}
    found = [_measure(name, source, outside_links=name in linked) for name, source in sources.items()]
    for path in plugins.tool_files(recipe).values():
        files = list(_shipped(path))
        size = sum(file.stat().st_size for file in files)
        found.append(Transfer(name="tool", source=str(path), files=len(files), size=size))
    return found


def _measure(name: str, source: str, *, outside_links: bool) -> Transfer:
    if "://" in source or not (Path(source).is_dir() or source.endswith(WEIGHTS)):
        open_source(source)  # DatasetError if it is nothing that can be packed
        return Transfer(name=name, source=source)
    tree = scan(Path(source), outside_links=outside_links) if Path(source).is_dir() else scan_file(Path(source))
    files = [entry for entry in tree.entries if not entry.folder]
    return Transfer(name=name, source=source, files=len(files), size=sum(entry.size for entry in files))


def _shipped(path: Path) -> Iterator[Path]:
    """Yield the files of a tool's file or folder, without what copy_tool_files leaves out."""
    if not path.is_dir():
        yield path
        return
    names = os.listdir(path)
    for name in sorted(set(names) - plugins.LITTER(str(path), names)):
        yield from _shipped(path / name)


async def pack_dataset(settings: Settings, source: str) -> Input:
    """Pack and hash a dataset into the cache, so that a later submit finds it done."""
    return await pack(source, Cache(settings.cache_dir), name="dataset")
