"""A bucket or folder of immutable objects. Rules for editing: as in the package's docstring."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from remote_trainer.ports.transport import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """What the object store says of a key. ``sha256`` is of the bytes as they were verified when put."""

    key: str
    size: int
    sha256: str


class Objects(Protocol):
    """A bucket (or folder) of immutable objects. All verbs raise ObjectsUnavailable when it cannot be reached or refuses us.

    One that is cancelled is over when it returns, but for a request that hangs: what it was writing does not appear later.
    """

    async def put(self, key: str, path: Path, *, sha256: str, progress: Progress | None = None) -> StoredObject:
        """Store a file under a key.

        The bytes are hashed while sent: DigestMismatch (and nothing kept) if they are not ``sha256``. Same key and digest:
        nothing is sent.
        """
        ...

    async def get(self, key: str, path: Path, *, sha256: str, progress: Progress | None = None) -> None:
        """Write an object to a file (temp, then rename), verified. NotFound if absent."""
        ...

    async def head(self, key: str) -> StoredObject | None:
        """Return what is known of a key, None if absent."""
        ...

    async def verify(self, key: str, *, size: int, sha256: str) -> None:
        """Make sure the stored bytes are those: Incomplete if absent, DigestMismatch if other."""
        ...

    def list(self, prefix: str) -> AsyncIterator[StoredObject]:
        """Yield all objects below a prefix, in key order; follows paging."""
        ...

    async def delete(self, key: str) -> None:
        """Remove; absent is success."""
        ...

    async def presign(self, key: str, *, expires_s: int) -> str:
        """Return a URL to download the object without credentials (a file:// one for a folder)."""
        ...

    async def check(self) -> str:
        """Prove that it can be written, read and deleted; returns it in words. Raises ObjectsUnavailable or ConfigError."""
        ...


@runtime_checkable
class Outbox(Protocol):
    """What a store may be besides: one to which a machine without credentials can put an object."""

    async def presign_put(self, key: str, *, expires_s: int) -> str:
        """Return a URL to which that object can be PUT; whoever has it can. What was put there is verified by nobody."""
        ...
