"""Data that waits for a slow line waits with us: what else the line carries, such as the sign that it is alive, goes before it."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import asyncssh
import pytest

from remote_trainer.errors import HostUnreachable
from remote_trainer.transport.channel import PIECE
from remote_trainer.transport.pool import Link, Pool
from remote_trainer.transport.ssh import SshChannel


class Line:
    """What asyncssh sees of a socket: takes a number of pieces and then no more until it is drained."""

    def __init__(self, takes: int) -> None:
        self.taken: list[bytes] = []
        self._takes, self._left = takes, takes
        self.pause_writing = self.resume_writing = lambda: None

    def write(self, data: bytes) -> None:
        self.taken.append(data)
        self._left -= 1
        if self._left == 0:
            self.pause_writing()

    def drain(self) -> None:
        self._left = self._takes
        self.resume_writing()


def opened(line: Line, count: int) -> list[SshChannel]:
    """Return channels that share a line."""
    link = Link(cast(asyncssh.SSHClientConnection, line))
    channels = [SshChannel("host") for _ in range(count)]
    for channel in channels:
        link.flow.tell(channel)
        channel.connection_made(cast(Any, line))
    return channels


async def turns() -> None:
    """Let everybody who can go on do so."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_channels_stop_when_the_line_takes_no_more() -> None:
    """Not each of them sends another piece when there is room again: together they send what the line takes."""
    line = Line(takes=2)
    writing = [asyncio.create_task(channel.write(bytes(10 * PIECE))) for channel in opened(line, 8)]
    for drained in range(1, 6):
        await turns()
        assert len(line.taken) == 2 * drained
        line.drain()
    for _ in range(100):
        await turns()
        line.drain()
    await asyncio.gather(*writing)
    assert sum(map(len, line.taken)) == 80 * PIECE
    assert max(map(len, line.taken)) == PIECE


async def test_a_channel_that_opens_on_a_full_line_waits() -> None:
    """It is told how things are when it comes."""
    line = Line(takes=1)
    link = Link(cast(asyncssh.SSHClientConnection, line))
    line.pause_writing()
    channel = SshChannel("host")
    link.flow.tell(channel)
    channel.connection_made(cast(Any, line))
    writing = asyncio.create_task(channel.write(b"data"))
    await turns()
    assert line.taken == []
    line.drain()
    await turns()
    assert line.taken == [b"data"]
    line.drain()  # it was full again, and the writer waits for room before it goes on
    await writing


async def test_a_window_that_is_full_holds_its_own_channel_only() -> None:
    """And a line that drains does not open it."""
    line = Line(takes=100)
    one, other = opened(line, 2)
    one.pause_writing()
    held = asyncio.create_task(one.write(b"one"))
    await other.write(b"other")
    line.drain()
    await turns()
    assert line.taken == [b"other"]
    one.resume_writing()
    await held


async def test_who_waits_for_a_line_that_breaks_is_told() -> None:
    """Nobody waits for room on a connection that is lost."""
    line = Line(takes=1)
    (channel,) = opened(line, 1)
    writing = asyncio.create_task(channel.write(bytes(2 * PIECE)))
    await turns()
    channel.connection_lost(ConnectionResetError("reset"))
    line.pause_writing()
    with pytest.raises(HostUnreachable, match="reset"):
        await writing


async def test_each_channel_gets_its_turn() -> None:
    """A line that takes one piece at a time is not always given to the same channel: a ping gets through beside bulk data."""
    line = Line(takes=1)
    channels = opened(line, 4)
    writing = [asyncio.create_task(channel.write(bytes([number]) * 20 * PIECE)) for number, channel in enumerate(channels)]
    for _ in range(12):
        await turns()
        line.drain()
    assert {piece[0] for piece in line.taken} == {0, 1, 2, 3}
    for task in writing:
        task.cancel()
    await asyncio.gather(*writing, return_exceptions=True)


async def test_a_doubted_connection_that_carries_nothing_is_closed() -> None:
    """Nobody would release it any more; one that was just opened for somebody, or still carries something, is left alone."""

    class Connection(Line):
        def __init__(self) -> None:
            super().__init__(1)
            self.closed = False

        def is_closed(self) -> bool:
            return self.closed

        def close(self) -> None:
            self.closed = True

    made: list[Connection] = []

    async def connect() -> asyncssh.SSHClientConnection:
        made.append(Connection())
        return cast(asyncssh.SSHClientConnection, made[-1])

    async def start(link: Link) -> None:
        """Start nothing."""

    pool = Pool(connect, "host")
    _, idle = await pool.channel(start)
    pool.release(idle)
    pool.doubt()
    assert made[0].closed
    _, busy = await pool.channel(start)
    pool.doubt()
    assert [one.closed for one in made] == [True, False]
    pool.release(busy)
    assert made[1].closed
