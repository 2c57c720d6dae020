"""What the service answers: a status, a body, headers; late, or not at all.

Rules for editing: the content type is exactly ``application/json`` for JSON, as the official client insists.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer. A body that is text goes out as plain text."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0  # real seconds before it is sent
    dropped: bool = False  # the connection is closed instead

    @property
    def content_type(self) -> str:
        """Return the type as it is sent."""
        return "text/plain" if isinstance(self.body, str) else "application/json"

    def encoded(self) -> bytes:
        """Return the body's bytes."""
        return (self.body if isinstance(self.body, str) else json.dumps(self.body)).encode()


class Refused(Exception):
    """The request is answered with that instead."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        super().__init__(f"{reply.status} {reply.body}")


def ok(**fields: Any) -> Reply:
    """Return the usual good answer."""
    return Reply(body={"success": True, **fields})


def refusal(status: int, error: str, message: str, **fields: Any) -> Refused:
    """Return the usual refusal; raise it."""
    return Refused(Reply(status=status, body={"success": False, "error": error, "msg": message, **fields}))


def no_such_instance(instance_id: object) -> Refused:
    """Return the refusal for an instance that is not there."""
    return refusal(404, "no_such_instance", f"Instance {instance_id} not found.")
