"""Brings inputs and checkpoints to a host: only the chunks it lacks, several channels at a time, verified as they arrive.

Each channel sends chunk after chunk without waiting; the host hashes and unpacks one while the next is on its way. Any break ends
the call with HostUnreachable; called again it goes on after the last byte that each chunk has there.

Rules for editing: idempotent, and safe beside another worker's. The order matters once: the first chunk makes all folders, so the
channels beside the one that sends it wait until it is there.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from remote_trainer.dataset.cache import Cache, Packed
from remote_trainer.errors import DigestMismatch, HostError, HostFull, HostUnreachable
from remote_trainer.host.depot import Begun, Depot, chunk_line, outcome
from remote_trainer.model import Checkpoint, Input
from remote_trainer.ports import Channel, Objects, Progress
from remote_trainer.threads import to_end
from remote_trainer.worker.way import Traffic, Way

_CARRIED = 3 << 19  # bytes that one SSH channel carries in a round trip: three quarters of OpenSSH's window, measured
_WANTED_RATE = 125_000_000  # bytes a second worth filling: 1 Gbit/s
_SLICE = 256 << 10  # bytes that must move within stall_s: at 10 kB/s on eight channels 210 s
_FEWEST, _MOST = 2, 8  # channels; sshd allows ten sessions on a connection, and jobs need some too
_BUSY_S = 1.0
_SENDS = 3  # of one chunk, when it arrives damaged
_SPARE = 64 << 20  # bytes to leave free on the host
_REPLY = 4096  # the longest line that makes sense


async def ship(
    depot: Depot,
    key: str,
    inputs: Sequence[Input],
    cache: Cache,
    *,
    progress: Progress | None = None,
    way: Way | None = None,
) -> None:
    """Make every input complete and verified on the host, for the job with that key (its attempt's label). Idempotent.

    ``progress`` counts bytes of all inputs, ``way`` those that are sent. HostLacks when the way is too slow, DatasetError when a source
    was edited since it was packed, HostFull before anything is sent, DigestMismatch when bytes keep arriving damaged.
    """
    total = sum(given.size for given in inputs)
    before = 0

    def advance(done: int) -> None:
        if progress:
            progress(before + done, total)

    way = way or Way(Traffic(), key)
    with way.used():
        for given in inputs:
            await _ship(_Errand(depot, key, way), given, cache, advance)
            advance(given.size)
            before += given.size


@dataclass(frozen=True, slots=True)
class _Errand:
    """For which job, and where to."""

    depot: Depot
    key: str
    way: Way


async def _ship(errand: _Errand, given: Input, cache: Cache, advance: Callable[[int], None]) -> None:
    depot, key = errand.depot, errand.key
    asked_at = time.monotonic()
    while (begun := await depot.begin(given, key)) is None:
        await asyncio.sleep(_BUSY_S)  # another job brings it
        asked_at = time.monotonic()
    if begun.present:
        return
    channels = _channels((time.monotonic() - asked_at) / 2)
    packed = await asyncio.to_thread(cache.open, given)
    transfer = _Transfer(errand, given, packed, advance, *_believed(given, begun))
    await _check_space(depot, given, begun, transfer.left)
    await transfer.run(channels)
    await depot.finish(given, key)


def _believed(given: Input, begun: Begun) -> tuple[set[int], dict[int, int]]:
    """Return what the host says it has, as far as it can be."""
    got = set(begun.got).intersection(range(len(given.chunks)))
    parts = {
        number: there
        for number, there in begun.parts.items()
        if number < len(given.chunks) and number not in got and there <= given.chunks[number].size
    }
    return got, parts


async def _check_space(depot: Depot, given: Input, begun: Begun, needed: int) -> None:
    free = begun.free
    if free < needed + _SPARE:
        await depot.prune(0)
        free, _ = await depot.space()
    if free < needed + _SPARE:
        raise HostFull(
            f"{given.name} needs {needed / 1e9:.2f} GB on {depot.transport.address}, {free / 1e9:.2f} GB are free: free some, or take a "
            "host with a larger disk"
        )


def _channels(round_trip_s: float) -> int:
    """How many channels fill the line: each carries so much per round trip."""
    return max(_FEWEST, min(_MOST, -(-int(round_trip_s * _WANTED_RATE) // _CARRIED)))


@dataclass
class _Transfer:
    errand: _Errand
    given: Input
    packed: Packed
    advance: Callable[[int], None]
    got: set[int]
    parts: dict[int, int]  # bytes that are there of other chunks
    waiting: deque[int] = field(init=False)
    moved_at: float = 0.0  # when bytes were taken, or the host said something
    sends: Counter[int] = field(default_factory=Counter)
    folders: asyncio.Event = field(default_factory=asyncio.Event)  # set when the first chunk is there, or nobody sends it

    def __post_init__(self) -> None:
        self.waiting = deque(number for number in range(len(self.given.chunks)) if number not in self.got)
        if 0 in self.got:
            self.folders.set()

    @property
    def depot(self) -> Depot:
        return self.errand.depot

    @property
    def left(self) -> int:
        """Bytes that are not on the host."""
        missing = sum(chunk.size for number, chunk in enumerate(self.given.chunks) if number not in self.got)
        return missing - sum(self.parts.values())

    async def run(self, channels: int) -> None:
        """Send what waits until each chunk is verified over there."""
        while self.waiting:
            try:
                async with asyncio.TaskGroup() as group:
                    speed = self.errand.way.judge(self.depot.transport.address, self.left)
                    watches = [
                        group.create_task(self._watch(), name=f"ship {self.given.name} watch"),
                        group.create_task(speed, name=f"ship {self.given.name} speed"),
                    ]
                    async with asyncio.TaskGroup() as sending:
                        for number in range(min(channels, len(self.waiting))):
                            sending.create_task(self._channel(first=number == 0), name=f"ship {self.given.name} {number}")
                    for watch in watches:
                        watch.cancel()
            except ExceptionGroup as several:
                raise _gravest(several) from several

    async def _watch(self) -> None:
        """Give the transfer up when nothing of it has moved for too long, though the connection lives."""
        transport, loop = self.depot.transport, asyncio.get_running_loop()
        self.moved_at = loop.time()
        while (left := self.moved_at + transport.stall_s - loop.time()) > 0:  # noqa: ASYNC110 # for nothing to happen
            await asyncio.sleep(left)
        transport.doubt()
        raise HostUnreachable(
            f"the transfer to {transport.address} did not move for {transport.stall_s:g} s; it goes on over a new connection"
        )

    async def _channel(self, *, first: bool) -> None:
        """Send chunks while there are any; returns when the host has answered for each."""
        sent: set[int] = set()
        async with self.depot.receiving(self.given, self.errand.key) as channel:
            listening = asyncio.create_task(self._hear(channel, sent), name=f"ship {self.given.name} replies")
            try:
                if not first:
                    await self.folders.wait()
                while self.waiting and not listening.done():
                    number = self.waiting.popleft()
                    sent.add(number)
                    await self._send(channel, number, listening)
                await channel.end()
                await listening
            finally:
                self.folders.set()  # or else whoever waits would wait for ever
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)
            if sent:
                await self._explain(channel)

    async def _send(self, channel: Channel, number: int, listening: asyncio.Task[None]) -> None:
        start = self.parts.get(number, 0)
        await channel.write(chunk_line(self.given, number, start))
        blocks = self.packed.read(number, start)
        while not listening.done() and (block := await asyncio.to_thread(next, blocks, b"")):
            view = memoryview(cast(bytes, block))
            for at in range(0, len(view), _SLICE):
                piece = view[at : at + _SLICE]
                self.errand.way.count(len(piece))
                await channel.write(cast(bytes, piece))  # any buffer will do: what cannot be sent at once is copied
                self.moved_at = asyncio.get_running_loop().time()

    async def _hear(self, channel: Channel, sent: set[int]) -> None:
        """Take the host's word on each chunk until it says no more."""
        rest = b""
        while data := await channel.read():
            self.moved_at = asyncio.get_running_loop().time()
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                number, fine = outcome(line, self.depot.transport.address)
                if number not in sent:
                    raise HostError(f"{self.depot.transport.address} speaks of a chunk it was not sent: {number}")
                sent.remove(number)
                self.parts.pop(number, None)
                if fine:
                    self.got.add(number)
                    if number == 0:
                        self.folders.set()
                    self.advance(self.given.size - self.left)
                else:
                    await self._again(number)
            if len(rest) > _REPLY:
                raise HostError(f"{self.depot.transport.address} answers without end")

    async def _again(self, number: int) -> None:
        """A chunk arrived as something else: our source was edited, or the way damaged it."""
        await asyncio.to_thread(self.packed.verify, number)
        self.sends[number] += 1
        if self.sends[number] >= _SENDS:
            raise DigestMismatch(
                f"chunk {number} of {self.given.name} arrived damaged {_SENDS} times on {self.depot.transport.address}"
            )
        self.waiting.append(number)

    async def _explain(self, channel: Channel) -> None:
        """The host stopped before it had taken everything."""
        said = (await channel.read_error()).decode(errors="replace").strip()[-300:]
        code = await channel.wait()
        raise HostUnreachable(f"the transfer to {self.depot.transport.address} broke off (status {code}): {said or 'no words'}")


def _gravest(several: ExceptionGroup[Exception]) -> Exception:
    """A break of the line follows from everything else."""
    errors = [
        error for each in several.exceptions for error in (each.exceptions if isinstance(each, ExceptionGroup) else (each,))
    ]
    return next((error for error in errors if not isinstance(error, HostUnreachable)), errors[0])


async def fetch_checkpoint(objects: Objects, checkpoint: Checkpoint, folder: Path) -> Sequence[tuple[str, str, Path]]:
    """Bring a checkpoint's files into a folder, verified, for ``restore``; what is there of it already is not fetched again.

    NotFound or DigestMismatch when a file is not there any more, or is damaged.
    """
    await to_end(lambda: folder.mkdir(parents=True, exist_ok=True, mode=0o700))
    files: list[tuple[str, str, Path]] = []
    for artifact in checkpoint.artifacts:
        local = folder / artifact.sha256
        if not await asyncio.to_thread(_has, local, artifact.sha256):
            await objects.get(artifact.key, local, sha256=artifact.sha256)
        files.append((f"output/{artifact.path}", artifact.sha256, local))
    return files


def _has(path: Path, sha256: str) -> bool:
    if not path.exists():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


async def restore(depot: Depot, key: str, files: Sequence[tuple[str, str, Path]], *, progress: Progress | None = None) -> None:
    """Put files into a job's work folder: (path there, SHA-256, local file). Verified there, then moved into place. Idempotent."""
    if not files:
        return
    _, data = await depot.space()
    inbox = f"{data}/tmp/restore.{key}"  # noqa: S108  # on the host, in our own folder
    with tempfile.TemporaryDirectory(prefix=".restore-", dir=files[0][2].parent) as folder:
        named = [Path(folder) / f"{number}.{sha256[:16]}" for number, (_, sha256, _) in enumerate(files)]
        await to_end(lambda: _link_all([file for _, _, file in files], named))
        await depot.transport.push(named, inbox, progress=progress)
        lines = [(name.name, sha256, path) for name, (path, sha256, _) in zip(named, files, strict=True)]
    await depot.place(key, inbox, lines)


def _link_all(files: Sequence[Path], names: Sequence[Path]) -> None:
    for file, name in zip(files, names, strict=True):
        try:
            os.link(file, name)
        except OSError:  # another disk, or one without links
            shutil.copyfile(file, name)
