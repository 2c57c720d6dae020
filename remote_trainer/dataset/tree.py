"""A folder as it is on disk: found once with one stat per file, read in order, and refused when it is not what it was.

Links: one that leads to a file or folder inside the tree is followed and shipped as what it leads to. One that leaves the tree is
refused (or followed, with ``outside_links``: a model folder of a hub cache is made of them). Devices, pipes, sockets and names that are
not UTF-8 or hold control characters are refused. Version control and system droppings are left out (``SKIPPED``), so that the same data
has the same digest on every machine.

Rules for editing: blocking; called in threads. A byte that was read must belong to the file that was found: size, times and inode are
compared before and after.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from remote_trainer.dataset.manifest import Entry, Part, header, padding
from remote_trainer.errors import DatasetError

SKIPPED = frozenset(
    {".git", ".hg", ".svn", "__pycache__", "__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini", ".ipynb_checkpoints"}
)
_BUFFER = 1 << 20  # fits the second-level cache, so that hashing finds the bytes there
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe that took a file's place must not hold us
_ZEROS = bytes(512)
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_MAX_NAME, _MAX_PATH = 255, 4000  # bytes; what Linux file systems take, with room for the folder it is unpacked in

Block = bytes | bytearray | memoryview
Signature = tuple[int, int, int, int]  # size, mtime_ns, ctime_ns, inode


@dataclass(frozen=True, slots=True)
class Found:
    """An entry and the place its bytes come from."""

    entry: Entry
    place: str
    signature: Signature


@dataclass(frozen=True, slots=True)
class Tree:
    """Everything below a root, by relative path."""

    root: str
    found: Mapping[str, Found]

    @property
    def entries(self) -> Sequence[Entry]:
        """All entries, in no particular order."""
        return [found.entry for found in self.found.values()]

    @property
    def newest_ns(self) -> int:
        """The latest change of any file, nanoseconds since the epoch."""
        return max((max(found.signature[1:3]) for found in self.found.values()), default=0)

    @property
    def signature(self) -> str:
        """Changes whenever a file, its place or its times change."""
        lines = sorted(f"{f.entry.path}\0{f.entry.folder}\0{f.place}\0{f.signature}" for f in self.found.values())
        return hashlib.sha256(os.fsencode("\0".join(lines))).hexdigest()


def scan(root: Path, *, outside_links: bool = False) -> Tree:
    """Find everything below a folder. DatasetError names the first thing that cannot be shipped, and what to do."""
    try:
        real = os.path.realpath(root, strict=True)
        found: dict[str, Found] = {}
        _Scan(str(root), real, outside_links, found).folder(real, "", (_identity(os.stat(real)),))
    except OSError as error:
        place = error.filename or root
        raise DatasetError(f"cannot read {place}: {error.strerror}; check that it exists and that you may read it") from error
    if not any(not entry.entry.folder for entry in found.values()):
        raise DatasetError(f"{root} holds no files; give the folder that holds the data itself")
    return Tree(real, found)


def scan_file(path: Path) -> Tree:
    """Return the tree of one file, which may be a link. DatasetError if it cannot be shipped."""
    if fault := name_fault(path.name):
        raise DatasetError(f"{path} cannot be shipped: it is {fault}")
    try:
        real = os.path.realpath(path, strict=True)
        status = os.stat(real)
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}; check that it exists and that you may read it") from error
    return Tree(os.path.dirname(real), {path.name: Found(Entry(path.name, status.st_size), real, _signature(status))})


def name_fault(name: str, below: str = "") -> str:
    """What keeps a name in the folder ``below`` (with its slash) from being shipped, and what to do; empty if nothing."""
    if len(below) + len(name) < _MAX_NAME // 4 and name.isascii() and name.isprintable():
        return ""  # most of them, in a tenth of the time
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "named with bytes that are not UTF-8; rename it"
    if _CONTROL.search(name):
        return "named with control characters; rename it"
    if size > _MAX_NAME or len(below.encode()) + size > _MAX_PATH:
        return "named too long for a Linux file system; shorten the path"
    return ""


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _signature(status: os.stat_result) -> Signature:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


@dataclass(frozen=True, slots=True)
class _Scan:
    shown: str  # the root as the user wrote it
    real: str
    outside_links: bool
    found: dict[str, Found]

    def folder(self, place: str, below: str, above: tuple[tuple[int, int], ...]) -> None:
        with os.scandir(place) as children:
            for child in children:
                if child.name in SKIPPED:
                    continue
                path = below + self._checked(child.name, below)
                linked = child.is_symlink()
                status = self._followed(child, path) if linked else child.stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    self.found[path] = Found(Entry(path, status.st_size), child.path, _signature(status))
                elif stat.S_ISDIR(status.st_mode):
                    if _identity(status) in above:
                        raise self._refused(path, "a link to a folder it lies in; remove the link")
                    self.found[path] = Found(Entry(path, folder=True), child.path, (0, 0, 0, 0))
                    self.folder(child.path, path + "/", (*above, _identity(status)))
                else:
                    raise self._refused(
                        path, "neither a file nor a folder (a device, pipe or socket); remove it or give another folder"
                    )

    def _checked(self, name: str, below: str) -> str:
        if fault := name_fault(name, below):
            raise self._refused(below + name, fault)
        return name

    def _followed(self, child: os.DirEntry[str], path: str) -> os.stat_result:
        try:
            target = os.path.realpath(child.path, strict=True)
        except OSError:
            raise self._refused(
                path, f"a link that leads nowhere ({os.readlink(child.path)}); remove it or restore its target"
            ) from None
        if not self.outside_links and os.path.commonpath([target, self.real]) != self.real:
            raise self._refused(path, f"a link that leaves the folder (to {target}); copy the target into the folder")
        return os.stat(target)

    def _refused(self, path: str, why: str) -> DatasetError:
        return DatasetError(f"{self.shown}/{path!r:.300} cannot be shipped: it is {why}")


def blocks(part: Part, tree: Tree) -> Iterator[Block]:
    """Yield the bytes of a chunk; each block is good until the next one is asked for.

    DatasetError when a file is not what was found, or changes while it is read.
    """
    if part.piece:
        yield from _piece(part, tree)
        return
    block = bytearray()
    for entry in part.members:
        block += header(entry)
        if entry.size:
            block += _whole(tree, entry)
            block += _ZEROS[: padding(entry.size)]
        if len(block) >= _BUFFER:
            yield block
            block = bytearray()
    if block:
        yield block


def _whole(tree: Tree, entry: Entry) -> bytes:
    found = tree.found.get(entry.path)
    try:
        file = os.open(found.place if found else "", _READ)
        try:
            content = os.read(file, entry.size)
            # Any change since the scan shows in the times, so one look afterwards is enough.
            same = found is not None and _signature(os.fstat(file)) == found.signature
        finally:
            os.close(file)
    except OSError as error:
        raise _unreadable(tree, entry.path, error) from error
    if not same or len(content) != entry.size:
        raise _changed(tree, entry.path)
    return content


def _piece(part: Part, tree: Tree) -> Iterator[memoryview]:
    found, offset, left = tree.found.get(part.path), part.offset, part.size
    try:
        file = os.open(found.place if found else "", _READ)
    except OSError as error:
        raise _unreadable(tree, part.path, error) from error
    try:
        buffer = memoryview(bytearray(_BUFFER))
        while left:
            got = os.preadv(file, [buffer[: min(left, _BUFFER)]], offset)
            # Before the block is handed on, so that a job that is about to fail sends little.
            if not got or found is None or _signature(os.fstat(file)) != found.signature:
                raise _changed(tree, part.path)
            yield buffer[:got]
            offset, left = offset + got, left - got
    except OSError as error:
        raise _unreadable(tree, part.path, error) from error
    finally:
        os.close(file)


def _unreadable(tree: Tree, path: str, error: OSError) -> DatasetError:
    return DatasetError(f"cannot read {tree.root}/{path}: {error.strerror}; check that it is there and that you may read it")


def _changed(tree: Tree, path: str) -> DatasetError:
    return DatasetError(f"{tree.root}/{path} changed while the data was read; stop what writes to it, then submit again")
