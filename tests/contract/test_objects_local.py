"""The folder as object store: the contract, and what only a folder can get wrong."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from remote_trainer.errors import ConfigError, Conflict, DigestMismatch, ObjectsUnavailable
from remote_trainer.objects.local import LocalObjects
from remote_trainer.objects.open import open_objects
from remote_trainer.testing.objects_contract import Make, ObjectsContract, keys, sha256


class TestLocalObjects(ObjectsContract):
    """The folder keeps to the contract."""

    @pytest.fixture
    def objects(self, tmp_path: Path) -> LocalObjects:  # type: ignore[override]
        return LocalObjects(tmp_path / "store")

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        return tmp_path / "store"

    async def test_an_object_is_a_plain_file(self, objects: LocalObjects, make: Make, root: Path) -> None:
        """People find an object as a file under its key."""
        path, digest = make(b"data")
        await objects.put("t/j/a1/model.bin", path, sha256=digest)
        assert (root / "t/j/a1/model.bin").read_bytes() == b"data"

    @pytest.mark.fault("data-damaged")
    async def test_a_file_changed_by_hand_is_noticed(self, objects: LocalObjects, make: Make, root: Path) -> None:
        """The noted digest is not believed for a file that changed since, nor by verify for one that only looks unchanged."""
        path, digest = make(b"data")
        await objects.put("key", path, sha256=digest)
        before = (root / "key").stat()
        (root / "key").write_bytes(b"DATA")
        os.utime(root / "key", ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(DigestMismatch):
            await objects.verify("key", size=4, sha256=digest)
        os.utime(root / "key", ns=(0, 0))
        found = await objects.head("key")
        assert found and found.sha256 == sha256(b"DATA")

    @pytest.mark.parametrize("note", [None, "", "torn", "a b c"])
    async def test_a_lost_note_is_made_again(self, objects: LocalObjects, make: Make, root: Path, note: str | None) -> None:
        """Without its note, or with a damaged one, an object's digest is computed again."""
        path, digest = make(b"data")
        known = await objects.put("a/key", path, sha256=digest)
        if note is None:
            (root / ".meta/a/key").unlink()
        else:
            (root / ".meta/a/key").write_text(note)
        assert await objects.head("a/key") == known
        assert (root / ".meta/a/key").read_text().startswith(digest)

    async def test_a_full_disk(self, objects: LocalObjects, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        """A full disk raises ObjectsUnavailable with the space that is left, keeps no part of the file, and later it works."""
        path, digest = make(b"data")

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)  # where file systems that allocate late say it
            with pytest.raises(ObjectsUnavailable, match=r"full.*MB free"):
                await objects.put("key", path, sha256=digest)
        assert await keys(objects, "") == []
        assert not list((objects._root / ".tmp").iterdir())
        await objects.put("key", path, sha256=digest)

    @pytest.mark.fault("worker-killed")
    async def test_what_a_killed_process_left(self, objects: LocalObjects, make: Make, root: Path) -> None:
        """Half a copy that a killed process left is removed after a day; one that may still be written to is not."""
        (root / ".tmp").mkdir(parents=True)
        for name, age_s in (("old", 90_000), ("new", 60)):
            (root / ".tmp" / name).write_bytes(b"half")
            os.utime(root / ".tmp" / name, (time.time() - age_s,) * 2)
        path, digest = make(b"data")
        await objects.put("key", path, sha256=digest)
        assert os.listdir(root / ".tmp") == ["new"]

    async def test_a_folder_that_cannot_be_used(self, tmp_path: Path, make: Make) -> None:
        """A root that is a file is told as such, by check too."""
        (tmp_path / "file").write_text("")
        objects = LocalObjects(tmp_path / "file" / "store")
        path, digest = make(b"data")
        with pytest.raises(ObjectsUnavailable, match="cannot be used"):
            await objects.put("key", path, sha256=digest)
        with pytest.raises(ObjectsUnavailable, match="cannot be used"):
            await objects.check()

    async def test_a_key_below_another_object(self, objects: LocalObjects, make: Make) -> None:
        """A key whose folder is another object is a Conflict, as are the store's own folders."""
        path, digest = make(b"data")
        await objects.put("a", path, sha256=digest)
        for key in ("a/b", ".meta/a", ".tmp/a"):
            with pytest.raises(Conflict):
                await objects.put(key, path, sha256=digest)

    @pytest.mark.parametrize("url", ["{root}", "file://{root}"])
    async def test_chosen_by_url(self, root: Path, make: Make, url: str) -> None:
        """A path and a file:// URL name a folder; other schemes are refused."""
        path, digest = make(b"data")
        objects = open_objects(url.format(root=root / "with%20space"), None)  # type: ignore[arg-type]
        await objects.put("key", path, sha256=digest)
        name = "with space" if url.startswith("file") else "with%20space"
        assert (root / name / "key").read_bytes() == b"data"
        with pytest.raises(ConfigError):
            open_objects("ftp://x/y", None)  # type: ignore[arg-type]
