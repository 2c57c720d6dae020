"""The link delays, narrows, silences and breaks what passes through it, and nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from tests.support.delayproxy import Link
from tests.support.patience import PATIENCE_S


@pytest.fixture
async def echo_port() -> AsyncIterator[int]:
    """A server that sends back what it gets."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while piece := await reader.read(65536):
                writer.write(piece)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def there_and_back(port: int, payload: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(payload)
    writer.write_eof()
    try:
        return await asyncio.wait_for(reader.read(-1), PATIENCE_S)
    finally:
        writer.close()


async def test_bytes_pass_unchanged_and_are_counted(echo_port: int) -> None:
    """A healthy link hands on every byte and the end of the stream, and counts the payload of each direction."""
    payload = bytes(range(256)) * 8192
    with Link("127.0.0.1", echo_port) as link:
        assert await there_and_back(link.port, payload) == payload
        assert (link.bytes_up, link.bytes_down) == (len(payload), len(payload))


async def test_reply_takes_the_round_trip(echo_port: int) -> None:
    """With a round trip of 0.2 s no reply is there earlier."""
    with Link("127.0.0.1", echo_port) as link:
        link.set(rtt_s=0.2)
        begun = time.monotonic()
        assert await there_and_back(link.port, b"x") == b"x"
        assert time.monotonic() - begun >= 0.2


async def test_narrow_link_takes_its_time(echo_port: int) -> None:
    """1 MB over a link of 4 MB/s takes at least a quarter of a second."""
    with Link("127.0.0.1", echo_port) as link:
        link.set(bytes_per_s=4_000_000)
        begun = time.monotonic()
        await there_and_back(link.port, bytes(1_000_000))
        assert time.monotonic() - begun >= 0.24


async def test_cut_link_is_silent_and_delivers_after_it_is_healed(echo_port: int) -> None:
    """What is sent into a cut link does not arrive and is not refused; it arrives when the link is healed."""
    with Link("127.0.0.1", echo_port) as link:
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        writer.write(b"before")
        assert await reader.readexactly(6) == b"before"
        link.cut()
        writer.write(b"during")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readexactly(1), 0.2)
        link.heal()
        assert await asyncio.wait_for(reader.readexactly(6), PATIENCE_S) == b"during"
        writer.close()


async def test_broken_link_resets_old_and_new_connections(echo_port: int) -> None:
    """A broken link resets open connections and new ones, until it is healed."""
    with Link("127.0.0.1", echo_port) as link:
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        writer.write(b"x")
        await reader.readexactly(1)
        link.reset()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(1), PATIENCE_S)
        with pytest.raises(ConnectionError):
            await there_and_back(link.port, b"x")
        link.heal()
        assert await there_and_back(link.port, b"again") == b"again"
        writer.close()
