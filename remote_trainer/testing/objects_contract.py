"""What every object store keeps to, as a pytest suite: subclass ``ObjectsContract`` and give it an ``objects`` fixture.

    class TestMine(ObjectsContract):
        @pytest.fixture
        def objects(self, tmp_path): return MyObjects(tmp_path)

Rules for editing: only what ports.Objects promises; each docstring is one sentence of it. ``large`` must be more than one request.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from remote_trainer.errors import DigestMismatch, Incomplete, NotFound, UsageError
from remote_trainer.ports import Objects, StoredObject

#: Names that quoting, escaping and normalising get wrong.
ODD_NAMES = (
    "with space",
    "plus+and%25",
    "hash#question?and&equals=",
    "ünïcödé-日本-🐈",
    "quote'\"",
    "a:b;c,d@e",
    "~tilde",
    ".hidden",
    "x" * 200,
)
BAD_KEYS = ("", "/a", "a/", "a//b", "../a", "a/../b", "a/.", "./a", "a\nb", "a\0b", "a\\b", "a" * 256, "ab/" * 400 + "c")

Make = Callable[[bytes], tuple[Path, str]]


def sha256(data: bytes) -> str:
    """Return the digest the suite announces for some bytes."""
    return hashlib.sha256(data).hexdigest()


async def keys(objects: Objects, prefix: str) -> list[str]:
    """Return the keys below a prefix."""
    return [each.key async for each in objects.list(prefix)]


class ObjectsContract:
    """The suite."""

    #: Bytes of an object that is sent in several requests.
    large = 5_000_000

    @pytest.fixture
    def objects(self) -> Objects:
        """Return an empty store."""
        raise NotImplementedError

    @pytest.fixture
    def make(self, tmp_path: Path) -> Make:
        """Write bytes to a file; returns its path and digest."""
        folder = tmp_path / "made"
        folder.mkdir()

        def write(data: bytes) -> tuple[Path, str]:
            path = folder / f"{len(list(folder.iterdir()))}"
            path.write_bytes(data)
            return path, sha256(data)

        return write

    def fetch(self, url: str) -> bytes:
        """Download a presigned link as somebody without credentials."""
        with urllib.request.urlopen(url) as reply:  # noqa: S310
            return bytes(reply.read())

    @pytest.mark.parametrize("data", [b"", b"small", bytes(range(256)) * 9000], ids=["empty", "small", "2.3 MB"])
    async def test_what_was_put_is_got_back(self, objects: Objects, make: Make, tmp_path: Path, data: bytes) -> None:
        """A file that was put comes back byte for byte, and the store says its size and digest."""
        path, digest = make(data)
        known = StoredObject(key="t/j/a1/file", size=len(data), sha256=digest)
        assert await objects.put("t/j/a1/file", path, sha256=digest) == known
        assert await objects.head("t/j/a1/file") == known
        await objects.verify("t/j/a1/file", size=len(data), sha256=digest)
        await objects.get("t/j/a1/file", tmp_path / "new" / "folder" / "back", sha256=digest)
        assert (tmp_path / "new" / "folder" / "back").read_bytes() == data

    async def test_a_large_file(self, objects: Objects, make: Make, tmp_path: Path) -> None:
        """A file of several parts comes back byte for byte; progress grows to its size in both directions."""
        data = random.Random(0).randbytes(self.large)  # noqa: S311
        path, digest = make(data)
        sent: list[tuple[int, int]] = []
        got: list[tuple[int, int]] = []
        await objects.put("large", path, sha256=digest, progress=lambda *step: sent.append(step))
        await objects.verify("large", size=len(data), sha256=digest)
        await objects.get("large", tmp_path / "back", sha256=digest, progress=lambda *step: got.append(step))
        assert (tmp_path / "back").read_bytes() == data
        for steps in (sent, got):
            assert steps == sorted(steps)
            assert steps[-1] == (len(data), len(data))

    async def test_putting_the_same_again_sends_nothing(self, objects: Objects, make: Make) -> None:
        """The same key and digest is answered from what is known, without sending a byte."""
        path, digest = make(b"same")
        first = await objects.put("key", path, sha256=digest)
        steps: list[tuple[int, int]] = []
        assert await objects.put("key", path, sha256=digest, progress=lambda *step: steps.append(step)) == first
        assert not steps

    async def test_another_content_replaces(self, objects: Objects, make: Make) -> None:
        """Another content under the same key replaces the old one, with its digest."""
        for data in (b"old", b"new content"):
            path, digest = make(data)
            await objects.put("key", path, sha256=digest)
        assert await objects.head("key") == StoredObject(key="key", size=11, sha256=sha256(b"new content"))
        with pytest.raises(DigestMismatch):
            await objects.verify("key", size=3, sha256=sha256(b"old"))

    @pytest.mark.parametrize("size", ["small", "large"])
    async def test_a_wrong_announcement_keeps_nothing(self, objects: Objects, make: Make, size: str) -> None:
        """Bytes that are not those announced raise DigestMismatch, and neither they nor anything else is kept."""
        path, _ = make(b"x" * (self.large if size == "large" else 10))
        with pytest.raises(DigestMismatch, match="announced"):
            await objects.put("key", path, sha256=sha256(b"announced"))
        assert await objects.head("key") is None
        assert await keys(objects, "") == []

    async def test_a_missing_file(self, objects: Objects, tmp_path: Path) -> None:
        """A file that is not there raises Incomplete."""
        with pytest.raises(Incomplete, match="not there"):
            await objects.put("key", tmp_path / "none", sha256=sha256(b""))

    async def test_absent(self, objects: Objects, tmp_path: Path) -> None:
        """An absent object has no head, lists as nothing, cannot be got, verified or linked, and deleting it is success."""
        assert await objects.head("none") is None
        assert await keys(objects, "none") == []
        with pytest.raises(NotFound):
            await objects.get("none", tmp_path / "back", sha256=sha256(b""))
        with pytest.raises(Incomplete):
            await objects.verify("none", size=0, sha256=sha256(b""))
        with pytest.raises(NotFound):
            await objects.presign("none", expires_s=60)
        await objects.delete("none")
        assert "back" not in os.listdir(tmp_path)

    async def test_getting_other_bytes_than_expected(self, objects: Objects, make: Make, tmp_path: Path) -> None:
        """An object that is not what is expected raises DigestMismatch and leaves the file that was there alone."""
        path, digest = make(b"stored")
        await objects.put("key", path, sha256=digest)
        (tmp_path / "back").write_bytes(b"before")
        with pytest.raises(DigestMismatch):
            await objects.get("key", tmp_path / "back", sha256=sha256(b"expected"))
        assert (tmp_path / "back").read_bytes() == b"before"
        assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]

    async def test_verify_tells_size_and_digest(self, objects: Objects, make: Make) -> None:
        """Verify raises DigestMismatch for another size and for another digest."""
        path, digest = make(b"stored")
        await objects.put("key", path, sha256=digest)
        with pytest.raises(DigestMismatch):
            await objects.verify("key", size=7, sha256=digest)
        with pytest.raises(DigestMismatch):
            await objects.verify("key", size=6, sha256=sha256(b"other!"))

    async def test_listing(self, objects: Objects, make: Make) -> None:
        """A listing holds all objects below a folder and no others, in the order of their keys' bytes, with size and digest."""
        path, digest = make(b"12345")
        for key in ("t/j/a1/b/c", "t/j/a1/b-", "t/j/a1/é", "t/j/a1/z", "t/j/a10/x", "t/j/a1.x", "t/k/a1/x"):
            await objects.put(key, path, sha256=digest)
        expected = ["t/j/a1/b-", "t/j/a1/b/c", "t/j/a1/z", "t/j/a1/é"]
        assert [each async for each in objects.list("t/j/a1")] == [
            StoredObject(key=key, size=5, sha256=digest) for key in expected
        ]
        assert await keys(objects, "t/j/a1/") == expected
        assert len(await keys(objects, "")) == 7

    async def test_delete(self, objects: Objects, make: Make) -> None:
        """A deleted object is gone, its neighbours are not, and its key can be used again."""
        path, digest = make(b"data")
        for key in ("a/b/one", "a/b/two"):
            await objects.put(key, path, sha256=digest)
        await objects.delete("a/b/one")
        assert await keys(objects, "") == ["a/b/two"]
        await objects.put("a/b/one", path, sha256=digest)
        await objects.delete("a/b/two")
        await objects.delete("a/b/one")
        assert await keys(objects, "") == []

    @pytest.mark.parametrize("name", ODD_NAMES, ids=lambda name: name[:12])
    async def test_odd_names(self, objects: Objects, make: Make, tmp_path: Path, name: str) -> None:
        """Names that need quoting somewhere are kept, listed, linked and removed like any other."""
        path, digest = make(name.encode())
        key = f"t/{name}/{name}.bin"
        await objects.put(key, path, sha256=digest)
        assert await keys(objects, f"t/{name}") == [key]
        await objects.get(key, tmp_path / "back", sha256=digest)
        assert (tmp_path / "back").read_bytes() == name.encode()
        assert self.fetch(await objects.presign(key, expires_s=60)) == name.encode()
        await objects.delete(key)
        assert await objects.head(key) is None

    @pytest.mark.parametrize("key", BAD_KEYS, ids=lambda key: repr(key[:6]))
    async def test_bad_keys_are_refused(self, objects: Objects, make: Make, tmp_path: Path, key: str) -> None:
        """A key that could leave the store, or mean another object elsewhere, is refused by every verb."""
        path, digest = make(b"data")
        with pytest.raises(UsageError):
            await objects.put(key, path, sha256=digest)
        with pytest.raises(UsageError):
            await objects.get(key, tmp_path / "back", sha256=digest)
        with pytest.raises(UsageError):
            await objects.head(key)
        with pytest.raises(UsageError):
            await objects.delete(key)

    async def test_many_at_once(self, objects: Objects, make: Make, tmp_path: Path) -> None:
        """Many objects can be put, read and removed at the same time, two of them under the same key."""
        files = {f"many/{number}": make(bytes([number]) * 1000) for number in range(20)}
        same, digest = make(b"same")

        async def round_trip(key: str, path: Path, digest: str) -> None:
            await objects.put(key, path, sha256=digest)
            await objects.get(key, tmp_path / "back" / key, sha256=digest)

        async with asyncio.TaskGroup() as group:
            for key, (path, its) in files.items():
                group.create_task(round_trip(key, path, its))
            for _ in range(2):
                group.create_task(objects.put("same", same, sha256=digest))
        assert await keys(objects, "many") == sorted(files)
        await objects.verify("same", size=4, sha256=digest)
        async with asyncio.TaskGroup() as group:
            for key in files:
                group.create_task(objects.delete(key))
        assert await keys(objects, "") == ["same"]

    async def test_a_cancelled_put_leaves_nothing(self, objects: Objects, make: Make) -> None:
        """A put that is cancelled half way keeps nothing, and the key can be put again."""
        path, digest = make(b"y" * self.large)
        started = asyncio.Event()
        task = asyncio.create_task(objects.put("key", path, sha256=digest, progress=lambda *_: started.set()))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await objects.head("key") in (None, StoredObject(key="key", size=self.large, sha256=digest))
        await objects.put("key", path, sha256=digest)
        await objects.verify("key", size=self.large, sha256=digest)

    async def test_check(self, objects: Objects) -> None:
        """A check says in words what was proven and leaves nothing behind."""
        assert len(await objects.check()) > 10
        assert await keys(objects, "") == []
