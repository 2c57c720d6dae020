"""Files to and from a host that is this machine: hard links where the disk allows, copies elsewhere.

Rules for editing: blocking; called in a thread. A file appears under its name whole or not at all.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from remote_trainer.errors import DigestMismatch, HostFull, HostLacks, Incomplete, TransportError
from remote_trainer.threads import Watch

_BLOCK = 8 << 20


def push(files: Sequence[Path], folder: str, watch: Watch) -> None:
    """Give each file a second name in the folder."""
    target = Path(folder).expanduser()
    sizes = [file.stat().st_size for file in files]
    done, total = 0, sum(sizes)
    try:
        target.mkdir(parents=True, exist_ok=True)
        for file, size in zip(files, sizes, strict=True):
            _place(file, size, target / file.name)
            done += size
            watch(done, total)
    except OSError as error:
        raise _translated(error, target) from error


def _place(file: Path, size: int, target: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if target.stat().st_size == size:
            return
    partial = target.with_name(f".{target.name}.part")
    partial.unlink(missing_ok=True)
    try:
        os.link(file, partial)
    except OSError:  # another disk, or one without links
        shutil.copyfile(file, partial)
    os.replace(partial, target)
    partial.unlink(missing_ok=True)  # rename does nothing when both names are the same file already


def pull(path: str, target: Path, size: int, watch: Watch) -> None:
    """Append what is missing of a regular file, at most to the announced size."""
    try:
        # A step may put a link to one of our own files where its output was listed.
        descriptor = os.open(Path(path).expanduser(), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise Incomplete(f"{path} is not there any more") from error
    except OSError as error:
        raise Incomplete(f"{path} cannot be read: {error.strerror}") from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size > size:
            raise DigestMismatch(f"{path} is not the file of {size} bytes that was announced")
        _append(descriptor, target, size, watch)
    except OSError as error:
        raise TransportError(f"cannot write {target}: {error.strerror}; is the disk full?") from error
    finally:
        os.close(descriptor)
    if target.stat().st_size < size:
        raise Incomplete(f"{path} is shorter than the {size} bytes that were announced")


def _append(source: int, target: Path, size: int, watch: Watch) -> None:
    with target.open("ab") as sink:
        done = sink.tell()
        if done > size:
            sink.truncate(done := 0)
        while done < size and (block := os.pread(source, min(_BLOCK, size - done), done)):
            sink.write(block)
            done += len(block)
            watch(done, size)


def _translated(error: OSError, target: Path) -> Exception:
    if error.errno in (28, 122):  # ENOSPC, EDQUOT
        return HostFull(f"no space left on this machine's disk for {target}")
    return HostLacks(f"cannot copy to {target} on this machine: {error.strerror or error}")
