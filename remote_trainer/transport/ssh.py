"""A host over SSH: commands over shared asyncssh connections, files by rsync with the same pinned key, or by a stream without it.

Rules for editing: a lost connection is never an exit; a command is quoted in quote.py only; nothing is said about what runs on the host
when it cannot be reached.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import asyncssh

from remote_trainer.errors import HostUnreachable, LoginRefused
from remote_trainer.ports import Channel, Completed, DriverSettings, Progress
from remote_trainer.transport import connect, rsync, stream
from remote_trainer.transport.channel import BufferedChannel
from remote_trainer.transport.hostkeys import HostKeys
from remote_trainer.transport.pool import Link, Pool
from remote_trainer.transport.quote import command_line
from remote_trainer.transport.running import run_to_end
from remote_trainer.transport.target import parse_target

#: Bytes of a channel that may be under way to us. It bounds memory, and a download to this much per round trip.
WINDOW = 4 << 20
PULL_WINDOW = 16 << 20

# One SSH channel carries at most OpenSSH's window per round trip upwards: more streams fill a long fat pipe.
_OPENSSH_WINDOW = 2 << 20
_ASSUMED_BANDWIDTH = 119_000_000  # bytes/s: a gigabit link
_MOST_STREAMS = 8


class SshTransport:
    """Implements ports.Transport over SSH. ``host_key`` pins an OpenSSH public key line; without one, the first use pins.

    ``on_refused`` is called whenever the host answers and does not let us in.
    """

    def __init__(
        self,
        target: str,
        settings: DriverSettings,
        *,
        host_key: str = "",
        identity: Path | None = None,
        on_refused: Callable[[], None] = lambda: None,
    ) -> None:
        self._login = connect.Login(parse_target(target), settings, identity)
        self._keys = HostKeys(host_key)
        self._address = str(self._login.target)
        self._pool = Pool(self._log_in, self._address)
        self._round_trip = 0.0
        self._on_refused = on_refused

    async def _log_in(self) -> asyncssh.SSHClientConnection:
        try:
            return await connect.connect(self._login, self._keys, self._address)
        except LoginRefused:
            self._on_refused()
            raise

    @property
    def address(self) -> str:
        return self._address

    @property
    def host_key(self) -> str:
        return self._keys.pinned

    @property
    def shares_files(self) -> bool:
        return False

    @property
    def stall_s(self) -> float:
        return self._login.settings.stall_s

    def doubt(self) -> None:
        self._pool.doubt()

    @property
    def round_trip_s(self) -> float:
        """Return the shortest round trip seen, over SSH; 0 before the first command."""
        return self._round_trip

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 60.0) -> Completed:
        return await run_to_end(self.open(argv), argv, stdin=stdin, timeout_s=timeout_s, address=self._address)

    def open(self, argv: Sequence[str]) -> AbstractAsyncContextManager[Channel]:
        return self._open(command_line(argv), WINDOW)

    @contextlib.asynccontextmanager
    async def _open(self, command: str, window: int) -> AsyncIterator[Channel]:
        async def start(link: Link) -> SshChannel:
            began = time.monotonic()
            session = SshChannel(self._address)
            link.flow.tell(session)
            await link.connection.create_session(
                lambda: session, command, encoding=None, window=window, request_pty=False, send_env=(), env={}
            )
            self._note_round_trip((time.monotonic() - began) / 2)  # one for the channel, one for the command
            return session

        channel, link = await self._pool.channel(start)
        try:
            async with channel:
                yield channel
        finally:
            self._pool.release(link)

    def _note_round_trip(self, seconds: float) -> None:
        self._round_trip = min(self._round_trip or seconds, seconds)

    async def push(self, files: Sequence[Path], folder: str, *, progress: Progress | None = None) -> None:
        seen = await stream.survey(self, files, folder)
        streams = streams_for(self._round_trip, len(seen.missing))
        if seen.missing and rsync.usable(seen):
            shell = rsync.Shell(self._login, self._keys.pinned, self._address)
            await rsync.push(shell, seen, streams=streams, progress=progress)
        else:
            await stream.send(self, seen, streams=streams, progress=progress)

    async def pull(self, path: str, target: Path, *, size: int, progress: Progress | None = None) -> None:
        def opened(argv: Sequence[str]) -> AbstractAsyncContextManager[Channel]:
            return self._open(command_line(argv), PULL_WINDOW)

        try:
            await stream.pull(opened, self._address, path, target, size=size, stall_s=self.stall_s, progress=progress)
        except stream.Stalled:
            self.doubt()
            raise

    async def close(self) -> None:
        await self._pool.close()


def streams_for(round_trip_s: float, files: int) -> int:
    """Return how many streams fill a gigabit link at that round trip, at most one per file."""
    wanted = -(-int(round_trip_s * _ASSUMED_BANDWIDTH) // _OPENSSH_WINDOW)
    return max(1, min(wanted, files, _MOST_STREAMS))


class SshChannel(BufferedChannel, asyncssh.SSHClientSession[bytes]):
    """An SSH session channel as a Channel."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._address = address
        self._window_open = self._line_open = True

    # -- called by asyncssh; must not raise

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self._channel = chan

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        self.note_data(data, error_stream=datatype == asyncssh.EXTENDED_DATA_STDERR)

    def eof_received(self) -> bool:
        self.note_end(error_stream=False)
        self.note_end(error_stream=True)
        return True  # our side stays open: the command may still read

    def exit_status_received(self, status: int) -> None:
        self.note_exit(status)

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:
        self.note_exit(self._channel.get_returncode() or -1)

    def pause_writing(self) -> None:
        self._window_open = False
        self.note_writable(False)

    def resume_writing(self) -> None:
        self._window_open = True
        self.note_writable(self._line_open)

    def note_line(self, takes: bool) -> None:
        """The connection, with all its channels, takes more data or not."""
        self._line_open = takes
        self.note_writable(takes and self._window_open)

    def connection_lost(self, exc: Exception | None) -> None:
        self.note_closed(HostUnreachable(f"the connection to {self._address} broke: {exc or 'closed without an exit status'}"))

    # -- called by BufferedChannel

    def _send(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # closing: the command no longer reads
            self._channel.write(data)

    def _send_end(self) -> None:
        with contextlib.suppress(OSError):
            self._channel.write_eof()

    def _hold(self, hold: bool) -> None:
        (self._channel.pause_reading if hold else self._channel.resume_reading)()

    async def _leave(self) -> None:
        self._channel.close()
