"""An object store: what lies in it, and what happened to it on the way and at rest.

Rules for editing: the contract is that of ``ports.Objects``; what is stored may differ from what was announced, and only reading it
(``verify``, ``get``) shows that.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from remote_trainer.errors import DigestMismatch, Incomplete, NotFound
from remote_trainer.ports import StoredObject

if TYPE_CHECKING:
    from remote_trainer.testing.sim.world import World


@dataclass(slots=True)
class Stored:
    """An object: what lies there, and what it was announced as."""

    data: bytes
    announced: str

    @property
    def sha256(self) -> str:
        """Return the digest of what really lies there."""
        return hashlib.sha256(self.data).hexdigest()


def flipped(data: bytes, number: int) -> bytes:
    """Return the same with one bit turned around; what is empty stays empty."""
    if not data:
        return data
    place = number % len(data)
    return data[:place] + bytes([data[place] ^ 1 << number % 8]) + data[place + 1 :]


class Bucket:
    """All objects."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.objects: dict[str, Stored] = {}
        self.down_until = 0.0

    def put(self, key: str, data: bytes, sha256: str) -> StoredObject:
        """Keep what arrives; the same key and digest is there already."""
        known = self.objects.get(key)
        if known is None or (known.announced, len(known.data)) != (sha256, len(data)):
            self.objects[key] = known = Stored(self._damaged(data), sha256)
            self._world.promises.put(key)
        return StoredObject(key=key, size=len(known.data), sha256=known.announced)

    def _damaged(self, data: bytes) -> bytes:
        world = self._world
        if world.deal("object-truncated", world.faults.damage):
            return data[: world.dice.randrange(len(data) + 1)]
        if world.deal("object-damaged", world.faults.damage):
            return flipped(data, world.dice.getrandbits(16))
        return data

    def get(self, key: str, sha256: str) -> bytes:
        """Return what lies there, or raise if it is not what is asked for when it arrives."""
        stored = self.objects.get(key)
        if stored is None:
            raise NotFound(f"no object {key}")
        data = stored.data
        if self._world.deal("object-damaged", self._world.faults.damage):
            data = flipped(data, self._world.dice.getrandbits(16))
        if hashlib.sha256(data).hexdigest() != sha256:
            raise DigestMismatch(f"object {key} arrived as something else")
        return data

    def verify(self, key: str, size: int, sha256: str) -> None:
        """Read what lies there."""
        stored = self.objects.get(key)
        if stored is None:
            raise Incomplete(f"no object {key}")
        if (len(stored.data), stored.sha256) != (size, sha256):
            raise DigestMismatch(f"object {key} is something else")

    def list(self, prefix: str) -> list[StoredObject]:
        """Return what lies below a prefix, as it was announced."""
        prefix = prefix.rstrip("/") + "/"
        found = sorted(item for item in self.objects.items() if item[0].startswith(prefix))
        return [StoredObject(key=key, size=len(stored.data), sha256=stored.announced) for key, stored in found]

    def head(self, key: str) -> StoredObject | None:
        """Return what was announced of a key."""
        stored = self.objects.get(key)
        return StoredObject(key=key, size=len(stored.data), sha256=stored.announced) if stored else None

    def delete(self, key: str) -> None:
        """Remove; absent is success."""
        self.objects.pop(key, None)

    def rot(self) -> None:
        """Flip a bit of an object that nobody is about to verify: its attempt has ended."""
        old = [key for key in sorted(self.objects) if not self._world.promises.is_current(key)]
        if old:
            key = self._world.dice.choice(old)
            self._world.note("object-rots", key)
            self.objects[key].data = flipped(self.objects[key].data, self._world.dice.getrandbits(16))
