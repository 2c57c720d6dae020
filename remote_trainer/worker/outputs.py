"""Which files of a host's listing belong to which output of the plan, and what of them is complete. Pure.

A file belongs to one output: checkpoints come before final outputs, those before other artifacts. What is kept or dropped together is a
unit: a folder with its marker, or a single file.

Rules for editing: no I/O. The listing is the host's word: a path that is not a plain relative one never gets past ``arrange``. Names
that begin with a dot are matched only by a pattern that begins with one, as in a shell: trainers write to such names first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from posixpath import dirname

from remote_trainer.errors import HostError, UsageError
from remote_trainer.model import Output, OutputKind
from remote_trainer.objects.keys import check_key
from remote_trainer.ports import RemoteFile

MOST_FILES = 50_000
MOST_BYTES = 4 << 40

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PRECEDENCE = (OutputKind.CHECKPOINT, OutputKind.FINAL, OutputKind.ARTIFACT)


@dataclass(frozen=True, slots=True)
class Unit:
    """Files of one output that count together. ``name`` is the folder, or the file, relative to the output folder."""

    output: Output
    name: str
    files: tuple[RemoteFile, ...]
    mtime: int  # of the marker or file: what makes one unit newer than another

    @property
    def age(self) -> tuple[int, str]:
        """Sorts older units first; by number within the same second, so that step-1000 follows step-200."""
        return self.mtime, padded(self.name)


def recorded(output: Output) -> bool:
    """Is each unit of this output written down, because units are dropped or restored as a whole?"""
    return bool(output.marker or output.keep) or output.kind is OutputKind.CHECKPOINT


def wanted_globs(outputs: Iterable[Output]) -> Sequence[str]:
    """Return what to ask the host for."""
    return [f"{output.glob}/**" if output.marker else output.glob for output in outputs]


def arrange(outputs: Sequence[Output], listing: Sequence[RemoteFile]) -> tuple[list[Unit], list[str]]:
    """Return the complete units to keep, oldest first, and the paths that are refused. HostError if there is too much."""
    if len(listing) > MOST_FILES or sum(file.size for file in listing) > MOST_BYTES:
        raise HostError(f"the host lists {len(listing)} output files; at most {MOST_FILES} are kept: narrow the outputs' globs")
    refused = [file.path for file in listing if not _plain(file)]
    groups: dict[tuple[str, str], list[RemoteFile]] = {}
    for file in listing:
        if _plain(file) and (place := locate(outputs, file.path)):
            groups.setdefault((place[0].name, place[1]), []).append(file)
    by_name = {output.name: output for output in outputs}
    units = [unit for (output, name), files in groups.items() if (unit := _unit(by_name[output], name, files))]
    return sorted(_newest(units), key=lambda unit: unit.age), refused


def locate(outputs: Sequence[Output], path: str) -> tuple[Output, str] | None:
    """Return the output a path belongs to and the name of its unit."""
    for output in sorted(outputs, key=lambda output: _PRECEDENCE.index(output.kind)):
        if not output.marker:
            if _pattern(output.glob).fullmatch(path):
                return output, path
            continue
        folder = dirname(path)
        while folder:
            if _pattern(output.glob).fullmatch(folder):
                return output, folder
            folder = dirname(folder)
    return None


def padded(name: str) -> str:
    """Return the name with its numbers filled up, so that text order is their order."""
    return re.sub(r"\d+", lambda number: number[0].zfill(12), name)


def _unit(output: Output, name: str, files: Sequence[RemoteFile]) -> Unit | None:
    by_path: Mapping[str, RemoteFile] = {file.path: file for file in files}
    last = by_path.get(f"{name}/{output.marker}" if output.marker else name)
    return Unit(output, name, tuple(sorted(files, key=lambda file: file.path)), max(0, int(last.mtime))) if last else None


def _newest(units: Sequence[Unit]) -> Iterable[Unit]:
    """Leave out what would be dropped again at once."""
    rank: dict[str, int] = {}
    for unit in sorted(units, key=lambda unit: unit.age, reverse=True):
        rank[unit.output.name] = rank.get(unit.output.name, 0) + 1
        if not unit.output.keep or rank[unit.output.name] <= unit.output.keep:
            yield unit


def _plain(file: RemoteFile) -> bool:
    try:
        check_key(file.path)
    except UsageError:
        return False
    return file.size >= 0 and _SHA256.fullmatch(file.sha256) is not None


@cache
def _pattern(glob: str) -> re.Pattern[str]:
    *folders, last = glob.split("/")
    text = "".join(r"(?:(?!\.)[^/]+/)*" if folder == "**" else _name(folder) + "/" for folder in folders)
    return re.compile(text + (r"(?:(?!\.)[^/]+/)*(?!\.)[^/]+" if last == "**" else _name(last)), re.DOTALL)


def _name(glob: str) -> str:
    parts = re.findall(r"\*+|\?|\[!?[^]]+\]|.", glob, re.DOTALL)
    known = {"*": "[^/]*", "**": "[^/]*", "?": "[^/]"}
    text = "".join(known.get(part) or (part.replace("[!", "[^", 1) if len(part) > 2 else re.escape(part)) for part in parts)
    return text if glob.startswith(".") else r"(?!\.)" + text
