"""What a reply of Vast.ai means. Pure.

A request has succeeded only if the status is 2xx, ``success`` is not false and what was asked for is there. A wrong key is answered with
404, as is a machine that is gone: only the words tell them apart. Limits are refused as JSON, or as plain text.

Rules for editing: bodies are untrusted, of any shape; what a message quotes of them is short. No request is known here, only its kind.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from remote_trainer.errors import Ambiguous, DriverError, Permanent, Transient

_DRIVER = "vastai"
_QUOTED = 300  # characters of a reply in a message

KEY_REFUSED = "Vast.ai refuses the API key"  # what a message begins with then

_AUTH_WORDS = ("auth_error", "invalid user key", "requires login", "session expired", "lacks the", "lacks proper privileges")
_GONE_WORDS = ("no_such_instance", "not_found", "no such instance", "instance not found")
_NO_OFFER_WORDS = ("no_such_ask", "is not available", "resources_unavailable")
_NO_OFFER_STATUS = (404, 409, 410)  # none of them can have rented anything
_LOST_STATUS = (408, 425)
_ALREADY_WORDS = ("already associated",)
_NO_CREDIT_WORDS = ("insufficient_credit", "missing_billing", "insufficient credit")

_SECRET = re.compile(r"[0-9A-Za-z]{32,}")  # keys are 64 characters; no word is as long

#: What the provider asks for when it names no time, seconds.
_LIMITED_S = 10.0
_CREATE_LIMITED_S = 18.0  # a request to rent that comes too soon is punished with 12 s on top

#: And at most: a quota is renewed each day, and no machine may stay unasked for longer because of a wrong number.
_QUOTA_MAX_S, _LIMITED_MAX_S = 86400.0, 600.0


class Gone(Permanent):
    """The instance does not exist (any more)."""


class Already(Permanent):
    """It is as it was asked to be."""


class OfferGone(Permanent):
    """The offer was taken by somebody else, or the bid is too low for it."""

    def __init__(self, message: str, *, driver: str = _DRIVER, operation: str = "create", leftover: int | None = None) -> None:
        self.leftover = leftover  # an instance that was made all the same, stopped and costing money
        super().__init__(message, driver=driver, operation=operation)


class Scheduled(Permanent):
    """The instance has a scheduled request already."""

    def __init__(self, message: str, *, job_id: int) -> None:
        self.job_id = job_id
        super().__init__(message, driver=_DRIVER, operation="schedule")


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply as it came; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    text: str

    def body(self) -> Any:
        """Return the JSON there is, or None."""
        try:
            return json.loads(self.text)
        except (ValueError, RecursionError):
            return None


def read(reply: Reply, operation: str, *, now: float) -> Any:
    """Return the body of a reply that means success, or raise what it means; ``now`` is the time, seconds since the epoch."""
    body = reply.body()
    fields = body if isinstance(body, dict) else {}
    if 200 <= reply.status < 300 and body is not None and fields.get("success") is not False:
        return body
    raise _refusal(reply, fields, operation, now)


def _refusal(reply: Reply, fields: Mapping[str, Any], operation: str, now: float) -> DriverError:
    words = _words(reply, fields)
    if reply.status == 429:
        wait_s = _wait_s(reply, fields, words, operation, now)
        message = f"Vast.ai limits {operation}: {words}; next try in {wait_s:.0f} s"
        return Transient(message, driver=_DRIVER, operation=operation, retry_after_s=wait_s)
    leftover = fields.get("new_contract") if operation == "create" else None
    if isinstance(leftover, int):  # whatever else it says: something was made, and it costs money
        return OfferGone(f"the offer is gone: {words}", leftover=leftover)
    known = fields.get("scheduled_job_id")
    if operation == "schedule" and reply.status == 422 and isinstance(known, int):
        return Scheduled(f"it is scheduled already: {words}", job_id=known)
    kind, message = _meaning(reply, words, operation)
    return kind(message, driver=_DRIVER, operation=operation)


def _meaning(reply: Reply, words: str, operation: str) -> tuple[type[DriverError], str]:
    if reply.status in (401, 403) or _has(words, _AUTH_WORDS):
        return Permanent, f"{KEY_REFUSED} ({operation}): {words}; check VAST_API_KEY and its permissions"
    if _has(words, _NO_CREDIT_WORDS):
        return Permanent, f"the Vast.ai account has no credit left: {words}; add credit"
    if operation == "create" and reply.status < 500 and (reply.status in _NO_OFFER_STATUS or _has(words, _NO_OFFER_WORDS)):
        return OfferGone, f"the offer is gone: {words}"
    if _has(words, _ALREADY_WORDS):
        return Already, f"it is so already: {words}"
    if _has(words, _GONE_WORDS):
        return Gone, f"no such instance: {words}"
    if operation == "bid" and 200 <= reply.status < 300:
        return Permanent, f"Vast.ai refuses the bid: {words}"
    if reply.status >= 500 or 200 <= reply.status < 300 or reply.status in _LOST_STATUS:
        # A 2xx without success may have changed something too.
        return (Ambiguous if operation == "create" else Transient), f"Vast.ai failed {operation} with {reply.status}: {words}"
    return Permanent, f"Vast.ai refuses {operation} with {reply.status}: {words}"


def _has(words: str, known: tuple[str, ...]) -> bool:
    return any(word in words.lower() for word in known)


def _words(reply: Reply, fields: Mapping[str, Any]) -> str:
    parts = [str(fields[name]) for name in ("error", "msg", "message", "detail") if fields.get(name)]
    said = ": ".join(dict.fromkeys(parts))
    if not said and not fields:  # what an object holds besides these may be an instance's key
        said = reply.text.strip()
    return _SECRET.sub("…", said)[:_QUOTED] or "no reason given"


def _wait_s(reply: Reply, fields: Mapping[str, Any], words: str, operation: str, now: float) -> float:
    if "search_quota_exceeded" in words.lower():
        reset = _number(reply.headers.get("x-ratelimit-reset"))
        return min(_QUOTA_MAX_S, max(60.0, reset - now)) if reset else 3600.0
    asked = _number(reply.headers.get("retry-after")) or _number(fields.get("retry_after"))
    return min(_LIMITED_MAX_S, asked) or (_CREATE_LIMITED_S if operation == "create" else _LIMITED_S)


def _number(value: object) -> float:
    try:
        return max(0.0, float(str(value)))
    except ValueError:
        return 0.0
