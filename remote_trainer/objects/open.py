"""Choose the object store by its URL.

Rules for editing: a client library is imported only once its store is asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from remote_trainer.errors import ConfigError
from remote_trainer.objects.local import LocalObjects
from remote_trainer.ports import Objects

if TYPE_CHECKING:
    from remote_trainer.config import S3Settings


def open_objects(url: str, s3: S3Settings) -> Objects:
    """Return the store a URL names: a folder (``/path``, ``file:///path``) or a bucket (``s3://bucket/prefix``). Opens no connection."""
    parts = urlsplit(url)
    match parts.scheme:
        case "" | "file":
            return LocalObjects(Path(unquote(parts.path) if parts.scheme else url).expanduser())
        case "s3" if not (parts.query or parts.fragment):
            from remote_trainer.objects.s3 import S3Objects

            return S3Objects(parts.netloc, parts.path.strip("/"), s3)
    raise ConfigError(f"objects = {url!r}: expected a folder or s3://bucket/prefix")
