"""Secrets are taken out of text here: those that were registered, and what looks like one.

Rules for editing: standard library only, as everything that reads a secret registers it here. The set of secrets is the module's state,
the only one of the process: a secret must be hidden from every log line, also by a logger that was made before it was read.
"""

from __future__ import annotations

import json
import re
from urllib.parse import quote, quote_plus

HIDDEN = "***"
MIN_SECRET = 4  # shorter ones would blank out half of every line

_PATTERNS = (
    # user:password@; begun at the beginning of a word, else a long word (base64) takes time by its square
    (re.compile(r"(?<![\w+.-])([\w+.-]+://[^\s/:@]*):[^\s/@]+@"), rf"\1:{HIDDEN}@"),
    (re.compile(r"(https?://)[^\s/:@]+@"), rf"\1{HIDDEN}@"),  # token@
    (
        re.compile(
            r"(?i)([?&](?:x-amz-[\w-]*(?:signature|credential|token)|sig|signature|token|access_token|api_?key|key)=)[^&\s\"'<>]+"
        ),
        rf"\1{HIDDEN}",
    ),
    (re.compile(r"\bhf_[A-Za-z0-9]{20,}"), HIDDEN),  # a model hub's token
    (re.compile(r"(?i)(\bbearer\s+|\bauthorization\W{1,4}(?:\w+\s+)?)[\w.~+/=-]{8,}"), rf"\1{HIDDEN}"),
)


_secrets: set[str] = set()
_any_secret = re.compile(r"(?!)")  # matches nothing yet


def hide(secret: str) -> None:
    """Keep a secret out of everything from now on: whole, line by line, quoted as in URLs, and escaped as in code and JSON."""
    global _any_secret
    for part in map(str.strip, {secret, *secret.splitlines()}):
        if len(part) >= MIN_SECRET:
            _secrets.update({part, quote(part), quote(part, safe=""), quote_plus(part), repr(part)[1:-1], json.dumps(part)[1:-1]})
    if _secrets:  # the longest first: one may contain another
        _any_secret = re.compile("|".join(re.escape(each) for each in sorted(_secrets, key=len, reverse=True)))


def redact(text: str) -> str:
    """Return the text without registered secrets, passwords in URLs, signatures of presigned links, bearer and hub tokens."""
    text = _any_secret.sub(HIDDEN, text)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text
