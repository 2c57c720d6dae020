"""Follows a step's log over one channel: raw bytes on stdout, the supervisor's words on stderr, pings and acks on stdin.

Rules for editing: bytes are handed on in order and once; Ended comes only after the last byte; whatever else ends a follow is
HostUnreachable, which says nothing about the step.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable

from remote_trainer.errors import HostError, HostUnreachable, RemoteTrainerError
from remote_trainer.host import protocol
from remote_trainer.ports import Channel, Completed, Ended, FollowItem, Heartbeat, Output, StepStatus

PING_S = 20.0  # renews the lease, too; the supervisor gives a silent follower up after 120 s
SILENCE_S = 3 * PING_S  # without an answer to our pings: the far end is gone, though nobody said so
_HELD = 4 << 20  # bytes waiting for the worker before we stop reading
_PIECE = 256 << 10
_LINE = 4096  # the longest control line that makes sense


class LogFollow:
    """Implements ports.Follow; made by SupervisedHost.follow."""

    def __init__(self, channel: Channel, address: str, what: str, offset: int) -> None:
        self._channel, self._address, self._what = channel, address, what
        self._at = offset  # position behind the last byte that was read
        self._items: deque[FollowItem] = deque()
        self._held = 0
        self._changed, self._taken = asyncio.Event(), asyncio.Event()
        self._error: Exception | None = None
        self._final: StepStatus | None = None
        self._said = b""  # words on stderr that are not the protocol's: kept for the message
        self._heard_at = asyncio.get_running_loop().time()
        self._stalled_at: int | None = None
        self._claimed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # -- the port

    def __aiter__(self) -> AsyncIterator[FollowItem]:
        return self._iterate()

    async def ack(self, offset: int) -> None:
        with contextlib.suppress(HostUnreachable):
            await self._channel.write(b"A %d\n" % offset)

    # -- for the host

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[LogFollow]:
        """Serve the channel while inside; returns once the host has found the step, or raises what it says instead."""
        pumps = [
            asyncio.create_task(self._guard(work), name=f"follow {self._what}")
            for work in (self._read_log, self._read_words, self._ping)
        ]
        try:
            await self._claimed
            yield self
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    # -- inside

    async def _iterate(self) -> AsyncIterator[FollowItem]:
        while True:
            while self._items:
                item = self._items.popleft()
                if isinstance(item, Output):
                    self._held -= len(item.data)
                    self._taken.set()
                yield item
            if self._final and self._at >= self._final.size:
                yield Ended(self._final)
                return
            if self._error:
                raise self._error
            self._changed.clear()
            await self._changed.wait()

    async def _guard(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except RemoteTrainerError as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._error = self._error or error
        if not self._claimed.done():
            self._claimed.set_exception(self._error)
        self._changed.set()

    async def _read_log(self) -> None:
        while data := await self._channel.read(_PIECE):
            self._at += len(data)
            self._held += len(data)
            self._items.append(Output(data))
            self._changed.set()
            while self._held > _HELD:
                self._taken.clear()
                await self._taken.wait()

    async def _read_words(self) -> None:
        rest = b""
        while data := await self._channel.read_error():
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._hear(line.decode(errors="replace"))
            if len(rest) > _LINE:
                raise HostError(f"{self._address} sent words without end while following {self._what}")
        code = await self._channel.wait()
        if not (self._final and self._at >= self._final.size):
            raise protocol.ended_early(Completed(code, b"", self._said), self._address, f"following {self._what}")

    def _hear(self, line: str) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        match line[:2]:
            case "C ":
                if not self._claimed.done():
                    self._claimed.set_result(None)
            case "H ":
                self._note_size(protocol.number(line[2:].split(" ")[0]))
            case "X ":
                self._final = protocol.parse_state(line[2:])
                self._changed.set()
            case _:
                self._said = (self._said + line.encode() + b"\n")[-_LINE:]

    def _note_size(self, size: int) -> None:
        """Hand on a heartbeat; bytes that the host has but does not send for a whole ping mean that its sender died."""
        if size > self._at == self._stalled_at and not self._held:
            raise HostUnreachable(
                f"{self._address} has {size} bytes of the log of {self._what} but stopped sending at {self._at}"
            )
        self._stalled_at = self._at
        self._items.append(Heartbeat(size))
        self._changed.set()

    async def _ping(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(PING_S)
            if clock() - self._heard_at > SILENCE_S:
                raise HostUnreachable(f"{self._address} has not answered for {SILENCE_S:g} s while following {self._what}")
            await self._channel.write(b"P\n")
