"""Runs a command to its end over any channel: the one implementation of Transport.run.

Rules for editing: all three streams are served at once, or a command that fills one of them while we wait for another would hang.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager

from remote_trainer.errors import CommandTimeout, TransportError
from remote_trainer.ports import Channel, Completed

#: What a command may answer on one stream; a host that sends more wants to fill our memory.
ANSWER_LIMIT = 64 << 20


async def run_to_end(
    opened: AbstractAsyncContextManager[Channel], argv: Sequence[str], *, stdin: bytes, timeout_s: float, address: str
) -> Completed:
    """Feed stdin, collect both outputs, return them with the exit status. The time counts once the command was sent."""
    async with opened as channel:
        try:
            async with asyncio.timeout(timeout_s):
                out, err, _ = await asyncio.gather(
                    _collect(channel.read, address), _collect(channel.read_error, address), _feed(channel, stdin)
                )
                return Completed(await channel.wait(), out, err)
        except TimeoutError as error:
            raise CommandTimeout(f"{argv[0]} on {address} did not end within {timeout_s:g} s; it may still run there") from error


async def _feed(channel: Channel, data: bytes) -> None:
    if data:
        await channel.write(data)
    await channel.end()


async def _collect(read: Callable[[int], Awaitable[bytes]], address: str) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while piece := await read(1 << 20):
        pieces.append(piece)
        size += len(piece)
        if size > ANSWER_LIMIT:
            raise TransportError(
                f"{address} answered a command with more than {ANSWER_LIMIT >> 20} MiB; is it the machine it should be?"
            )
    return b"".join(pieces)
