"""An S3 prefix (AWS, R2, MinIO) as a source: listed cheaply, downloaded into a folder that is gone once it is packed.

Credentials and endpoint are boto3's own (AWS_* variables, ~/.aws). Keys are somebody else's words: one that would leave the folder is
refused.

Rules for editing: blocking; called in threads. Needs the ``s3`` extra.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, TypedDict

from remote_trainer.dataset.facts import facts_of
from remote_trainer.dataset.tree import SKIPPED, Tree, name_fault, scan
from remote_trainer.errors import ConfigError, DatasetError
from remote_trainer.model import Facts

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_AT_ONCE = 8  # downloads
_RESUMES = 5  # of a download that breaks without a byte in between
_MD5 = re.compile("[0-9a-f]{32}")
_PAGE = 1000  # keys in one answer: the most that servers give


class _Range(TypedDict, total=False):
    Range: str


@dataclass(frozen=True, slots=True)
class _Object:
    key: str
    size: int
    etag: str
    path: str  # below the prefix


class Bucket:
    """All objects below ``s3://bucket/prefix``, listed once: an object that changes afterwards is refused when it is downloaded."""

    fleeting = True

    def __init__(self, url: str) -> None:
        self.name = url.rstrip("/")
        self._bucket, _, prefix = self.name.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        if not self._bucket:
            raise DatasetError(f"{url} names no bucket; write s3://bucket/prefix")
        self._client = _client()
        self._found: Sequence[_Object] = ()

    def signature(self) -> str:
        self._found = self._found or self._list()
        lines = [f"{found.key}\0{found.size}\0{found.etag}" for found in self._found]
        return hashlib.sha256("\0".join(lines).encode()).hexdigest()

    def facts(self) -> Facts:
        self._found = self._found or self._list()
        return facts_of(item.path for item in self._found)

    @contextlib.contextmanager
    def tree(self) -> Iterator[Tree]:
        found = self._found or self._list()
        with tempfile.TemporaryDirectory(prefix="remote-trainer-") as folder, ThreadPoolExecutor(_AT_ONCE) as pool:
            downloads = [pool.submit(self._download, item, Path(folder) / item.path) for item in found]
            try:
                for download in downloads:
                    download.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)  # the first fault ends it all
                raise
            yield scan(Path(folder))

    def _list(self) -> Sequence[_Object]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix, PaginationConfig={"PageSize": _PAGE}
            )
            listed = [item for page in pages for item in page.get("Contents", [])]
        except (BotoCoreError, ClientError) as error:
            raise DatasetError(f"cannot list {self.name}: {error}; check the bucket, the endpoint and the credentials") from error
        files = [item for item in listed if not item["Key"].endswith("/")]  # folders that a console made
        found = [_Object(item["Key"], item["Size"], item["ETag"], self._safe(item["Key"])) for item in files]
        found = [item for item in found if SKIPPED.isdisjoint(item.path.split("/"))]
        if not found:
            raise DatasetError(f"{self.name} holds no objects; check the bucket and the prefix")
        self._check_folders(found)
        return found

    def _safe(self, key: str) -> str:
        path = key.removeprefix(self._prefix)
        place, _, name = path.rpartition("/")
        if str(PurePosixPath(path)) != path or PurePosixPath(path).is_absolute() or ".." in path.split("/"):
            raise self._refused(key, "a name that no folder can hold; rename the object")
        for part in path.split("/"):
            if fault := name_fault(part):
                raise self._refused(key, fault)
        if fault := name_fault(name, f"{place}/"):
            raise self._refused(key, fault)
        return path

    def _check_folders(self, found: Sequence[_Object]) -> None:
        """Objects may have names below that of another object; files may not."""
        folders = {str(folder) for item in found for folder in PurePosixPath(item.path).parents}
        for item in found:
            if item.path in folders:
                raise self._refused(item.key, "the name of an object and of a folder; rename one of them")

    def _refused(self, key: str, why: str) -> DatasetError:
        return DatasetError(f"{self.name} holds {key!r:.300}, {why}")

    def _download(self, item: _Object, target: Path) -> None:
        from botocore.exceptions import BotoCoreError, ClientError
        from urllib3.exceptions import HTTPError

        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            md5 = hashlib.md5(usedforsecurity=False)
            with target.open("xb") as file:
                breaks, plain = 0, False
                while True:
                    before = file.tell()
                    try:
                        plain = self._append(item, file, md5.update)
                    except (BotoCoreError, HTTPError):  # gone on with, as long as it moves
                        if file.tell() >= item.size:
                            break
                        breaks = 0 if file.tell() > before else breaks + 1
                        if breaks > _RESUMES:
                            raise
                        continue
                    break
        except (BotoCoreError, HTTPError, ClientError, OSError) as error:
            raise DatasetError(f"cannot read {item.key} of {self.name}: {error}; try again, or download it yourself") from error
        if target.stat().st_size != item.size:
            raise DatasetError(f"{item.key} of {self.name} changed while it was read; submit again")
        etag = item.etag.strip('"')
        if plain and _MD5.fullmatch(etag) and md5.hexdigest() != etag:
            raise DatasetError(f"{item.key} of {self.name} arrived as other bytes than the bucket says it has; try again")

    def _append(self, item: _Object, file: BinaryIO, seen: Callable[[bytes], None]) -> bool:
        """Download what the file lacks; is the ETag of such an object the MD5 of its bytes? Not where keys of the service encrypt it."""
        which: _Range = {"Range": f"bytes={file.tell()}-"} if file.tell() else {}  # a range of an empty object is an error
        reply = self._client.get_object(Bucket=self._bucket, Key=item.key, IfMatch=item.etag, **which)
        for block in reply["Body"].iter_chunks(1 << 20):
            file.write(block)
            seen(block)
        return reply.get("ServerSideEncryption", "AES256") == "AES256" and "SSECustomerAlgorithm" not in reply


def _client() -> S3Client:
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError as error:
        raise ConfigError("reading from a bucket needs boto3: pip install 'remote-trainer[s3]'") from error
    config = Config(
        request_checksum_calculation="when_required",  # R2 and others refuse boto3's default trailers
        response_checksum_validation="when_required",
        max_pool_connections=_AT_ONCE,
        retries={"mode": "standard", "max_attempts": 5},
    )
    try:
        client: S3Client = boto3.Session().client("s3", config=config)
    except (BotoCoreError, ValueError) as error:
        raise ConfigError(f"boto3's settings cannot be used: {error}; check the AWS_* variables and ~/.aws") from error
    return client
