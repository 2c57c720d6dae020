"""One followed step: bytes from the host into the store, exactly once each, and the step's end.

The store's own size of the stream is the offset to go on from, so a repeated byte is impossible and a lost one would be a gap that the
store refuses. Bytes that are being written bound what is in memory; the host gets its space back for what is durable.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from datetime import datetime

from remote_trainer.errors import HostUnreachable
from remote_trainer.model import JobId, LogChunk, Metric, Plan, Token
from remote_trainer.ports import Change, Ended, Follow, Heartbeat, Output, StepStatus
from remote_trainer.worker.metrics import LineReader, PatternReader
from remote_trainer.worker.writer import Writer

_UNWRITTEN_MAX = 8 << 20  # bytes of log in memory before we stop reading: the SSH window then stops the host
_ACK_EVERY = 16 << 20  # bytes between two acknowledgements


class LogCopy:
    """Copies one step's log into the store, from where the store ends."""

    def __init__(self, writer: Writer, job_id: JobId, token: Token, stream: str, plan: Plan, now: Callable[[], datetime]) -> None:
        self._writer, self._job_id, self._token, self._stream, self._now = writer, job_id, token, stream, now
        self._patterns = PatternReader(plan.patterns)
        self._writing: deque[tuple[int, asyncio.Future[None]]] = deque()  # (end offset, durable?)
        self._offset = self._durable = self._acked = 0
        self._lines = LineReader()

    async def run(self, follow: Follow, offset: int, tail: bytes, hear: Callable[[Heartbeat], None]) -> StepStatus:
        """Copy until the step's end and return its last word; every byte is durable then.

        ``offset`` and ``tail`` are the stream's size in the store and its last bytes; ``hear`` is told of every heartbeat.
        """
        self._offset = self._durable = self._acked = offset
        self._lines = LineReader(tail.replace(b"\r", b"\n").rpartition(b"\n")[2])
        async for item in follow:
            match item:
                case Output(data):
                    self._put(data)
                    await self._settle(follow, _UNWRITTEN_MAX)
                case Heartbeat():
                    hear(item)
                    await self._settle(follow, _UNWRITTEN_MAX)
                case Ended(status):
                    await self._settle(follow, 0)
                    return status
        raise HostUnreachable(f"the log {self._stream} of job {self._job_id} ended without the step's end: trying again")

    def _put(self, data: bytes) -> None:
        at = self._now()
        found = [values for line in self._lines.feed(data) if (values := self._patterns.read(line))]
        metrics = tuple(Metric(at=at, stream=self._stream, values=values) for values in found)
        chunk = LogChunk(stream=self._stream, offset=self._offset, data=data)
        self._offset += len(data)
        future = self._writer.put(Change(job_id=self._job_id, token=self._token, logs=(chunk,), metrics=metrics))
        future.add_done_callback(_looked_at)
        self._writing.append((self._offset, future))

    async def _settle(self, follow: Follow, unwritten_max: int) -> None:
        """Take note of what became durable; wait until at most ``unwritten_max`` bytes are not."""
        while self._writing and (self._writing[0][1].done() or self._offset - self._durable > unwritten_max):
            end, written = self._writing[0]
            await written
            self._writing.popleft()
            self._durable = end
        if self._durable - self._acked >= _ACK_EVERY:
            self._acked = self._durable
            await follow.ack(self._durable)


def _looked_at(written: asyncio.Future[None]) -> None:
    """A follow that ended first does not wait for its last writes any more: that one failed is no news then."""
    if not written.cancelled():
        written.exception()
