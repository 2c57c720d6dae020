"""S3 against two real servers behind TLS: the contract, and what only a bucket can get wrong."""

from __future__ import annotations

import asyncio
import ssl
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remote_trainer.config import S3Settings
from remote_trainer.errors import ConfigError, DigestMismatch, ObjectsUnavailable
from remote_trainer.objects import s3 as module
from remote_trainer.objects.open import open_objects
from remote_trainer.objects.s3 import S3Objects
from remote_trainer.ports import StoredObject
from remote_trainer.testing.objects_contract import Make, ObjectsContract, keys, sha256
from tests.support import s3 as servers
from tests.support.s3 import S3Bucket, S3Server


def settings(server: S3Server, **changes: Any) -> S3Settings:
    return S3Settings.model_validate(server.access | changes)


def uploads(bucket: S3Bucket, key: str) -> list[Any]:
    """Unfinished uploads of a key, as the server tells them."""
    found = bucket.server.client().list_multipart_uploads(Bucket=bucket.bucket, Prefix=key)
    return [each for each in found.get("Uploads", []) if each["Key"] == key]


class TestS3Objects(ObjectsContract):
    """Each server keeps to the contract."""

    large = 3 * module.PART + 4

    @pytest.fixture
    def bucket(self, s3_bucket: S3Bucket) -> S3Bucket:
        return s3_bucket

    @pytest.fixture
    def objects(self, bucket: S3Bucket) -> S3Objects:  # type: ignore[override]
        found = open_objects(f"s3://{bucket.bucket}/some/prefix", settings(bucket.server))
        assert isinstance(found, S3Objects)
        self.trusted = ssl.create_default_context(cafile=str(bucket.ca_bundle))
        return found

    def fetch(self, url: str) -> bytes:
        with urllib.request.urlopen(url, context=self.trusted) as reply:
            return bytes(reply.read())

    async def test_stores_of_one_bucket_are_apart(self, objects: S3Objects, bucket: S3Bucket, make: Make) -> None:
        """A store sees only what lies below its prefix, also beside one whose prefix begins with the same letters."""
        path, digest = make(b"data")
        other = S3Objects(bucket.bucket, "some/prefix2", settings(bucket.server))
        whole = S3Objects(bucket.bucket, "", settings(bucket.server))
        await objects.put("key", path, sha256=digest)
        await other.put("other", path, sha256=digest)
        assert await keys(objects, "") == ["key"]
        assert await keys(whole, "") == ["some/prefix/key", "some/prefix2/other"]

    async def test_a_listing_of_many_pages(self, objects: S3Objects, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        """A listing follows the server's paging to its end."""
        monkeypatch.setattr(module, "_PAGE", 3)
        path, digest = make(b"data")
        expected = [f"p/{number:02}" for number in range(10)]
        for key in expected:
            await objects.put(key, path, sha256=digest)
        assert await keys(objects, "p") == expected

    async def test_a_failed_upload_leaves_nothing_behind(self, objects: S3Objects, bucket: S3Bucket, make: Make) -> None:
        """A large file that turns out to be other than announced leaves no unfinished upload that would cost storage."""
        path, _ = make(b"x" * self.large)
        with pytest.raises(DigestMismatch):
            await objects.put("key", path, sha256=sha256(b"other"))
        assert uploads(bucket, "some/prefix/key") == []

    async def test_an_upload_that_was_given_up_is_gone_on_with(self, objects: S3Objects, bucket: S3Bucket, make: Make) -> None:
        """Parts that the server took before an upload was given up are not sent again."""
        path, digest = make(b"x" * self.large)
        started = asyncio.Event()
        task = asyncio.create_task(objects.put("key", path, sha256=digest, progress=lambda *_: started.set()))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await objects.put("key", path, sha256=digest)
        await objects.verify("key", size=self.large, sha256=digest)
        assert uploads(bucket, "some/prefix/key") == []

    async def test_an_upload_left_by_a_killed_process(self, objects: S3Objects, bucket: S3Bucket, make: Make) -> None:
        """Putting a key again goes on with the upload that a killed process left of it, whatever content that was begun for."""
        client, key = bucket.server.client(), "some/prefix/key"
        path, digest = make(b"x" * self.large)
        for note, first in (({"sha256": digest}, path.read_bytes()[: module.PART]), ({"sha256": "0" * 64}, b"other" * (2 << 20))):
            upload = client.create_multipart_upload(Bucket=bucket.bucket, Key=key, Metadata=note)["UploadId"]
            client.upload_part(Bucket=bucket.bucket, Key=key, UploadId=upload, PartNumber=1, Body=first)
            await objects.put("key", path, sha256=digest)
            assert await objects.head("key") == StoredObject(key="key", size=self.large, sha256=digest)
            await objects.verify("key", size=self.large, sha256=digest)
            assert uploads(bucket, key) == []
            await objects.delete("key")

    async def test_an_object_somebody_else_put(self, objects: S3Objects, bucket: S3Bucket, tmp_path: Path) -> None:
        """An object without our digest is read to be verified."""
        bucket.server.client().put_object(Bucket=bucket.bucket, Key="some/prefix/foreign", Body=b"data")
        await objects.verify("foreign", size=4, sha256=sha256(b"data"))
        with pytest.raises(DigestMismatch):
            await objects.verify("foreign", size=4, sha256=sha256(b"Data"))

    @pytest.mark.fault("data-damaged")
    async def test_a_false_digest_is_noticed(self, objects: S3Objects, bucket: S3Bucket) -> None:
        """A small object is read again by verify: what its metadata says is not proof enough."""
        note = {"sha256": sha256(b"data")}
        bucket.server.client().put_object(Bucket=bucket.bucket, Key="some/prefix/key", Body=b"DATA", Metadata=note)
        with pytest.raises(DigestMismatch):
            await objects.verify("key", size=4, sha256=sha256(b"data"))

    @pytest.mark.fault("data-damaged")
    async def test_a_link_that_was_tampered_with(self, objects: S3Objects, make: Make) -> None:
        """A presigned link opens its own object and no other."""
        path, digest = make(b"data")
        for key in ("one", "two"):
            await objects.put(key, path, sha256=digest)
        link = await objects.presign("one", expires_s=60)
        with pytest.raises(urllib.error.HTTPError):
            self.fetch(link.replace("/one?", "/two?"))

    async def test_a_missing_bucket(self, bucket: S3Bucket, make: Make) -> None:
        """A bucket that does not exist is ObjectsUnavailable while working, and a ConfigError naming it when checked."""
        objects = S3Objects("no-such-bucket", "", settings(bucket.server))
        path, digest = make(b"data")
        with pytest.raises(ObjectsUnavailable, match="no-such-bucket"):
            await objects.put("key", path, sha256=digest)
        with pytest.raises(ConfigError, match="no-such-bucket"):
            await objects.check()


async def test_wrong_secret(s3_server: S3Server, tmp_path: Path) -> None:
    """A wrong secret is refused, told without showing it, and a ConfigError when checked."""
    if s3_server.kind == "ministack":
        return  # lets any secret in
    objects = S3Objects(s3_server.new_bucket().bucket, "", settings(s3_server, secret_key="wrong-secret-value"))
    (tmp_path / "file").write_bytes(b"")
    for attempt in (objects.put("key", tmp_path / "file", sha256=sha256(b"")), objects.head("key"), keys(objects, "")):
        with pytest.raises(ObjectsUnavailable, match="refuses") as caught:
            await attempt
        assert "wrong-secret-value" not in str(caught.value)
    with pytest.raises(ConfigError, match="its secret"):
        await objects.check()


@pytest.mark.fault("objects-down")
async def test_down_and_up_again(start_s3: Callable[[servers.Kind], S3Server], tmp_path: Path) -> None:
    """A server that is down raises ObjectsUnavailable from every verb; once it is back, the same store works again."""
    server = start_s3("juicefs")
    objects = S3Objects(server.new_bucket().bucket, "", settings(server))
    (tmp_path / "file").write_bytes(b"data")
    await objects.put("key", tmp_path / "file", sha256=sha256(b"data"))
    server.stop()
    verbs = (
        objects.put("other", tmp_path / "file", sha256=sha256(b"data")),
        objects.get("key", tmp_path / "back", sha256=sha256(b"data")),
        objects.verify("key", size=4, sha256=sha256(b"data")),
        keys(objects, ""),
        objects.delete("key"),
        objects.check(),
    )
    for result in await asyncio.gather(*verbs, return_exceptions=True):
        assert isinstance(result, ObjectsUnavailable), result
    server.start()
    await objects.get("key", tmp_path / "back", sha256=sha256(b"data"))


async def test_an_authority_that_is_not_trusted(s3_server: S3Server) -> None:
    """A server whose certificate is not trusted is never spoken to."""
    objects = S3Objects("bucket", "", settings(s3_server, ca_bundle=None))
    with pytest.raises(ObjectsUnavailable, match="cannot be reached"):
        await objects.head("key")


def test_faulty_settings(tmp_path: Path) -> None:
    """A missing CA bundle and a URL without bucket are told before anything is connected."""
    with pytest.raises(ConfigError, match="ca_bundle"):
        S3Objects("bucket", "", S3Settings.model_validate({"ca_bundle": tmp_path / "none.pem"}))
    with pytest.raises(ConfigError, match="bucket"):
        open_objects("s3:///prefix", S3Settings.model_validate({}))


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what the extra installs the message says so."""
    monkeypatch.delitem(sys.modules, "remote_trainer.objects.s3")
    monkeypatch.setitem(sys.modules, "botocore.exceptions", None)
    with pytest.raises(ConfigError, match=r"remote-trainer\[s3\]"):
        open_objects("s3://bucket", S3Settings.model_validate({}))
