"""A real OpenSSH server on a loopback port, for the current user, that tests may stop, cut, re-key and restart.

Its sessions get an empty home of their own: a developer's `.bashrc` costs up to 90 ms per command and makes results personal.

Rules for editing: how such a server is run is the product's own (``remote_trainer.testing.openssh``); what a session started is found
again by a variable in its environment, so that no test leaves a process behind.
"""

from __future__ import annotations

import contextlib
import getpass
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from remote_trainer.testing import openssh
from tests.support.process import free_port
from tests.support.sshtarget import SshTarget, make_keys

_MARK = "REMOTE_TRAINER_TEST_SSHD"


@dataclass
class SshdServer(SshTarget):
    """One server; `start()` it before use, `close()` it after."""

    max_sessions: int = 2000
    max_startups: int = 3000
    environment: Mapping[str, str] = field(default_factory=dict)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def home(self) -> Path:
        """HOME and working folder of every session."""
        return self.folder / "home"

    @property
    def log(self) -> str:
        """What the server has written so far."""
        return (self.folder / "log").read_text(errors="replace")

    def start(self) -> None:
        """Listen; returns once the server has sent its banner."""
        if self._process is not None:
            return
        self._process = openssh.start(self.folder, self.port, self._config())

    def stop(self) -> None:
        """Stop listening and end all connections; what their users detached goes on. `start()` uses the same port."""
        if self._process is None:
            return
        process, self._process = self._process, None
        openssh.silence(process)

    def restart(self) -> None:
        """Stop, then start with the same key and port."""
        self.stop()
        self.start()

    def kill_sessions(self) -> int:
        """End every open connection as a crash would, and go on listening; returns how many sshd processes were killed."""
        assert self._process is not None, "the server is not running"
        doomed = openssh.sessions(self._process)
        openssh.kill(doomed)
        return len(doomed)

    def change_host_key(self) -> None:
        """Become another machine at the same address: a new host key, all connections closed."""
        running = self._process is not None
        self.stop()
        openssh.new_key(self.folder / "host_key")
        if running:
            self.start()

    def programs(self) -> list[int]:
        """Process ids of everything that sessions of this server started and that still runs."""
        return [pid for pid in openssh.pids() if openssh.has(pid, f"{_MARK}={self.folder}")]

    def close(self) -> None:
        """Stop the server and whatever its sessions left behind."""
        self.stop()
        while left := self.programs():
            openssh.kill(left)
            time.sleep(0.01)

    def _config(self) -> str:
        variables = {"HOME": str(self.home), _MARK: str(self.folder), **self.environment}
        return openssh.config(self.folder, self.port, variables, max_startups=self.max_startups, max_sessions=self.max_sessions)


def prepare(
    folder: Path, *, max_sessions: int = 2000, max_startups: int = 3000, environment: Mapping[str, str] | None = None
) -> SshdServer:
    """Lay out a server's folder: keys, an empty home, a free port. `environment` is added to each session's."""
    openssh.lay_out(folder)
    make_keys(folder)
    return SshdServer(folder, "127.0.0.1", free_port(), getpass.getuser(), max_sessions, max_startups, environment or {})


@contextlib.contextmanager
def running(server: SshdServer) -> Iterator[SshdServer]:
    """Start the server, and leave nothing of it behind."""
    try:
        server.start()
        yield server
    finally:
        server.close()


def missing() -> str | None:
    """Why no server can be started here, or None."""
    absent = [name for name in ("ssh", "rsync") if shutil.which(name) is None]
    return openssh.missing() or (f"not installed: {', '.join(absent)}" if absent else None)
