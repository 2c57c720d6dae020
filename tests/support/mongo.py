"""A server that speaks MongoDB's protocol: SecantusDB as a separate process, or a real one named by the environment.

Rules for editing: the server is GPL code: run it, never import it. Its speed says nothing about MongoDB's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import venvs
from tests.support.environment import ORIGINAL
from tests.support.process import Server, accepts, free_port

REAL_URI = ORIGINAL.get("REMOTE_TRAINER_TEST_MONGODB")
"""A real server to use instead; it cannot be killed, and tests make databases of their own in it."""


@dataclass
class MongoServer:
    """One server whose data outlive `kill()`; takes configureFailPoint, which makes the next commands fail as told."""

    folder: Path
    port: int = field(default_factory=free_port)
    _server: Server | None = None

    @property
    def uri(self) -> str:
        """For a client; a short selection timeout lets a test see quickly that the server is down."""
        return self._uri(within_s=2)

    @property
    def shared_uri(self) -> str:
        """For a client of a server that nobody stops: it may be busy for a while."""
        return self._uri(within_s=60)

    def _uri(self, within_s: int) -> str:
        return f"mongodb://127.0.0.1:{self.port}/?directConnection=true&serverSelectionTimeoutMS={within_s * 1000}"

    @property
    def log(self) -> str:
        """What the server has written."""
        return self._server.log if self._server else ""

    def start(self) -> None:
        """Serve; returns once connections are accepted. The same data as before."""
        if self._server is None:
            self._server = Server(self._command(), self.folder, lambda: accepts(self.port), {})
        self._server.start()

    def stop(self) -> None:
        """An orderly end."""
        if self._server is not None:
            self._server.stop()

    def kill(self) -> None:
        """`kill -9`: what was not acknowledged with journal=True may be lost."""
        if self._server is not None:
            self._server.kill()

    def restart(self) -> None:
        """Stop in order and start again."""
        self.stop()
        self.start()

    def _command(self) -> list[str]:
        python = venvs.program("secantusdb", "python")
        command = [python, "-m", "secantus", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--storage-path", str(self.folder / "data"), "--cache-size", "256M", "--log-level", "WARNING"]
        return [*command, "--enable-test-commands"]


@contextlib.contextmanager
def running(folder: Path) -> Iterator[MongoServer]:
    """A server for as long as the block lasts."""
    server = MongoServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def missing() -> str | None:
    """Why there is no server to test against, or None."""
    return None if REAL_URI else venvs.missing("secantusdb")
