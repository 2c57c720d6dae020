"""A running command's three streams, buffered: the part that is the same for an SSH channel and a child process.

Rules for editing: the methods called by the event loop (named `note_*`) must not raise: asyncssh closes the whole connection, with every
job's channel on it, when one does. One reader per stream, or one for
both.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Self

#: Bytes of both outputs held for a slow reader before the sender is told to wait; reading goes on below half of it.
HELD = 1 << 20

#: Bytes that are handed on at once. More would queue before whatever else the line carries, such as the sign that it is alive.
PIECE = 32 << 10


class Inbox:
    """Bytes that arrived and were not read yet."""

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self.size = 0
        self.finished = False

    def add(self, data: bytes) -> None:
        self._pieces.append(data)
        self.size += len(data)

    def take(self, limit: int) -> bytes:
        """Return what is there, at most ``limit`` bytes."""
        taken, room = [], limit
        while self._pieces and room:
            piece = self._pieces.popleft()
            if len(piece) > room:
                self._pieces.appendleft(piece[room:])
                piece = piece[:room]
            taken.append(piece)
            room -= len(piece)
        self.size -= limit - room
        return taken[0] if len(taken) == 1 else b"".join(taken)


class BufferedChannel(ABC):
    """Implements ports.Channel over `note_*` calls from the event loop."""

    def __init__(self) -> None:
        self._out, self._err = Inbox(), Inbox()
        self._news = asyncio.Event()  # something changed in one of them
        self._broken: Exception | None = None
        self._closed = False
        self._paused = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._over: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._ended_input = False

    @abstractmethod
    def _send(self, data: bytes) -> None:
        """Hand bytes to stdin; dropped when nobody takes them any more."""

    @abstractmethod
    def _send_end(self) -> None:
        """Close stdin."""

    @abstractmethod
    def _hold(self, hold: bool) -> None:
        """Stop, or go on, taking output from the other side."""

    @abstractmethod
    async def _leave(self) -> None:
        """Give the channel up."""

    # -- the port

    async def read(self, limit: int = 1 << 16) -> bytes:
        await self._until(lambda: self._out.size > 0 or self._out.finished)
        return self._take(self._out, limit)

    async def read_error(self, limit: int = 1 << 16) -> bytes:
        await self._until(lambda: self._err.size > 0 or self._err.finished)
        return self._take(self._err, limit)

    async def read_both(self, limit: int = 1 << 16) -> tuple[bytes, bytes]:
        await self._until(lambda: bool(self._out.size or self._err.size or (self._out.finished and self._err.finished)))
        if not (self._out.size or self._err.size):
            return self._take(self._out, limit), b""  # the end, or the error
        taken = self._out.take(limit), self._err.take(limit)
        self._resume_if_low()
        return taken

    async def write(self, data: bytes) -> None:
        view = memoryview(data)
        for start in range(0, len(view), PIECE):
            await self._room()
            if self._over.done() or self._ended_input:
                return
            self._send(bytes(view[start : start + PIECE]))
        await self._room()

    async def _room(self) -> None:
        # Not once only: another channel that was woken first may have filled the line again.
        while not self._writable.is_set():
            await self._writable.wait()
        self._raise_if_broken()

    async def end(self) -> None:
        if not self._ended_input:
            self._ended_input = True
            self._send_end()

    async def wait(self) -> int:
        return await asyncio.shield(self._over)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._leave()

    # -- the event loop

    def note_data(self, data: bytes, *, error_stream: bool) -> None:
        (self._err if error_stream else self._out).add(data)
        self._news.set()
        if not self._paused and self._out.size + self._err.size > HELD:
            self._paused = True
            self._hold(True)

    def note_end(self, *, error_stream: bool) -> None:
        (self._err if error_stream else self._out).finished = True
        self._news.set()

    def note_writable(self, writable: bool) -> None:
        if writable or self._closed:
            self._writable.set()
        else:
            self._writable.clear()

    def note_exit(self, code: int) -> None:
        if not self._over.done():
            self._over.set_result(code)

    def note_closed(self, broken: Exception | None) -> None:
        """Nothing follows. Without an exit status before, ``broken`` says why there is none."""
        self._closed = True
        if self._over.done():
            broken = None
        elif broken is not None:
            self._over.set_exception(broken)
            self._over.exception()  # nobody need ask
        self._broken = broken
        self._out.finished = self._err.finished = True
        self._news.set()
        self._writable.set()

    # -- inside

    async def _until(self, ready: Callable[[], bool]) -> None:
        while not ready():
            self._news.clear()
            await self._news.wait()

    def _take(self, inbox: Inbox, limit: int) -> bytes:
        if inbox.finished and not inbox.size and self._broken:
            raise self._broken
        data = inbox.take(limit)
        self._resume_if_low()
        return data

    def _resume_if_low(self) -> None:
        if self._paused and self._out.size + self._err.size < HELD // 2:
            self._paused = False
            self._hold(False)

    def _raise_if_broken(self) -> None:
        if self._over.done() and (error := self._over.exception()):
            raise error
