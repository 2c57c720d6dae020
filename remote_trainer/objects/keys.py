"""What a key of an object store may look like, for every implementation alike.

Rules for editing: a key must name the same object in a bucket and a file below a folder; nothing here does I/O.
"""

from __future__ import annotations

from remote_trainer.errors import UsageError

KEY_BYTES = 1024  # S3's limit for a whole key
NAME_BYTES = 255  # every common file system's limit for one name


def check_key(key: str) -> str:
    """Return the key, or raise UsageError if it could leave the store or mean something else elsewhere."""
    fault = _fault(key)
    if fault:
        raise UsageError(f"object key {key!r:.200} {fault}: choose another path for the file")
    return key


def folder_prefix(prefix: str) -> str:
    """Return the prefix with its closing slash, so that ``a1`` never lists what lies in ``a10``; empty lists everything."""
    bare = prefix.rstrip("/")
    return check_key(bare) + "/" if bare else ""


def _fault(key: str) -> str:
    try:
        names = [name.encode() for name in key.split("/")]
    except UnicodeEncodeError:
        return "is not valid Unicode"
    if any(name in (b"", b".", b"..") for name in names):
        return "has an empty, '.' or '..' part"
    if any(character < " " or character in "\x7f\\" for character in key):
        return "holds a control character or a backslash"
    if len(key.encode()) > KEY_BYTES or max(map(len, names)) > NAME_BYTES:
        return "is too long"
    return ""
