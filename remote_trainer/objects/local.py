"""A folder as object store: every object is a plain file under its key, so people can look at it with their own tools.

The digest of each object lies in a parallel tree (``.meta/<key>``), together with the size and change time of the file it was
computed for: a crash between the two writes, or somebody editing a file, shows as a stale note and the file is read again.

Rules for editing: temp, fsync, rename, then fsync of the folder for everything written; all work on the disk happens in threads.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from remote_trainer.errors import Conflict, DigestMismatch, Incomplete, NotFound, ObjectsUnavailable
from remote_trainer.objects.blocking import BLOCK, digest_of, move, size_of, sync
from remote_trainer.objects.keys import check_key, folder_prefix
from remote_trainer.ports import Progress, StoredObject
from remote_trainer.threads import Threads, Watch

T = TypeVar("T")

_META, _TEMP = ".meta", ".tmp"
_ABANDONED_S = 24 * 3600  # no copy takes that long


class LocalObjects:
    """Objects below ``root``; the folder is made on first use."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._threads = Threads("objects")
        self._swept = False

    async def put(self, key: str, path: Path, *, sha256: str, progress: Progress | None = None) -> StoredObject:
        watch = Watch(progress)
        return await self._threaded(watch, lambda: self._put(key, path, sha256, watch))

    async def get(self, key: str, path: Path, *, sha256: str, progress: Progress | None = None) -> None:
        watch = Watch(progress)
        await self._threaded(watch, lambda: self._get(key, path, sha256, watch))

    async def head(self, key: str) -> StoredObject | None:
        watch = Watch()
        return await self._threaded(watch, lambda: self._head(key, watch))

    async def verify(self, key: str, *, size: int, sha256: str) -> None:
        watch = Watch()
        await self._threaded(watch, lambda: self._verify(key, size, sha256, watch))

    async def list(self, prefix: str) -> AsyncIterator[StoredObject]:
        for key in await self._threaded(Watch(), lambda: self._keys(folder_prefix(prefix))):
            if found := await self.head(key):  # None: removed since
                yield found

    async def delete(self, key: str) -> None:
        await self._threaded(Watch(), lambda: self._delete(key))

    async def presign(self, key: str, *, expires_s: int) -> str:
        """Return a file:// URL; it does not expire."""
        if await self.head(key) is None:
            raise NotFound(f"no object {key} in {self._root}")
        return self._path(key).as_uri()

    async def check(self) -> str:
        free = await self._threaded(Watch(), self._probe)
        return f"folder {self._root}, writable, {free / 1e9:.1f} GB free"

    async def _threaded(self, watch: Watch, work: Callable[[], T]) -> T:
        """Run work in a thread and name every disk error."""
        try:
            return await self._threads.run(watch, work)
        except OSError as error:
            raise self._translate(error) from error

    def _translate(self, error: OSError) -> Exception:
        match error.errno:
            case errno.ENOSPC | errno.EDQUOT:
                free = shutil.disk_usage(next(each for each in (self._root, *self._root.parents) if each.exists())).free
                return ObjectsUnavailable(
                    f"disk full while using the object folder {self._root} ({free / 1e6:.1f} MB free there): make room; it is tried again"
                )
            case errno.ENOTDIR | errno.EISDIR | errno.EEXIST if self._root.is_dir():
                return Conflict(f"in {self._root} one object's key is the folder of another ({error}): rename one of the files")
        return ObjectsUnavailable(f"the object folder {self._root} cannot be used ({error}): check its owner, mode and mount")

    # ------------------------------------------------------------------------------------------- in a thread, below here

    def _path(self, key: str) -> Path:
        check_key(key)
        if key.split("/", 1)[0] in (_META, _TEMP):
            raise Conflict(f"object key {key!r} lies in a folder the store keeps for itself")
        return self._root / key

    def _put(self, key: str, source: Path, sha256: str, watch: Watch) -> StoredObject:
        target, size = self._path(key), size_of(source)
        known = self._head(key, watch)
        if known and (known.size, known.sha256) == (size, sha256):
            return known
        with self._temporary() as temporary:
            found = _copy(source, temporary, watch)
            if found != sha256:
                raise DigestMismatch(f"{source} has SHA-256 {found}, announced was {sha256}: it changed, or the copy is damaged")
            copied = temporary.stat()
            _place(temporary, target)
        return self._note(key, sha256, copied)

    def _get(self, key: str, path: Path, sha256: str, watch: Watch) -> None:
        source = self._path(key)
        if not source.is_file():
            raise NotFound(f"no object {key} in {self._root}")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{uuid.uuid4().hex}")
        try:
            found = _copy(source, temporary, watch)
            if found != sha256:
                raise DigestMismatch(f"object {key} has SHA-256 {found}, expected was {sha256}: the stored copy is damaged")
            move(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def _head(self, key: str, watch: Watch) -> StoredObject | None:
        path = self._path(key)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # absent, perhaps only since a moment
            if not path.is_file():
                return None
            now = path.stat()
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, ValueError):
                sha256, size, changed = (self._root / _META / key).read_text().split()
                if (int(size), int(changed)) == (now.st_size, now.st_mtime_ns):
                    return StoredObject(key=key, size=now.st_size, sha256=sha256)
            return self._note(key, digest_of(path, watch), now)
        return None

    def _note(self, key: str, sha256: str, of: os.stat_result) -> StoredObject:
        with self._temporary() as temporary:
            temporary.write_text(f"{sha256} {of.st_size} {of.st_mtime_ns}\n")
            _place(temporary, self._root / _META / key)
        return StoredObject(key=key, size=of.st_size, sha256=sha256)

    def _verify(self, key: str, size: int, sha256: str, watch: Watch) -> None:
        path = self._path(key)
        if not path.is_file():
            raise Incomplete(f"object {key} is not in {self._root}: it was removed since it was put there")
        found = digest_of(path, watch)  # of the bytes themselves: a note beside them proves nothing
        if (path.stat().st_size, found) != (size, sha256):
            raise DigestMismatch(
                f"object {key} in {self._root} has SHA-256 {found}, expected was {sha256}: the stored copy is damaged"
            )

    def _keys(self, prefix: str) -> Sequence[str]:
        keys = []
        for folder, folders, files in os.walk(self._root / prefix, onerror=_unless_absent):
            if Path(folder) == self._root:
                folders[:] = [name for name in folders if name not in (_META, _TEMP)]
            keys += [(Path(folder) / name).relative_to(self._root).as_posix() for name in files]
        return sorted(keys, key=os.fsencode)  # as a bucket lists them

    def _delete(self, key: str) -> None:
        for path, top in ((self._path(key), self._root), (self._root / _META / key, self._root / _META)):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                path.unlink()
            with contextlib.suppress(OSError):  # ends at the first folder that is not empty
                for parent in path.parents:
                    if parent == top:
                        break
                    parent.rmdir()

    def _probe(self) -> int:
        with self._temporary() as temporary:
            temporary.write_bytes(b"check")
            sync(temporary)
            temporary.read_bytes()
        return shutil.disk_usage(self._root).free

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[Path]:
        folder = self._root / _TEMP
        folder.mkdir(parents=True, exist_ok=True)
        if not self._swept:
            self._swept = True
            _sweep(folder)
        path = folder / uuid.uuid4().hex
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


def _copy(source: Path, target: Path, watch: Watch) -> str:
    digest, done = hashlib.sha256(), 0
    with source.open("rb") as reading, target.open("xb") as writing:
        total = os.fstat(reading.fileno()).st_size
        while block := reading.read(BLOCK):
            digest.update(block)
            writing.write(block)
            done += len(block)
            watch(done, total)
    return digest.hexdigest()


def _sweep(folder: Path) -> None:
    """Remove what killed processes left behind."""
    for left in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process sweeps, too
            if left.stat().st_mtime < time.time() - _ABANDONED_S:
                left.unlink()


def _place(temporary: Path, target: Path) -> None:
    """Move a file to where its folder may not exist yet, or just be taken away, empty, by a delete."""
    for _ in range(10):
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            return move(temporary, target)
    raise OSError(errno.EBUSY, "folder removed again and again", str(target.parent))


def _unless_absent(error: OSError) -> None:
    if error.errno not in (errno.ENOENT, errno.ENOTDIR):
        raise error
