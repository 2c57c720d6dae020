"""Blocking work on files, done in a thread and watched from the event loop.

Rules for editing: whoever loops over blocks calls the watch once a block; nothing here knows of a store.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from remote_trainer.errors import Incomplete, ObjectsUnavailable
from remote_trainer.threads import Watch

BLOCK = 1 << 20


def digest_of(path: Path, watch: Watch) -> str:
    """Return the SHA-256 (hex) of a file."""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as reading:
        total = os.fstat(reading.fileno()).st_size
        while block := reading.read(BLOCK):
            digest.update(block)
            done += len(block)
            watch(done, total)
    return digest.hexdigest()


def size_of(path: Path) -> int:
    """Return the size of a file that is to be stored, or raise Incomplete."""
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Incomplete(f"{path} cannot be stored: it is not there") from error


@contextlib.contextmanager
def partial(path: Path, sha256: str) -> Iterator[BinaryIO]:
    """Open what there is of a file that is to have that content, beside its place; it stays unless it is moved or left empty."""
    name = path.with_name(f".{hashlib.sha256(f'{path.name} {sha256}'.encode()).hexdigest()[:32]}.part")
    with name.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ObjectsUnavailable(f"{path} is being downloaded by another process: wait for that one") from error
        try:
            yield file
        finally:
            file.flush()
            if name.exists() and not name.stat().st_size:
                name.unlink()


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def move(temporary: Path, target: Path) -> None:
    """Make a file durable, then visible under its name, then the name durable."""
    sync(temporary)
    temporary.replace(target)
    sync(target.parent)
