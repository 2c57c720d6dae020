"""Checkpoints: folders `step-000100` that hold the adapter, the optimiser and the position, and count only once verified.

    save(folder, step, tensors, state)   writes aside, syncs, writes manifest.json last, renames: a crash leaves no half checkpoint
    newest(folder)                       the newest one whose manifest verifies; damaged ones are named and passed over
    prune, forget                        delete what is old, and what a training that goes back has left
    check_same(saved, now)               refuses to continue under another configuration, naming what differs

What is random is drawn from (seed, step), so the step alone is the whole random state.

Editing rules: safetensors and JSON only, never pickle; raise FORMAT when an old checkpoint could no longer be read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lora.ends import BadInput

FORMAT = 1
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint."""

    path: Path
    step: int

    def tensors(self, name: str) -> Tensors:
        """The tensors saved under that name, on the CPU."""
        return load_file(self.path / f"{name}.safetensors")

    def state(self) -> dict[str, Any]:
        """The JSON saved beside them."""
        return dict(json.loads((self.path / "state.json").read_text(encoding="utf-8")))


def name_of(step: int) -> str:
    """step-000100"""
    return f"step-{step:06d}"


def sync(path: Path) -> None:
    """Make a file's content, or a folder's entries, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Digest of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def save(folder: Path, step: int, tensors: Mapping[str, Tensors], state: Mapping[str, Any]) -> Path:
    """Write the checkpoint of a step; one of that step that is there already is replaced. What cannot be written whole leaves nothing."""
    final, part = folder / name_of(step), folder / f".{name_of(step)}.part"
    shutil.rmtree(part, ignore_errors=True)
    try:
        write(part, step, tensors, state)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(part, final)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    sync(folder)
    return final


def write(part: Path, step: int, tensors: Mapping[str, Tensors], state: Mapping[str, Any]) -> None:
    """A folder with everything in it, the manifest last, safe from a power cut."""
    part.mkdir(parents=True)
    for name, content in tensors.items():
        save_file({key: value.detach().contiguous().cpu() for key, value in content.items()}, part / f"{name}.safetensors")
    (part / "state.json").write_text(json.dumps({**state, "step": step}, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    files = {file.name: {"size": file.stat().st_size, "sha256": sha256(file)} for file in sorted(part.iterdir())}
    for file in part.iterdir():
        sync(file)
    manifest = part / "manifest.json"
    manifest.write_text(json.dumps({"format": FORMAT, "step": step, "files": files}, indent=2) + "\n", encoding="utf-8")
    sync(manifest)
    sync(part)


def step_of(path: Path) -> int:
    """The step that a checkpoint is named by; 0 if it is named otherwise."""
    number = path.name.removeprefix("step-")
    return int(number) if number.isdecimal() else 0


def prune(folder: Path, keep: int, every: int = 0) -> None:
    """Delete all but the newest, and what crashes left half written; the newest at a multiple of so many steps stays in any case."""
    there = sorted(folder.glob("step-*"))
    regular = [path for path in there if every and step_of(path) % every == 0][-1:]
    for old in [*there[:-keep], *folder.glob(".step-*.part")]:
        if old not in regular:
            shutil.rmtree(old)


def forget(folder: Path, step: int) -> None:
    """Delete those of later steps."""
    for path in folder.glob("step-*"):
        if step_of(path) > step:
            shutil.rmtree(path)


def fault(path: Path) -> str:
    """Why a checkpoint does not count, or an empty string."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return f"its format {manifest['format']} is unknown here"
        for name, facts in manifest["files"].items():
            if sha256(path / Path(name).name) != facts["sha256"]:
                return f"{name} does not match its digest"
        return "" if name_of(manifest["step"]) == path.name else f"it holds step {manifest['step']}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its manifest cannot be verified: {error!r}"


def newest(folder: Path, every: int = 1) -> Checkpoint | None:
    """The newest checkpoint that verifies, of those at multiples of so many steps."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        if reason := fault(path):
            print(f"checkpoint {path.name} is damaged ({reason}); trying the one before", flush=True)
        elif step_of(path) % every == 0:
            return Checkpoint(path, step_of(path))
    return None


def check_same(saved: Mapping[str, Any], now: Mapping[str, Any], checkpoint: Path) -> None:
    """Refuse to continue a training under settings that would make it another one."""
    differing = [key for key in sorted({*saved, *now}) if saved.get(key) != now.get(key)]
    if differing:
        lines = "".join(f"\n  {key}: {saved.get(key)} in the checkpoint, {now.get(key)} now" for key in differing)
        raise BadInput(
            f"{checkpoint} was made with another configuration; use that one, or another --output to start anew:{lines}"
        )
