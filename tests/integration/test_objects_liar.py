"""An object store that lies: other bytes, too few of them, success for what it did not take. Refused, or fetched anew; never accepted."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from remote_trainer.config import S3Settings
from remote_trainer.errors import DigestMismatch, ObjectsUnavailable
from remote_trainer.objects.open import open_objects
from remote_trainer.objects.s3 import PART
from remote_trainer.ports import Objects
from tests.support import s3 as servers
from tests.support.liar import Liar, lying
from tests.support.s3 import S3Bucket

pytestmark = [pytest.mark.s3, pytest.mark.fault("object-store-lies")]
SIZES = {"small": 100_000, "one request": 2 << 20, "parts": PART + 100_000}


@pytest.fixture(params=SIZES)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """A file that goes in one request or in parts, and its digest."""
    path, data = tmp_path / "file", os.urandom(SIZES[request.param])
    path.write_bytes(data)
    return path, hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Bucket]:
    with servers.running("ministack", tmp_path_factory.mktemp("s3")) as server:
        yield server.new_bucket()


@pytest.fixture
def liar(bucket: S3Bucket) -> Iterator[Liar]:
    with lying(bucket.server.proxy.target) as liar:
        yield liar


@pytest.fixture
def objects(bucket: S3Bucket, liar: Liar, tmp_path: Path) -> Objects:
    known = bucket.server.access | {"endpoint": f"http://127.0.0.1:{liar.port}"}
    return open_objects(f"s3://{bucket.bucket}/{tmp_path.name}", S3Settings.model_validate(known))


def flipped(data: bytes) -> bytes:
    """One bit is another."""
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :]


@pytest.mark.parametrize("lie", ["flips a bit", "drops the end"])
async def test_an_upload_that_was_not_taken(objects: Objects, liar: Liar, file: tuple[Path, str], lie: str) -> None:
    """The server says that it took the file, and has other bytes: the put, or the verify after it, refuses; the next put is right."""
    path, digest = file

    def up(method: str, name: str, body: bytes) -> bytes:
        if method != "PUT" or len(body) < 50_000:
            return body
        return flipped(body) if lie == "flips a bit" else body[: len(body) // 2]

    liar.up = up
    with pytest.raises(DigestMismatch):
        await objects.put("key", path, sha256=digest)
        await objects.verify("key", size=path.stat().st_size, sha256=digest)
    liar.up = lambda method, name, body: body
    await objects.delete("key")
    await objects.put("key", path, sha256=digest)
    await objects.verify("key", size=path.stat().st_size, sha256=digest)


async def test_a_download_of_other_bytes(objects: Objects, liar: Liar, file: tuple[Path, str], tmp_path: Path) -> None:
    """A server that returns other bytes is refused, and nothing of them stays; the next get is right."""
    path, digest = file
    await objects.put("key", path, sha256=digest)
    liar.down = lambda method, name, body: flipped(body) if method == "GET" and len(body) > 50_000 else body
    with pytest.raises(DigestMismatch):
        await objects.get("key", tmp_path / "back" / "file", sha256=digest)
    assert list((tmp_path / "back").iterdir()) == []
    liar.down = lambda method, name, body: body
    await objects.get("key", tmp_path / "back" / "file", sha256=digest)
    assert (tmp_path / "back" / "file").read_bytes() == path.read_bytes()


async def test_a_download_that_ends_too_early(objects: Objects, liar: Liar, file: tuple[Path, str], tmp_path: Path) -> None:
    """A body that is shorter than it should be is gone on with; when nothing comes any more, the store counts as down."""
    path, digest = file
    await objects.put("key", path, sha256=digest)
    liar.down = lambda method, name, body: body[: len(body) // 2 + 1] if method == "GET" and len(body) > 5_000 else body
    liar.asked.clear()
    await objects.get("key", tmp_path / "back", sha256=digest)
    assert (tmp_path / "back").read_bytes() == path.read_bytes()
    assert 1 < sum(asked.startswith("GET") for asked in liar.asked) < 30
    liar.down = lambda method, name, body: b"" if method == "GET" else body
    with pytest.raises(ObjectsUnavailable, match="again and again"):
        await objects.get("key", tmp_path / "again", sha256=digest)


async def test_an_etag_that_proves_nothing(objects: Objects, liar: Liar, file: tuple[Path, str]) -> None:
    """A server with ETags of its own kind, as with KMS, is believed once the object was read again."""
    path, digest = file
    false = "0123456789abcdef0123456789abcdef"
    liar.etag = lambda name: None if "partNumber" in name else f'"{false}"'
    liar.down = lambda method, name, body: re.sub(rb"[0-9a-f]{32}-2", false.encode() + b"-2", body) if method == "POST" else body
    liar.asked.clear()
    await objects.put("key", path, sha256=digest)
    assert any(asked.startswith("GET") and asked.endswith("/key") for asked in liar.asked)
