"""A server process of a test: started with a log file, awaited until it answers, killed with everything it forked.

Rules for editing: no server's particulars; a process group is ended as a whole, because wrappers fork.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.patience import PATIENCE_S

_PORTS = range(10_000, 32_768)
"""Below those the kernel gives to outgoing connections: none of them takes a server's port while it is down."""


def free_port() -> int:
    """A loopback port that nobody listens on now; drawn, so that processes side by side do not get the same one."""
    while True:
        port = secrets.choice(_PORTS)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def accepts(port: int, host: str = "127.0.0.1") -> bool:
    """Whether somebody listens there."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), 1):
        return True
    return False


@dataclass
class Server:
    """A command that serves until it is stopped; it may be started again."""

    command: Sequence[str]
    folder: Path
    ready: Callable[[], bool]
    environment: Mapping[str, str]
    _process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """What it has written so far."""
        return (self.folder / "log").read_text(errors="replace")

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it; returns once it is ready."""
        if self.running:
            return
        environment = {**os.environ, **self.environment}
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + PATIENCE_S
        while not self.ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                state = "is not ready" if self.running else f"ended with {self._process.returncode}"
                raise RuntimeError(f"{self.command[0]} {state}:\n{self.log}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Ask it to end, and wait."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """`kill -9`: no goodbye, nothing flushed."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(PATIENCE_S)
