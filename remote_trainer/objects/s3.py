"""A bucket of Amazon S3, Cloudflare R2, MinIO or anything that speaks their protocol, by botocore.

What all of them keep is used, nothing else: our SHA-256 as user metadata (their own checksums differ from server to server, and
botocore's default ones travel as a trailer that several refuse or store into the object), Content-MD5 on each request so that the
server checks what arrived, parts of equal size, deletes one by one.

An object appears whole or not at all: a small one is hashed before it is sent in one request, a large one while its parts are
sent, and its upload is aborted unless the digest agrees. One that broke, or was left by a process that was killed, goes on when it is
asked for again: an upload by whole parts, as the server shows by their MD5.

What a server took is proven by the MD5 it answers (its ETag); where that is none (keys of its own, KMS), the object is read again.

Rules for editing: botocore is imported here and in s3_client.py only; its errors are named in ``_translate`` only; everything below
the line runs in threads. Credentials never enter a message.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import math
import os
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypedDict, TypeVar

from remote_trainer.errors import ConfigError, DigestMismatch, Incomplete, NotFound, ObjectsUnavailable
from remote_trainer.objects.blocking import BLOCK, move, partial, size_of
from remote_trainer.objects.etag import etag_of, in_base64, is_md5, md5_of
from remote_trainer.objects.keys import check_key, folder_prefix
from remote_trainer.ports import Progress, StoredObject
from remote_trainer.threads import Threads, Watch

try:
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
    from urllib3.exceptions import HTTPError

    from remote_trainer.objects.s3_client import make_client
except ImportError as error:
    raise ConfigError("s3:// needs the s3 extra: pip install 'remote-trainer[s3]'") from error

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

    from remote_trainer.config import S3Settings

T = TypeVar("T")

PART = 8 << 20  # bytes; also the size up to which one request does, and what a break may cost
_MOST_PARTS = 10_000
_PARTS_AT_ONCE = 8  # over all files: bounds memory at 8 parts
_PAGE = 1000
_REREAD = 1 << 20  # up to this size verify reads the object again
_RESUMES = 5
_LEAVE_S = 5.0  # for a request on its way when nobody waits any more: its key gets no other content, so it does no harm late
_LONGEST_LINK_S = 7 * 24 * 3600

_ALL_THERE = {"416", "InvalidRange", "RequestedRangeNotSatisfiable"}
_ABSENT = {"404", "NoSuchKey", "NotFound"}
_DAMAGED = {"BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"}
_REFUSED = {"403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "NoSuchBucket", "Unauthorized", "Forbidden"}


class _Same(TypedDict, total=False):
    IfMatch: str


class _Refused(ObjectsUnavailable):
    """The store answers and says no: somebody must correct a setting there or here."""


class S3Objects:
    """Objects below ``prefix`` of a bucket; opens no connection until asked for something."""

    def __init__(self, bucket: str, prefix: str, settings: S3Settings) -> None:
        if not bucket:
            raise ConfigError("objects names no bucket: expected s3://bucket/prefix")
        self._bucket, self._prefix = bucket, folder_prefix(prefix)
        self._where = f"s3://{bucket}/{self._prefix}" + (f" at {settings.endpoint}" if settings.endpoint else "")
        self._client = make_client(settings, connections=_PARTS_AT_ONCE + 8)
        self._threads = Threads("objects", leave_s=_LEAVE_S)
        self._senders = ThreadPoolExecutor(_PARTS_AT_ONCE, thread_name_prefix="parts")
        self._parts = threading.BoundedSemaphore(_PARTS_AT_ONCE)

    async def put(self, key: str, path: Path, *, sha256: str, progress: Progress | None = None) -> StoredObject:
        watch, size = Watch(progress), size_of(path)
        known = await self.head(key)
        if known and (known.size, known.sha256) == (size, sha256):
            return known
        send = self._put_whole if size <= PART else self._put_parts
        return await self._threaded(watch, lambda: send(key, path, sha256, watch))

    async def get(self, key: str, path: Path, *, sha256: str, progress: Progress | None = None) -> None:
        watch = Watch(progress)
        await self._threaded(watch, lambda: self._get(key, path, sha256, watch))

    async def head(self, key: str) -> StoredObject | None:
        return await self._threaded(Watch(), lambda: self._head(key))

    async def verify(self, key: str, *, size: int, sha256: str) -> None:
        """Compare size and digest as noted when the server checked the bytes; small or foreign objects are read again."""
        await self._threaded(watch := Watch(), lambda: self._verify(key, size, sha256, watch))

    async def list(self, prefix: str) -> AsyncIterator[StoredObject]:
        below, after = folder_prefix(prefix), ""
        while True:
            keys, after = await self._threaded(Watch(), functools.partial(self._page, below, after))
            for found in await asyncio.gather(*map(self.head, keys)):  # a listing does not tell digests
                if found:  # None: removed since
                    yield found
            if not after:
                return

    async def delete(self, key: str) -> None:
        await self._threaded(Watch(), lambda: self._client.delete_object(Bucket=self._bucket, Key=self._key(key)))

    async def presign(self, key: str, *, expires_s: int) -> str:
        """Return a link that works for at most seven days."""
        if await self.head(key) is None:
            raise NotFound(f"no object {key} in {self._where}")
        return await self._link("get_object", key, expires_s)

    async def presign_put(self, key: str, *, expires_s: int) -> str:
        """Return a link that works for at most seven days; no request is sent."""
        return await self._link("put_object", key, expires_s)

    async def _link(self, act: str, key: str, expires_s: int) -> str:
        what, expires = {"Bucket": self._bucket, "Key": self._key(key)}, min(expires_s, _LONGEST_LINK_S)
        return await self._threaded(Watch(), lambda: self._client.generate_presigned_url(act, Params=what, ExpiresIn=expires))

    async def check(self) -> str:
        try:
            await self._threaded(Watch(), self._probe)
        except _Refused as error:
            raise ConfigError(str(error)) from error
        return f"{self._where}: written, read and deleted"

    async def _threaded(self, watch: Watch, work: Callable[[], T]) -> T:
        try:
            return await self._threads.run(watch, work)
        except (ClientError, BotoCoreError) as error:
            raise self._translate(error) from error
        except OSError as error:
            words = f"a local file for {self._where} cannot be used ({error}): check disk space and rights"
            raise ObjectsUnavailable(words) from error

    def _translate(self, error: ClientError | BotoCoreError) -> Exception:
        if isinstance(error, ClientError):
            code, doing = _code(error), error.operation_name
            if code in _DAMAGED:
                return DigestMismatch(f"{self._where}: bytes were damaged on the way ({code}): it is sent again")
            if code in _REFUSED:
                return _Refused(
                    f"{self._where} refuses {doing} ({code}): check the bucket's name, the key, its secret, its rights"
                )
            return ObjectsUnavailable(f"{self._where}: {doing} failed ({code}); it is tried again")
        if isinstance(error, NoCredentialsError | PartialCredentialsError):
            return _Refused(f"{self._where}: no credentials: set s3.key_id and s3.secret_key")
        return ObjectsUnavailable(f"{self._where} cannot be reached ({error}); it is tried again")

    # ------------------------------------------------------------------------------------------- in a thread, below here

    def _key(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _head(self, key: str) -> StoredObject | None:
        try:
            reply = self._client.head_object(Bucket=self._bucket, Key=self._key(key))
        except ClientError as error:
            if _code(error) in _ABSENT:
                return None
            raise
        return StoredObject(key=key, size=reply["ContentLength"], sha256=reply["Metadata"].get("sha256", ""))

    def _put_whole(self, key: str, path: Path, sha256: str, watch: Watch) -> StoredObject:
        data = path.read_bytes()
        _agree(path, hashlib.sha256(data).hexdigest(), sha256)
        watch(0, len(data))
        md5, note = md5_of(data), {"sha256": sha256}
        # As a stream: bytes would have to leave within one time-out, however slow the line.
        reply = self._client.put_object(
            Bucket=self._bucket, Key=self._key(key), Body=BytesIO(data), ContentMD5=in_base64(md5), Metadata=note
        )
        watch(len(data), len(data))
        return self._proven(StoredObject(key=key, size=len(data), sha256=sha256), reply["ETag"], md5.hex(), watch)

    def _proven(self, stored: StoredObject, etag: str, expected: str, watch: Watch) -> StoredObject:
        """Return what was stored once it is certain that the server has these bytes."""
        if not is_md5(etag, expected):
            found = self._digest(stored.key, watch)
            if found != stored.sha256:
                self._client.delete_object(Bucket=self._bucket, Key=self._key(stored.key))
                raise DigestMismatch(f"{self._where} took other bytes for {stored.key} (SHA-256 {found}): it is sent again")
        return stored

    def _put_parts(self, key: str, path: Path, sha256: str, watch: Watch) -> StoredObject:
        name = self._key(key)
        upload, there = self._begun(name)
        resumed = bool(upload)
        if not upload:
            note = {"sha256": sha256}
            upload = self._client.create_multipart_upload(Bucket=self._bucket, Key=name, Metadata=note)["UploadId"]
        try:
            size, found, expected, parts = self._send_parts(name, upload, there, path, watch)
            _agree(path, found, sha256)
        except DigestMismatch:
            with suppress(ClientError, BotoCoreError):  # the next put of this key tries again
                self._client.abort_multipart_upload(Bucket=self._bucket, Key=name, UploadId=upload)
            raise
        done = self._client.complete_multipart_upload(
            Bucket=self._bucket, Key=name, UploadId=upload, MultipartUpload={"Parts": parts}
        )
        stored, known = StoredObject(key=key, size=size, sha256=sha256), self._head(key) if resumed else None
        if known and known.sha256 != sha256:  # it was begun for another content
            self._client.delete_object(Bucket=self._bucket, Key=name)
            return self._put_parts(key, path, sha256, watch)
        return self._proven(stored, done["ETag"], expected, watch)

    def _begun(self, name: str) -> tuple[str, dict[int, str]]:
        """Return the upload of this key that broke off, if any, and what the server has of it: the ETag of each part by number."""
        with suppress(ClientError):  # a key that may only read and write objects begins anew
            uploads = self._client.list_multipart_uploads(Bucket=self._bucket, Prefix=name).get("Uploads", ())
            for upload in (each["UploadId"] for each in uploads if each["Key"] == name):
                pages = self._client.get_paginator("list_parts").paginate(Bucket=self._bucket, Key=name, UploadId=upload)
                return upload, {part["PartNumber"]: part["ETag"] for page in pages for part in page.get("Parts", ())}
        return "", {}

    def _send_parts(
        self, name: str, upload: str, there: Mapping[int, str], path: Path, watch: Watch
    ) -> tuple[int, str, str, Sequence[CompletedPartTypeDef]]:
        """Send the parts that are missing, several at once, hashing all; returns size, digest, ETag to expect, and receipts."""
        total, digest, sent = size_of(path), hashlib.sha256(), 0
        running: list[Future[CompletedPartTypeDef]] = []
        md5s: list[bytes] = []
        length = max(PART, math.ceil(total / _MOST_PARTS / BLOCK) * BLOCK)
        try:
            with path.open("rb") as file:
                for number, data in enumerate(self._read(file, length), 1):
                    digest.update(data)
                    md5s.append(md5_of(data))
                    running.append(
                        self._senders.submit(self._send, name, upload, number, data, md5=md5s[-1], there=there.get(number))
                    )
                    running[-1].add_done_callback(lambda _: self._parts.release())
                    sent += len(data)
                    for failed in (each for each in running if each.done() and each.exception()):
                        failed.result()
                    watch(sent, total)
            return sent, digest.hexdigest(), etag_of(md5s), [each.result() for each in running]
        finally:  # nothing of this upload is sent when it was given up, or is gone on with
            for each in running:
                each.cancel()
            wait(running)

    def _read(self, file: BinaryIO, length: int) -> Iterator[bytes]:
        """Yield the file's parts, each once there is room for it in memory; whoever takes it gives the room back."""
        while True:
            self._parts.acquire()
            data = b""
            try:
                data = file.read(length)
            finally:
                if not data:
                    self._parts.release()
            if not data:
                return
            yield data

    def _send(self, name: str, upload: str, number: int, data: bytes, *, md5: bytes, there: str | None) -> CompletedPartTypeDef:
        if there is None or not is_md5(there, md5.hex()):
            there = self._client.upload_part(
                Bucket=self._bucket, Key=name, UploadId=upload, PartNumber=number, Body=BytesIO(data), ContentMD5=in_base64(md5)
            )["ETag"]
        return {"PartNumber": number, "ETag": there}

    def _get(self, key: str, path: Path, sha256: str, watch: Watch) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial(path, sha256) as file:
            file.seek(0, os.SEEK_END)
            found = self._download(key, file, watch)
            if found != sha256:  # what lay there was not what it should be, or came damaged: once more, from the beginning
                file.truncate(0)
                found = self._download(key, file, watch)
            if found != sha256:
                file.truncate(0)
                raise DigestMismatch(f"object {key} has SHA-256 {found}, expected was {sha256}: the stored copy is damaged")
            file.flush()
            move(Path(file.name), path)

    def _download(self, key: str, file: BinaryIO, watch: Watch) -> str:
        """Append what the file lacks of an object; return the digest of the whole."""
        digest = hashlib.sha256()
        file.seek(0)
        while block := file.read(BLOCK):
            digest.update(block)
        for block in self._blocks(key, watch, file.tell()):
            digest.update(block)
            file.write(block)
        return digest.hexdigest()

    def _digest(self, key: str, watch: Watch) -> str:
        """Return the digest of an object as it is read now."""
        digest = hashlib.sha256()
        for block in self._blocks(key, watch):
            digest.update(block)
        return digest.hexdigest()

    def _blocks(self, key: str, watch: Watch, done: int = 0) -> Iterator[bytes]:
        """Yield the object's bytes from there on; a stream that breaks is taken up where it ended, as long as it moves."""
        name, total, etag, breaks = self._key(key), done + 1, "", 0
        while done < total:
            try:
                same: _Same = {"IfMatch": etag} if etag else {}
                if done:
                    reply = self._client.get_object(Bucket=self._bucket, Key=name, Range=f"bytes={done}-", **same)
                else:  # a range of an empty object is an error
                    reply = self._client.get_object(Bucket=self._bucket, Key=name, **same)
                total, etag = done + reply["ContentLength"], reply["ETag"]
                for block in reply["Body"].iter_chunks(BLOCK):
                    done, breaks = done + len(block), 0
                    watch(done, total)
                    yield block
            except ClientError as error:
                if _code(error) in _ABSENT:
                    raise NotFound(f"no object {key} in {self._where}") from error
                if _code(error) in _ALL_THERE:
                    return
                raise
            except (BotoCoreError, HTTPError) as error:  # what TLS finds damaged comes as urllib3's own
                breaks += 1
                if breaks > _RESUMES:
                    raise ObjectsUnavailable(f"{self._where}: reading {key} breaks off again and again ({error})") from error

    def _verify(self, key: str, size: int, sha256: str, watch: Watch) -> None:
        known = self._head(key)
        if known is None:
            raise Incomplete(f"object {key} is not in {self._where}: it was removed since it was put there")
        found = known.sha256
        if known.size == size and (size <= _REREAD or not found):
            found = self._digest(key, watch)
        if (known.size, found) != (size, sha256):
            raise DigestMismatch(
                f"object {key} in {self._where} has {known.size} bytes, SHA-256 {found}; expected were {size}, {sha256}: "
                "the stored copy is damaged or was replaced"
            )

    def _page(self, below: str, after: str) -> tuple[Sequence[str], str]:
        """Return a page of keys, and what to ask on with; empty at the end."""
        reply = self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix + below, MaxKeys=_PAGE, StartAfter=after)
        names = [each["Key"] for each in reply.get("Contents", ())]
        # A name that ends in a slash is a folder that some console made.
        keys = [name.removeprefix(self._prefix) for name in names if not name.endswith("/")]
        return keys, names[-1] if names and reply["IsTruncated"] else ""

    def _probe(self) -> None:
        key, data = self._key(f".check-{uuid.uuid4().hex}"), b"check"
        self._client.put_object(Bucket=self._bucket, Key=key, Body=data, ContentMD5=in_base64(md5_of(data)))
        try:
            found = self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()
        finally:
            self._client.delete_object(Bucket=self._bucket, Key=key)
        if found != data:
            raise ObjectsUnavailable(f"{self._where} returns other bytes than were put: it does not keep objects as they are")


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "unknown"))


def _agree(path: Path, found: str, announced: str) -> None:
    if found != announced:
        raise DigestMismatch(f"{path} has SHA-256 {found}, announced was {announced}: it changed, or the copy is damaged")
