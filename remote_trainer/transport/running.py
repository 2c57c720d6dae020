"""Runs a command to its end over any channel: the one implementation of Transport.run.

Rules for editing: all three streams are served at once, or a command that fills one of them while we wait for another would hang.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

from remote_trainer.errors import CommandTimeout, TransportError
from remote_trainer.ports import Channel, Completed

#: What a command may answer, in bytes; a host that sends more wants to fill our memory.
ANSWER_LIMIT = 64 << 20


async def run_to_end(
    opened: AbstractAsyncContextManager[Channel], argv: Sequence[str], *, stdin: bytes, timeout_s: float, address: str
) -> Completed:
    """Feed stdin, collect both outputs, return them with the exit status. The time counts once the command was sent."""
    async with opened as channel:
        try:
            async with asyncio.timeout(timeout_s):
                (out, err), _ = await asyncio.gather(_collect(channel, address), _feed(channel, stdin))
                return Completed(await channel.wait(), out, err)
        except TimeoutError as error:
            raise CommandTimeout(f"{argv[0]} on {address} did not end within {timeout_s:g} s; it may still run there") from error


async def _feed(channel: Channel, data: bytes) -> None:
    if data:
        await channel.write(data)
    await channel.end()


async def _collect(channel: Channel, address: str) -> tuple[bytes, bytes]:
    outs, errs, size = [], [], 0
    while (piece := await channel.read_both(1 << 20)) != (b"", b""):
        outs.append(piece[0])
        errs.append(piece[1])
        size += len(piece[0]) + len(piece[1])
        if size > ANSWER_LIMIT:
            raise TransportError(
                f"{address} answered a command with more than {ANSWER_LIMIT >> 20} MiB; is it the machine it should be?"
            )
    return b"".join(outs), b"".join(errs)
