"""What is known of packed inputs: where the bytes of each chunk are, and which folder had which digest.

    chunks/ab/abcdef…       bytes of chunks that are kept (small data, and what came from archives and buckets)
    trees/DIGEST.json       the files of a folder as they were when packed: chunks that are not kept are read again from there
    sources/KEY.json        digest and signature of a source, so that an unchanged one is not read again
    sound/KEY.json          signature of a source whose images were examined, and what was counted, likewise

Everything can be deleted at any time; what is missing is packed again from the source, if it still gives the same digest.

Rules for editing: blocking; called in threads. Files appear by rename, so that workers and commands may share a cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator
from io import BufferedWriter
from pathlib import Path
from typing import Any

from remote_trainer.dataset.manifest import Entry, Part, lay_out
from remote_trainer.dataset.tree import Found, Tree, blocks
from remote_trainer.document import from_document, to_document
from remote_trainer.errors import DatasetError
from remote_trainer.model import Facts, Input

_READ = 1 << 20
_ABANDONED_S = 24 * 3600  # nobody writes a draft for that long


class Cache:
    """A folder of packed inputs, shared by every process of this machine that is given the same path."""

    def __init__(self, root: Path) -> None:
        self._root = root

    # -- chunks that are kept

    def chunk_path(self, sha256: str) -> Path:
        """Return where a kept chunk lies, or would."""
        return self._root / "chunks" / sha256[:2] / sha256

    @contextlib.contextmanager
    def drafting(self) -> Iterator[BufferedWriter]:
        """Open a file that is gone afterwards unless it was kept. DatasetError when this machine's disk is full."""
        folder = self._root / "drafts"
        draft = folder / secrets.token_hex(8)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with draft.open("xb") as file:
                yield file
        except OSError as error:
            raise DatasetError(
                f"cannot write the cache {self._root}: {error.strerror}; free space or set another cache_dir"
            ) from error
        finally:
            draft.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove drafts that killed processes left behind."""
        for draft in (self._root / "drafts").glob("*"):
            with contextlib.suppress(FileNotFoundError):  # another process sweeps, or has just finished it
                if draft.stat().st_mtime < time.time() - _ABANDONED_S:
                    draft.unlink()

    def keep(self, draft: BufferedWriter, sha256: str) -> None:
        """Give a finished draft the name of a chunk."""
        self._publish(draft, self.chunk_path(sha256))

    def _publish(self, draft: BufferedWriter, target: Path) -> None:
        draft.flush()
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(draft.name, target)

    # -- sources

    def remember(self, given: Input, *, tree: Tree | None, signature: str) -> None:
        """Note a packed source: the folder to read it from again, and (unless empty) the signature it keeps while nothing changes."""
        if tree is not None:
            files = [[f.entry.path, f.entry.folder, f.place, *f.signature] for f in tree.found.values()]
            self._write(f"trees/{given.digest}.json", {"root": tree.root, "files": files})
        if signature:
            self._write(f"sources/{_key(given.source)}.json", {"signature": signature, "input": to_document(given)})

    def recall(self, source: str, signature: str) -> Input | None:
        """Return what this source was packed as, None if it changed or its bytes are not known any more."""
        document = self._read(f"sources/{_key(source)}.json")
        if document is None or document["signature"] != signature:
            return None
        given = from_document(Input, document["input"])
        return given if self._kept(given) or (self._root / "trees" / f"{given.digest}.json").exists() else None

    def note_sound(self, source: str, signature: str, facts: Facts) -> None:
        """Note that the data was examined in this state and can be used, and what it holds."""
        self._write(f"sound/{_key(source)}.json", {"signature": signature, "facts": to_document(facts)})

    def known_facts(self, source: str, signature: str) -> Facts | None:
        """Return what the data holds if it was examined, in this very state, before; else None."""
        document = self._read(f"sound/{_key(source)}.json")
        if document is None or document.get("signature") != signature or "facts" not in document:
            return None
        return from_document(Facts, document["facts"])

    # -- bytes

    def open(self, given: Input) -> Packed:
        """Return the way to an input's bytes; DatasetError if nothing here knows them any more."""
        document = self._read(f"trees/{given.digest}.json")
        kept = self._kept(given)
        if document is None and not kept:
            raise DatasetError(f"{given.source} is not in the cache any more ({self._root}); submit again")
        return Packed(self, given, None if kept or document is None else _tree(document))

    def _kept(self, given: Input) -> bool:
        return all(self.chunk_path(chunk.sha256).exists() for chunk in given.chunks)

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            document = json.loads((self._root / name).read_bytes())
        except (FileNotFoundError, ValueError):  # a file cut short by a full disk is as good as none
            return None
        return document if isinstance(document, dict) else None

    def _write(self, name: str, document: dict[str, Any]) -> None:
        with self.drafting() as draft:
            draft.write(json.dumps(document).encode("utf-8", "surrogateescape"))
            self._publish(draft, self._root / name)


class Packed:
    """The chunks of one input, as bytes."""

    def __init__(self, cache: Cache, given: Input, tree: Tree | None) -> None:
        self._cache, self._given, self._tree = cache, given, tree
        self._parts: tuple[Part, ...] = lay_out(tree.entries) if tree else ()
        if tree and [part.size for part in self._parts] != [chunk.size for chunk in given.chunks]:
            raise DatasetError(f"{given.source} was packed by another version of this program; submit again")

    def kept(self, number: int) -> Path | None:
        """Return the file that holds exactly this chunk, if there is one."""
        path = self._cache.chunk_path(self._given.chunks[number].sha256)
        return path if path.exists() else None

    def read(self, number: int, start: int = 0) -> Iterator[bytes | bytearray | memoryview]:
        """Yield a chunk's bytes from ``start`` on. They are what the folder holds now: who receives them compares the digest."""
        path = self.kept(number)
        if path is None and self._tree:
            for block in blocks(self._parts[number], self._tree):
                if start < len(block):
                    yield memoryview(block)[start:] if start else block
                start = max(0, start - len(block))
            return
        try:
            with (path or self._cache.chunk_path(self._given.chunks[number].sha256)).open("rb") as file:
                file.seek(start)
                while block := file.read(_READ):
                    yield block
        except OSError as error:
            raise DatasetError(f"a packed chunk of {self._given.source} cannot be read: {error}; submit again") from error

    def verify(self, number: int) -> None:
        """Make sure that our bytes are still those that were announced: DatasetError if the source was edited, or our copy is damaged."""
        sha256 = hashlib.sha256()
        for block in self.read(number):
            sha256.update(block)
        if sha256.hexdigest() == self._given.chunks[number].sha256:
            return
        kept = self.kept(number)
        if kept:  # or the next submit would find it there
            kept.unlink(missing_ok=True)
            raise DatasetError(f"the cached copy of {self._given.source} was damaged and is removed; submit again")
        raise DatasetError(f"{self._given.source} is not what it was when the job was submitted; submit again")


def _key(source: str) -> str:
    return hashlib.sha256(os.fsencode(source)).hexdigest()[:32]


def _tree(document: dict[str, Any]) -> Tree:
    found = {
        path: Found(Entry(path, 0 if folder else size, folder), place, (size, mtime, ctime, inode))
        for path, folder, place, size, mtime, ctime, inode in document["files"]
    }
    return Tree(document["root"], found)
