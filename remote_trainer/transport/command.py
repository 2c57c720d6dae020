"""A host behind an argv prefix: this machine (empty prefix), `docker exec -i NAME`, `kubectl exec -i POD --`.

Rules for editing: every child gets its own session, so that Ctrl-C in our terminal does not reach it; nothing here ties a child's life
to ours (no PDEATHSIG), because what it starts must outlive us.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import cast

from remote_trainer.errors import HostUnreachable
from remote_trainer.ports import Channel, Completed, Progress
from remote_trainer.threads import Threads, Watch
from remote_trainer.transport import local, stream
from remote_trainer.transport.channel import BufferedChannel
from remote_trainer.transport.running import run_to_end

# The shell answers "no such program" with status 127 and in its own words, as a remote login shell would.
_THIS_MACHINE = ("/bin/sh", "-c", 'exec "$@"', "sh")
_STALL_S = 240.0
_LEAVE_S = 1.0  # how long a command may take to end once its pipes are closed, and again after TERM

# What a login session has, and what programs that use a GPU look for. The rest of our environment holds our secrets.
_KEPT = {
    "HOME", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "SHELL", "SSL_CERT_DIR", "SSL_CERT_FILE", "TMPDIR", "TZ", "USER",
    "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "HF_HOME", "HF_ENDPOINT",
    "HF_HUB_OFFLINE", "VIRTUAL_ENV",
}  # fmt: skip
_KEPT_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "OMP_", "XDG_")


class CommandTransport:
    """Runs commands through a prefix; with an empty one, on this machine."""

    def __init__(self, prefix: Sequence[str] = (), *, address: str = "") -> None:
        self._prefix = tuple(prefix)
        self._address = address or " ".join(self._prefix) or "this machine"
        self._threads = Threads("files")

    @property
    def address(self) -> str:
        return self._address

    @property
    def host_key(self) -> str:
        return ""

    @property
    def shares_files(self) -> bool:
        return not self._prefix

    @property
    def stall_s(self) -> float:
        return _STALL_S

    def doubt(self) -> None:
        """Each command has a way of its own."""

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 60.0) -> Completed:
        return await run_to_end(self.open(argv), argv, stdin=stdin, timeout_s=timeout_s, address=self._address)

    def open(self, argv: Sequence[str]) -> AbstractAsyncContextManager[Channel]:
        return self._open(argv)

    @contextlib.asynccontextmanager
    async def _open(self, argv: Sequence[str]) -> AsyncIterator[Channel]:
        try:
            _, channel = await asyncio.get_running_loop().subprocess_exec(
                ProcessChannel,
                *(self._prefix or _THIS_MACHINE),
                *argv,
                start_new_session=True,
                env=None if self._prefix else login_environment(os.environ),
            )
        except OSError as error:
            what = self._prefix[0] if self._prefix else argv[0]
            raise HostUnreachable(
                f"cannot run {what} to reach {self._address}: {error.strerror or error}; is it installed, and on PATH?"
            ) from error
        async with channel:
            yield channel

    async def push(self, files: Sequence[Path], folder: str, *, progress: Progress | None = None) -> None:
        if self.shares_files:
            watch = Watch(progress)
            await self._threads.run(watch, lambda: local.push(files, folder, watch))
        else:
            await stream.send(self, await stream.survey(self, files, folder), progress=progress)

    async def pull(self, path: str, target: Path, *, size: int, progress: Progress | None = None) -> None:
        if self.shares_files:
            watch = Watch(progress)
            await self._threads.run(watch, lambda: local.pull(path, target, size, watch))
        else:
            await stream.pull(self.open, self._address, path, target, size=size, stall_s=self.stall_s, progress=progress)

    async def close(self) -> None:
        """Nothing is kept open between commands."""


def login_environment(ours: Mapping[str, str]) -> dict[str, str]:
    """Return the part of our environment that a command on this machine may see."""
    return {name: value for name, value in ours.items() if name in _KEPT or name.startswith(_KEPT_PREFIXES)}


class ProcessChannel(BufferedChannel, asyncio.SubprocessProtocol):
    """A child process as a Channel."""

    # -- called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._process = cast(asyncio.SubprocessTransport, transport)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.note_data(data, error_stream=fd == 2)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if fd == 0:
            self.note_writable(True)  # nobody reads any more: what is sent is dropped, as sshd drops it
        else:
            self.note_end(error_stream=fd == 2)

    def pause_writing(self) -> None:
        self.note_writable(False)

    def resume_writing(self) -> None:
        self.note_writable(True)

    def process_exited(self) -> None:
        code = self._process.get_returncode()
        assert code is not None
        self.note_exit(code)
        self.note_writable(True)

    # -- called by BufferedChannel

    def _send(self, data: bytes) -> None:
        if (pipe := self._stdin()) and not pipe.is_closing():
            pipe.write(data)

    def _send_end(self) -> None:
        if pipe := self._stdin():
            pipe.close()

    def _hold(self, hold: bool) -> None:
        for fd in (1, 2):
            pipe = cast(asyncio.ReadTransport | None, self._process.get_pipe_transport(fd))
            if pipe and not pipe.is_closing():
                (pipe.pause_reading if hold else pipe.resume_reading)()

    async def _leave(self) -> None:
        """Close its pipes, as sshd does; then TERM, then KILL for its session. What it had detached has a session of its own."""
        try:
            for fd in (0, 1, 2):
                if pipe := self._process.get_pipe_transport(fd):
                    pipe.close()
            for number in (signal.SIGTERM, signal.SIGKILL):
                if not await self._ends_within(_LEAVE_S):
                    self._signal(number)
        finally:
            self._process.close()  # kills what still runs

    async def _ends_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.wait()
        return self._over.done()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.get_pid(), number)

    def _stdin(self) -> asyncio.WriteTransport | None:
        return cast(asyncio.WriteTransport | None, self._process.get_pipe_transport(0))
