"""How a tree becomes chunks: which bytes, in which order, under which name. The same tree gives the same digest on every machine.

Small files travel in bundles: tars of whole files, cut at file boundaries, each unpacked by itself as it arrives. A file bigger than a
chunk travels in pieces: raw bytes with the place they belong to. So nothing is written twice on the host, a lost connection costs a chunk,
and chunks may arrive in any order (after the first bundle, which makes all folders).

Rules for editing: pure. Any change of the bytes changes every digest there is: raise ``FORMAT`` and the golden digests of the tests.
Headers are ustar with GNU extensions ('L' records for long names, base-256 sizes), because that is what GNU tar, bsdtar and busybox
all read; pax records are skipped by busybox. Names are raw UTF-8.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from remote_trainer.model import Chunk

FORMAT = 1
BLOCK = 512
#: Nothing on the host may write to an input: other jobs read the same tree.
FILE_MODE, FOLDER_MODE = 0o444, 0o755
#: Chunk sizes: 16 MiB keeps a retry cheap and hides a round trip; 32 MiB keeps the list of a 100 GB model short.
SMALL_CHUNK, LARGE_CHUNK = 16 << 20, 32 << 20
_LARGE_TREE = 8 << 30

_OCTAL_SIZE_LIMIT = 8 << 30  # what 11 octal digits hold
_NAME_BYTES, _PREFIX_BYTES = 100, 155
_MAGIC = b"ustar\x0000"


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or a folder of the tree. ``path`` is relative, POSIX, normalised, without a trailing slash."""

    path: str
    size: int = 0
    folder: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """A chunk before its bytes are known: the members of a bundle, or ``size`` bytes of one big file from ``offset`` on."""

    members: tuple[Entry, ...]
    size: int
    piece: bool = False
    offset: int = 0

    @property
    def path(self) -> str:
        """The file that a piece belongs to; empty for a bundle."""
        return self.members[0].path if self.piece else ""


def lay_out(entries: Iterable[Entry]) -> tuple[Part, ...]:
    """Cut a tree: a bundle of all folders, then the files by the bytes of their paths."""
    ordered = sorted(entries, key=lambda entry: entry.path.encode())
    chunk = SMALL_CHUNK if sum(entry.size for entry in ordered) < _LARGE_TREE else LARGE_CHUNK
    # With the root, so that there always is such a bundle, and it is small: all other chunks wait for the first one.
    folders = (Entry(".", folder=True), *(entry for entry in ordered if entry.folder))
    parts = [Part(folders, sum(map(packed_size, folders)))]
    parts += _bundles([entry for entry in ordered if not entry.folder and entry.size <= chunk], chunk)
    for entry in ordered:
        if entry.size > chunk:
            parts += (Part((entry,), min(chunk, entry.size - at), True, at) for at in range(0, entry.size, chunk))
    return tuple(parts)


def _bundles(files: Sequence[Entry], chunk: int) -> list[Part]:
    bundles: list[Part] = []
    members: list[Entry] = []
    size = 0
    for entry in files:
        grown = size + packed_size(entry)
        if members and grown > chunk:
            bundles.append(Part(tuple(members), size))
            members, grown = [], packed_size(entry)
        members.append(entry)
        size = grown
    if members:
        bundles.append(Part(tuple(members), size))
    return bundles


def packed_size(entry: Entry) -> int:
    """Bytes an entry takes in a bundle: headers, content, padding."""
    name = len(entry.path.encode()) + entry.folder
    long = 0 if name <= _NAME_BYTES or _split(_written(entry))[1] is not None else BLOCK + name + 1 + padding(name + 1)
    return BLOCK + long + entry.size + padding(entry.size)


def padding(size: int) -> int:
    """Zero bytes after content of that size."""
    return -size % BLOCK


def header(entry: Entry) -> bytes:
    """The tar header of an entry, with an 'L' record before it where the name is too long for one."""
    name = _written(entry)
    prefix, short = _split(name)
    kind = b"5" if entry.folder else b"0"
    mode = FOLDER_MODE if entry.folder else FILE_MODE
    if short is not None:
        return _record(short, prefix, mode, entry.size, kind)
    text = name + b"\0"
    long_name = _record(b"././@LongLink", b"", 0, len(text), b"L") + text + bytes(padding(len(text)))
    return long_name + _record(name[:_NAME_BYTES], b"", mode, entry.size, kind)


def _written(entry: Entry) -> bytes:
    return entry.path.encode() + (b"/" if entry.folder else b"")


def _split(name: bytes) -> tuple[bytes, bytes | None]:
    """Return (prefix, name) that fit their fields, (b"", None) if none do."""
    if len(name) <= _NAME_BYTES:
        return b"", name
    cut = name.rfind(b"/", 0, min(_PREFIX_BYTES + 1, len(name) - 1))
    if cut > 0 and len(name) - cut - 1 <= _NAME_BYTES:
        return name[:cut], name[cut + 1 :]
    return b"", None


def _record(name: bytes, prefix: bytes, mode: int, size: int, kind: bytes) -> bytes:
    written_size = b"%011o\0" % size if size < _OCTAL_SIZE_LIMIT else b"\x80" + size.to_bytes(11, "big")
    # name, mode, owner and group, size, time; then type, no link, magic, no names, no device, prefix
    before = b"%b%07o\0%b%b%b" % (name.ljust(_NAME_BYTES, b"\0"), mode, b"0000000\0" * 2, written_size, b"00000000000\0")
    checksum = sum(name) + sum(prefix) + sum(kind) + sum(before[_NAME_BYTES:]) + sum(_MAGIC) + 8 * ord(" ")
    return b"%b%06o\0 %b%b%b%b%b" % (
        before,
        checksum,
        kind,
        bytes(100),
        _MAGIC,
        bytes(80),
        prefix.ljust(_PREFIX_BYTES + 12, b"\0"),
    )


def describe(chunks: Iterable[Chunk]) -> bytes:
    """The manifest: one line a chunk, in order. The host is told to expect nothing else."""
    lines = [f"remote-trainer input {FORMAT}"]
    lines += (f"piece {c.sha256} {c.size} {c.offset} {c.path}" if c.path else f"bundle {c.sha256} {c.size}" for c in chunks)
    return "\n".join([*lines, ""]).encode()


def digest_of(chunks: Iterable[Chunk]) -> str:
    """The name of the whole: the SHA-256 of its manifest, so that chunks can be hashed side by side and no byte is hashed twice."""
    return hashlib.sha256(describe(chunks)).hexdigest()
