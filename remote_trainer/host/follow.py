"""Follows a step's log over one channel: raw bytes on stdout, the supervisor's words on stderr, pings and acks on stdin.

Rules for editing: bytes are handed on in order and once; Ended comes only after the last byte; whatever else ends a follow is
HostUnreachable, which says nothing about the step. One coroutine reads, the one that iterates: what it does not take stays on the host.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from remote_trainer.errors import HostError, HostUnreachable
from remote_trainer.host import protocol
from remote_trainer.ports import Channel, Completed, Ended, FollowItem, Heartbeat, Output, StepStatus

PING_S = 20.0  # at the longest; renews the lease, too; the supervisor gives a silent follower up after 120 s
SILENCE_S = 3 * PING_S  # without a byte, not even an answer to our pings: the far end is gone, though nobody said so
_PIECE = 256 << 10
_LINE = 4096  # the longest control line that makes sense


class LogFollow:
    """Implements ports.Follow; made by SupervisedHost.follow."""

    def __init__(self, channel: Channel, address: str, what: str, offset: int) -> None:
        self._channel, self._address, self._what = channel, address, what
        self._at = offset  # position behind the last byte that was read
        self._ready: list[FollowItem] = []
        self._claimed = False
        self._final: StepStatus | None = None
        self._rest = b""  # of a control line that has not ended yet
        self._said = b""  # words that are not the protocol's: kept for the message
        self._stalled_at: int | None = None
        self._reader: asyncio.Task[object] | None = None  # waits for bytes since _reading_since, by the loop's clock
        self._reading_since = 0.0
        self._silent = False

    # -- the port

    def __aiter__(self) -> AsyncIterator[FollowItem]:
        return self._iterate()

    async def ack(self, offset: int) -> None:
        with contextlib.suppress(HostUnreachable):
            await self._channel.write(b"A %d\n" % offset)

    # -- for the host

    @contextlib.asynccontextmanager
    async def running(self, ping: bytes, every_s: float) -> AsyncIterator[LogFollow]:
        """Send the ping each so many seconds while inside; entered once the host has found the step, or raises what it says instead."""
        pinging = asyncio.create_task(self._ping(ping, every_s), name=f"ping {self._what}")
        try:
            while not self._claimed:
                await self._read()
            yield self
        finally:
            pinging.cancel()
            await asyncio.wait([pinging])

    # -- inside

    async def _iterate(self) -> AsyncIterator[FollowItem]:
        while True:
            ready, self._ready = self._ready, []
            for item in ready:
                yield item
            if self._complete():
                assert self._final
                yield Ended(self._final)
                return
            await self._read()

    def _complete(self) -> bool:
        return self._final is not None and self._at >= self._final.size

    async def _read(self) -> None:
        """Turn what arrives next into items. The log before the words: a final size may come in the same moment as its last bytes."""
        self._reader, self._reading_since = asyncio.current_task(), asyncio.get_running_loop().time()
        try:
            log, words = await self._channel.read_both(_PIECE)
        except asyncio.CancelledError:
            if not self._silent or self._reader is None or self._reader.uncancel():
                raise  # not ours, or not ours alone
            raise HostUnreachable(f"{self._address} said nothing for {SILENCE_S:g} s while following {self._what}") from None
        finally:
            self._reader = None
        if log:
            self._at += len(log)
            self._stalled_at = None
            self._ready.append(Output(log))
        if words:
            self._hear(words)
        if not (log or words):
            code = await self._channel.wait()
            raise protocol.ended_early(Completed(code, b"", self._said + self._rest), self._address, f"following {self._what}")

    def _hear(self, words: bytes) -> None:
        *lines, self._rest = (self._rest + words).split(b"\n")
        beat = None
        for line in lines:
            text = line.decode(errors="replace")
            match text[:2]:
                case "C ":
                    self._claimed = True
                case "H ":
                    beat = protocol.parse_heartbeat(text[2:])
                case "X ":
                    self._final = protocol.parse_state(text[2:])
                case _:
                    self._said = (self._said + line + b"\n")[-_LINE:]
        if beat is not None:
            self._note(beat)
        if len(self._rest) > _LINE:
            raise HostError(f"{self._address} sent words without end while following {self._what}")

    def _note(self, beat: Heartbeat) -> None:
        """Hand on a heartbeat; bytes that the host has but does not send for a whole ping mean that its sender died."""
        if beat.size > self._at == self._stalled_at:
            raise HostUnreachable(
                f"{self._address} has {beat.size} bytes of the log of {self._what} but stopped sending at {self._at}"
            )
        self._stalled_at = self._at
        self._ready.append(beat)

    async def _ping(self, ping: bytes, every_s: float) -> None:
        with contextlib.suppress(HostUnreachable):  # whoever iterates learns it, too
            while True:
                await asyncio.sleep(every_s)
                self._break_silence()
                await self._channel.write(ping)

    def _break_silence(self) -> None:
        """End a read that has waited too long. Looked at with each ping: a timer for each read would cost more than the read."""
        if self._reader is not None and asyncio.get_running_loop().time() - self._reading_since > SILENCE_S:
            self._silent = True
            self._reader.cancel()
