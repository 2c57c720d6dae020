"""What a model of the hub is called: ``owner/model``, or ``owner/model@revision`` for a branch, a tag or a commit.

Rules for editing: pure. The trainers read the same form by themselves (scripts/lora/base.py).
"""

from __future__ import annotations

import re

_WORD = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_NAME = re.compile(rf"(?P<name>{_WORD}/{_WORD})(?:@(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]*))?")


def split_name(value: str) -> tuple[str, str] | None:
    """Return name and revision (empty: the newest); None for what is no name of a model."""
    found = _NAME.fullmatch(value)
    return (found["name"], found["revision"] or "") if found else None
