"""A TCP link that is slow, narrow or broken on demand: a proxy in front of any server, for tests and benchmarks.

    with Link("127.0.0.1", 22) as link:      # clients connect to link.port
        link.set(rtt_s=0.1, bytes_per_s=10_000_000)
        link.cut()                           # silence: nothing arrives, nothing is refused
        link.heal()                          # what was under way arrives after all
        link.reset()                         # connections break; new ones break too, until heal()
        link.strike(Fault.FLIP, 5_000_000)   # of the bytes that go up from now on, the one at that offset arrives with a bit inverted

It acts above TCP: each side's kernel still gets its acknowledgements at once, so the delay is felt by whatever waits for replies or
windows of its own (SSH channels, HTTP requests), and not by TCP's own window.

Rules for editing: the proxy lives in a thread with its own event loop, so that a blocked test cannot stall the link; every public
method is called from outside and has taken effect when it returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Self

_PIECE = 1 << 16
_LOST = 1000  # bytes that Fault.DROP swallows
_IN_FLIGHT = 64 << 20
"""Bytes that one direction of one connection may have under way: more than bandwidth × delay of any link worth testing."""
_QUEUE_S = 0.25
"""Of what a narrow link carries, how much waits in front of it."""


class Fault(Enum):
    """What may happen, once, to the connection that carries a certain byte."""

    FLIP = "one bit of it arrives inverted"
    DROP = "it and some bytes after it are missing, the rest follows"
    TRUNCATE = "the stream ends before it, in good order"
    RESET = "the connection breaks before it"
    SILENCE = "nothing arrives from it on, until heal()"


@dataclass(slots=True)
class _Way:
    """One direction of the link, shared by all its connections."""

    passed: int = 0
    free_at: float = 0.0
    strikes: list[tuple[int, Fault]] = field(default_factory=list)  # by the offset they wait for, the next one first


@dataclass(slots=True)
class _Flight:
    """The pieces of one connection and direction that are under way, each with the moment it may arrive; None ends."""

    pieces: asyncio.Queue[tuple[float, bytes | None]] = field(default_factory=asyncio.Queue)
    size: int = 0
    landed: asyncio.Event = field(default_factory=asyncio.Event)


class Link:
    """A proxy to `host:port` that listens on `127.0.0.1:self.port`; a context manager."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self.port = 0
        self._one_way_s = 0.0
        self._bytes_per_s: float | None = None
        self._broken = False
        self._up, self._down = _Way(), _Way()
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def bytes_up(self) -> int:
        """Payload delivered to the server so far."""
        return self._up.passed

    @property
    def bytes_down(self) -> int:
        """Payload delivered to clients so far."""
        return self._down.passed

    def __enter__(self) -> Self:
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)), name="netfault")
        self._thread.start()
        started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._stop.set)
        self._thread.join()

    def set(self, *, rtt_s: float = 0.0, bytes_per_s: float | None = None) -> None:
        """From now on: a round trip takes that much longer, and each direction carries no more than that (None: no limit)."""

        def change() -> None:
            self._one_way_s, self._bytes_per_s = rtt_s / 2, bytes_per_s

        self._call(change)

    def cut(self) -> None:
        """Silence in both directions: connections stay open and wait, new ones are taken and wait too."""
        self._call(self._open.clear)

    def reset(self) -> None:
        """Break every connection with a reset, and each new one until `heal()`."""

        def change() -> None:
            self._broken = True
            for connection in self._connections:
                connection.cancel()

        self._call(change)

    def heal(self) -> None:
        """End `cut()` or `reset()`."""

        def change() -> None:
            self._broken = False
            self._open.set()

        self._call(change)

    def strike(self, fault: Fault, offset: int, *, up: bool = True) -> None:
        """Do that, once, to the byte at that offset of all that is delivered from now on to the server (or to clients)."""
        way = self._up if up else self._down

        def change() -> None:
            way.strikes.append((way.passed + offset, fault))
            way.strikes.sort(key=lambda strike: strike[0])

        self._call(change)

    @property
    def pending(self) -> int:
        """Strikes whose byte has not come yet."""
        return len(self._up.strikes) + len(self._down.strikes)

    def _call(self, change: Callable[[], None]) -> None:
        async def apply() -> None:
            change()

        asyncio.run_coroutine_threadsafe(apply(), self._loop).result()

    async def _serve(self, started: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop, self._open = asyncio.Event(), asyncio.Event()
        self._open.set()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=_PIECE)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await self._stop.wait()
        server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._connection(reader, writer), name="netfault-connection")
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with _reset_at_end(writer) as ends:
            if self._broken:
                return
            await self._open.wait()
            try:
                far_reader, far_writer = await asyncio.open_connection(*self._target, limit=_PIECE)
                ends.append(far_writer)
                async with asyncio.TaskGroup() as all_ways:
                    for source, sink, way in ((reader, far_writer, self._up), (far_reader, writer, self._down)):
                        flight = _Flight()
                        all_ways.create_task(self._take_off(source, flight), name="netfault-take-off")
                        all_ways.create_task(self._land(flight, sink, way), name="netfault-land")
                # Both sides have said goodbye: no reset.
                ends.clear()
                for end in (writer, far_writer):
                    end.close()
            except* OSError:
                pass  # one side has gone: the other learns of it by the reset below

    async def _take_off(self, reader: asyncio.StreamReader, flight: _Flight) -> None:
        while True:
            await self._open.wait()
            piece = await reader.read(_PIECE)
            flight.pieces.put_nowait((self._loop.time() + self._one_way_s, piece or None))
            if not piece:
                return
            flight.size += len(piece)
            while flight.size > self._room():
                flight.landed.clear()
                await flight.landed.wait()

    def _room(self) -> int:
        """Bytes that one direction of one connection may have under way: a narrow link does not swallow what it cannot carry."""
        if not self._bytes_per_s:
            return _IN_FLIGHT
        return min(_IN_FLIGHT, max(_PIECE, int(self._bytes_per_s * (self._one_way_s + _QUEUE_S))))

    async def _land(self, flight: _Flight, writer: asyncio.StreamWriter, way: _Way) -> None:
        while True:
            due, piece = await flight.pieces.get()
            await self._sleep_until(due)
            if piece is None:
                await self._open.wait()
                writer.write_eof()
                return
            if self._bytes_per_s:
                way.free_at = max(way.free_at, self._loop.time()) + len(piece) / self._bytes_per_s
                await self._sleep_until(way.free_at)
            await self._open.wait()
            flight.size -= len(piece)
            flight.landed.set()
            while way.strikes and way.strikes[0][0] < way.passed + len(piece):
                at, fault = way.strikes.pop(0)
                whole = max(0, at - way.passed)
                await _deliver(piece[:whole], writer, way)
                piece = await self._struck(fault, piece[whole:], writer)
            await _deliver(piece, writer, way)

    async def _struck(self, fault: Fault, piece: bytes, writer: asyncio.StreamWriter) -> bytes:
        """Do a fault to the first byte of a piece and return what of it still arrives."""
        match fault:
            case Fault.FLIP:
                return bytes([piece[0] ^ 0x10]) + piece[1:]
            case Fault.DROP:
                return piece[_LOST:]
            case Fault.SILENCE:
                self._open.clear()
                await self._open.wait()
                return piece
            case Fault.TRUNCATE:
                writer.close()
                await writer.wait_closed()
        raise ConnectionResetError

    async def _sleep_until(self, moment: float) -> None:
        if (rest := moment - self._loop.time()) > 0:
            await asyncio.sleep(rest)


async def _deliver(piece: bytes, writer: asyncio.StreamWriter, way: _Way) -> None:
    if piece:
        way.passed += len(piece)
        writer.write(piece)
        await writer.drain()


@contextlib.contextmanager
def _reset_at_end(writer: asyncio.StreamWriter) -> Iterator[list[asyncio.StreamWriter]]:
    """The ends to break with a reset when the block is left, as a crashed machine's peer would see it."""
    ends = [writer]
    try:
        yield ends
    finally:
        for end in ends:
            sock: socket.socket | None = end.get_extra_info("socket")
            if sock is not None and sock.fileno() >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.transport.abort()
