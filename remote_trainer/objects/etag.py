"""What an S3 server's ETag proves: it is the MD5 of the bytes the server has, or of the MD5s of an object's parts.

Rules for editing: pure. Servers may answer something else (KMS): an ETag that does not match proves nothing, neither good nor bad.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence


def md5_of(data: bytes) -> bytes:
    """Return the MD5, which guards against accidents only."""
    return hashlib.md5(data, usedforsecurity=False).digest()


def in_base64(digest: bytes) -> str:
    """Return a digest as the header Content-MD5 has it."""
    return base64.b64encode(digest).decode()


def is_md5(etag: str, expected: str) -> bool:
    """Does an ETag say that?"""
    return etag.strip('"').lower() == expected


def etag_of(parts: Sequence[bytes]) -> str:
    """Return the ETag of an object put together from parts with these MD5s."""
    return f"{md5_of(b''.join(parts)).hex()}-{len(parts)}"
