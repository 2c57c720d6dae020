"""A running command's three streams, buffered: the part that is the same for an SSH channel and a child process.

Rules for editing: the methods called by the event loop (named `note_*`) must not raise: asyncssh closes the whole connection, with every
job's channel on it, when one does. One reader per stream.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from typing import Self

#: Bytes of both outputs held for a slow reader before the sender is told to wait; reading goes on below half of it.
HELD = 1 << 20


class Inbox:
    """Bytes that arrived and were not read yet."""

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self._arrived = asyncio.Event()
        self._error: Exception | None = None
        self.size = 0
        self.finished = False

    def add(self, data: bytes) -> None:
        self._pieces.append(data)
        self.size += len(data)
        self._arrived.set()

    def finish(self, error: Exception | None = None) -> None:
        """Nothing more will come; with an error, reading past the last byte raises it."""
        if not self.finished:
            self.finished, self._error = True, error
            self._arrived.set()

    async def take(self, limit: int) -> bytes:
        """Return what is there, at most ``limit`` bytes; waits for the first one, b'' at the end."""
        while not self._pieces:
            if self._error:
                raise self._error
            if self.finished:
                return b""
            self._arrived.clear()
            await self._arrived.wait()
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
        return await self._take(self._out, limit)

    async def read_error(self, limit: int = 1 << 16) -> bytes:
        return await self._take(self._err, limit)

    async def write(self, data: bytes) -> None:
        await self._writable.wait()
        self._raise_if_broken()
        if not self._over.done() and not self._ended_input:
            self._send(data)
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
        if not self._paused and self._out.size + self._err.size > HELD:
            self._paused = True
            self._hold(True)

    def note_end(self, *, error_stream: bool) -> None:
        (self._err if error_stream else self._out).finish()

    def note_writable(self, writable: bool) -> None:
        if writable:
            self._writable.set()
        else:
            self._writable.clear()

    def note_exit(self, code: int) -> None:
        if not self._over.done():
            self._over.set_result(code)

    def note_closed(self, broken: Exception | None) -> None:
        """Nothing follows. Without an exit status before, ``broken`` says why there is none."""
        if self._over.done():
            broken = None
        elif broken is not None:
            self._over.set_exception(broken)
            self._over.exception()  # nobody need ask
        self._out.finish(broken)
        self._err.finish(broken)
        self._writable.set()

    # -- inside

    async def _take(self, inbox: Inbox, limit: int) -> bytes:
        data = await inbox.take(limit)
        if self._paused and self._out.size + self._err.size < HELD // 2:
            self._paused = False
            self._hold(False)
        return data

    def _raise_if_broken(self) -> None:
        if self._over.done() and (error := self._over.exception()):
            raise error
