"""The way to one host: commands and files. Rules for editing: as in the package's docstring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that ended. ``code`` is its exit status, negative for a signal."""

    code: int
    stdout: bytes
    stderr: bytes


class Channel(Protocol):
    """A running command with its three streams.

    Used as an async context manager; leaving it ends the channel (EOF, then close).
    """

    async def read(self, limit: int = 1 << 16) -> bytes:
        """Return some bytes of stdout, b'' at EOF. HostUnreachable if the connection broke."""
        ...

    async def read_error(self, limit: int = 1 << 16) -> bytes:
        """Return some bytes of stderr, b'' at EOF. HostUnreachable if the connection broke."""
        ...

    async def read_both(self, limit: int = 1 << 16) -> tuple[bytes, bytes]:
        """Return some bytes of stdout and of stderr, waiting for either; both empty at the end of both.

        Instead of, never beside, the other two. HostUnreachable if the connection broke.
        """
        ...

    async def write(self, data: bytes) -> None:
        """Send to stdin, with flow control. HostUnreachable if the connection broke."""
        ...

    async def end(self) -> None:
        """Send EOF on stdin. Idempotent."""
        ...

    async def wait(self) -> int:
        """Return the exit status once the command ended.

        HostUnreachable if the connection broke first (never read that as an exit).
        """
        ...

    async def __aenter__(self) -> Channel: ...

    async def __aexit__(self, *exc: object) -> None: ...


Progress = Callable[[int, int], None]  # (bytes done, bytes in all)


class Transport(Protocol):
    """The way to one host: commands and files. Safe to use from many tasks; connects on first use and again after a break.

    Every verb raises HostUnreachable (nothing known about what runs there) or HostKeyMismatch (permanent).
    """

    @property
    def address(self) -> str:
        """Return the host in words, for messages: ``user@box:22``."""
        ...

    @property
    def host_key(self) -> str:
        """Return the OpenSSH public key line seen at the last connect; empty where there is none."""
        ...

    @property
    def shares_files(self) -> bool:
        """Is the host's file system ours too (this machine)? Then local paths are readable there."""
        ...

    @property
    def stall_s(self) -> float:
        """Return for how many seconds a transfer may not move at all before it is given up, and begun again over a new connection."""
        ...

    def doubt(self) -> None:
        """Distrust what is connected: whatever is opened from now on goes over a new connection."""
        ...

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 60.0) -> Completed:
        """Run a command to its end; arguments arrive exactly as given. CommandTimeout when it takes longer (it may still run)."""
        ...

    def open(self, argv: Sequence[str]) -> AbstractAsyncContextManager[Channel]:
        """Start a command and talk to it."""
        ...

    async def push(self, files: Sequence[Path], folder: str, *, progress: Progress | None = None) -> None:
        """Copy local files into a folder of the host (made if missing) under their own names.

        Resumable, atomic per file, existing complete ones skipped by name and size.
        """
        ...

    async def pull(self, path: str, target: Path, *, size: int, progress: Progress | None = None) -> None:
        """Copy one file of the host; resumes a partial ``target``; ``size`` is what was announced.

        More bytes are refused (DigestMismatch).
        """
        ...

    async def close(self) -> None:
        """End the connection. Idempotent."""
        ...
