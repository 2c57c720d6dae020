"""Entries of the cache kept in memory, so that after the first epoch a step reads nothing from disk.

What was read is kept until the room is used up, and never makes way: each epoch wants every entry once, in another order, so whatever
was thrown out would be missed as often as what took its place.

Editing rules: what is kept is as its file holds it, on the CPU, and nobody changes it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch
from safetensors.torch import load_file

Tensors = dict[str, torch.Tensor]
SHARE = 4
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def available() -> int:
    """Bytes of memory that may be taken: what the machine has left, or what a container is given in all."""
    try:
        found = [int(re.findall(r"MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text())[0]) * 1024]
    except (OSError, IndexError):  # no Linux
        found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in LIMITS:
        text = file.read_text().strip() if file.is_file() else "max"
        found += [int(text)] if text.isdigit() else []
    return min(found)


def taken(size: int, pinned: bool) -> int:
    """Bytes that a tensor of so many takes: torch pins memory in powers of two."""
    return 1 << (size - 1).bit_length() if pinned and size else size


class Kept:
    """The entries by their files; the default room is a quarter of what is available, shared by the processes of a training."""

    def __init__(self, room: int | None = None) -> None:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or 1)
        self.room = available() // SHARE // processes if room is None else room
        self._entries: dict[Path, Tensors] = {}

    def read(self, path: Path, device: torch.device) -> Tensors:
        """An entry on a device; its tensors may be the kept ones."""
        entry = self._entries.get(path)
        if entry is None:
            entry = load_file(path)
            size = sum(taken(value.nbytes, device.type == "cuda") for value in entry.values())
            if size <= self.room:
                # From pinned memory a GPU fetches while the CPU goes on.
                entry = {key: value.pin_memory() for key, value in entry.items()} if device.type == "cuda" else entry
                self._entries[path] = entry
                self.room -= size
        return {key: value.to(device, non_blocking=True) for key, value in entry.items()}
