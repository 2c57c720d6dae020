"""Files over a transport's own channels, with nothing but sh, cat, dd, mv and wc on the other side.

What serves a host without rsync, a container behind `docker exec`, and every pull: one channel per stream, resumed by size.
Rules for editing: names travel as arguments, never inside script text. A file appears under its name whole or not at all.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from remote_trainer.errors import DigestMismatch, HostFull, HostLacks, HostUnreachable, Incomplete
from remote_trainer.ports import Channel, Completed, Progress

_BLOCK = 1 << 20

# "~" is the host's home; quoting keeps the shell from seeing it otherwise.
_HOME = 'case $1 in "~" | "~/"*) path=$HOME${1#"~"};; *) path=$1;; esac; '

# stdin: names, one a line. stdout: the folder's absolute path; where rsync is, or an empty line; then for each name its size, or -,
# and the size of its partial file, or 0.
_SURVEY = (
    _HOME + 'mkdir -p -- "$path" && cd -- "$path" && pwd || exit 1; command -v rsync || echo; while IFS= read -r name; do '
    'if [ -f "./$name" ]; then whole=$(wc -c <"./$name"); else whole=-; fi; '
    'if [ -f "./.$name.part" ]; then part=$(wc -c <"./.$name.part"); else part=0; fi; echo $whole $part; done'
)
# Appends stdin to the partial file; gives it its name when it has the size it must have.
_RECEIVE = (
    _HOME
    + 'cd -- "$path" || exit 1; cat >>"./.$2.part" && [ "$(($(wc -c <"./.$2.part")))" = "$3" ] && mv -f -- "./.$2.part" "./$2"'
)
# GNU's and busybox's tail both read on from a byte; a symbolic link is not followed.
_SEND = _HOME + '[ ! -L "$path" ] && [ -f "$path" ] || exit 44; exec tail -c "+$2" -- "$path"'


Open = Callable[[Sequence[str]], AbstractAsyncContextManager[Channel]]


class Opener(Protocol):
    """What of a transport is needed here."""

    @property
    def address(self) -> str: ...

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 60.0) -> Completed: ...

    def open(self, argv: Sequence[str]) -> AbstractAsyncContextManager[Channel]: ...


class Tally:
    """Adds up the bytes of several streams."""

    def __init__(self, done: int, total: int, progress: Progress | None) -> None:
        self._done, self._total, self._progress = done, total, progress
        self.add(0)

    def add(self, count: int) -> None:
        self._done += count
        if self._progress:
            self._progress(self._done, self._total)


@dataclass(frozen=True, slots=True)
class Survey:
    """What is in a folder already: ``there`` has the bytes of each file's partial one, None when it is whole."""

    folder: str  # absolute
    sizes: Mapping[Path, int]
    there: Mapping[Path, int | None]
    has_rsync: bool

    @property
    def missing(self) -> list[Path]:
        """The files to send, largest first, so that parallel streams end together."""
        return sorted((file for file, part in self.there.items() if part is not None), key=lambda file: -self.sizes[file])

    @property
    def total(self) -> int:
        return sum(self.sizes.values())

    @property
    def done(self) -> int:
        """Bytes of the files that are there whole."""
        return sum(self.sizes[file] for file, part in self.there.items() if part is None)


async def survey(transport: Opener, files: Sequence[Path], folder: str) -> Survey:
    """Make the folder, and see what it has of the files."""
    if any("\n" in file.name for file in files):
        raise ValueError("a file that is pushed cannot have a line break in its name")
    names = "".join(f"{file.name}\n" for file in files).encode()
    done = await transport.run(["sh", "-c", _SURVEY, "sh", folder], stdin=names, timeout_s=300)
    path, rsync, *lines = done.stdout.split(b"\n")[:-1] if done.code == 0 else (b"", b"")
    if len(lines) != len(files) or not path.startswith(b"/"):
        raise problem(transport.address, f"cannot make or read the folder {folder}", done.stderr)
    sizes = {file: file.stat().st_size for file in files}
    there = {file: _missing(sizes[file], line) for file, line in zip(files, lines, strict=True)}
    return Survey(os.fsdecode(path), sizes, there, has_rsync=rsync != b"")


def _missing(size: int, line: bytes) -> int | None:
    whole, _, part = line.decode(errors="replace").partition(" ")
    if whole.isdecimal() and int(whole) == size:
        return None
    return int(part) if part.isdecimal() else 0


async def send(transport: Opener, seen: Survey, *, streams: int = 1, progress: Progress | None = None) -> None:
    """Send what is missing, over ``streams`` channels at once."""
    tally = Tally(seen.done, seen.total, progress)
    waiting = iter(seen.missing)

    async def one_stream() -> None:
        for file in waiting:
            await _send(transport, file, seen, tally)

    try:
        async with asyncio.TaskGroup() as group:
            for number in range(streams):
                group.create_task(one_stream(), name=f"push {transport.address} {number}")
    except ExceptionGroup as several:
        raise several.exceptions[0] from several


async def _send(transport: Opener, file: Path, seen: Survey, tally: Tally) -> None:
    folder, size, offset = seen.folder, seen.sizes[file], seen.there[file] or 0
    with file.open("rb") as source:
        if offset > size:  # left over from another file of that name
            await transport.run(["sh", "-c", 'rm -f -- "$1/.$2.part"', "sh", folder, file.name])
            offset = 0
        source.seek(offset)
        tally.add(offset)
        async with transport.open(["sh", "-c", _RECEIVE, "sh", folder, file.name, str(size)]) as channel:
            while block := await asyncio.to_thread(source.read, _BLOCK):
                await channel.write(block)
                tally.add(len(block))
            await channel.end()
            said = await channel.read_error()
            if await channel.wait() != 0:
                raise problem(transport.address, f"cannot write {file.name} in {folder}", said)


class Stalled(HostUnreachable):
    """The connection lives, and the transfer on it does not move."""


async def pull(
    opened: Open, address: str, path: str, target: Path, *, size: int, stall_s: float, progress: Progress | None = None
) -> None:
    """Append to ``target`` what is missing of the host's file; never more than was announced. Stalled when nothing comes."""
    with target.open("ab") as sink:
        done = sink.tell()
        if done > size:
            sink.truncate(done := 0)
        async with opened(["sh", "-c", _SEND, "sh", path, str(done + 1)]) as channel:
            await channel.end()
            try:
                done = await _receive(channel, sink, Tally(done, size, progress), (done, size, stall_s))
            except TimeoutError as error:
                raise Stalled(
                    f"{address} sent nothing of {path} for {stall_s:g} s; it is gone on with over a new line"
                ) from error
            if done > size:
                raise DigestMismatch(f"{address} sent more than the announced {size} bytes of {path}")
            said = await channel.read_error()
            match await channel.wait():
                case 0:
                    pass
                case 44:  # as _SEND says
                    raise Incomplete(f"{path} is not there any more on {address}, or is no regular file")
                case _:
                    raise problem(address, f"cannot read {path}", said)
    if done < size:
        raise Incomplete(f"{path} on {address} is shorter than the {size} bytes that were announced")


async def _receive(channel: Channel, sink: IO[bytes], tally: Tally, bounds: tuple[int, int, float]) -> int:
    """Return how far it came; one past the announced size when more was sent, with nothing of that kept."""
    done, size, stall_s = bounds
    while block := await asyncio.wait_for(channel.read(_BLOCK), stall_s):
        kept = block[: size - done]
        await asyncio.to_thread(sink.write, kept)
        done += len(kept)
        tally.add(len(kept))
        if len(kept) < len(block):
            return size + 1
    return done


def problem(address: str, what: str, said: bytes) -> HostFull | HostLacks:
    """Return the error for a failed file command, with the host's own last line."""
    words = " ".join(said.decode(errors="replace").strip().split("\n")[-1].split())[:200]
    if b"No space left" in said or b"quota exceeded" in said:
        return HostFull(f"no space left on {address}: {what}; free some, or take a host with a larger disk")
    return HostLacks(f"{address} {what}: {words or 'no reason given'}")
