"""Numbers out of what a step prints: log lines by the recipe's patterns, ``metrics.jsonl`` by line. Pure.

The text comes from a rented machine: bounded lines, bounded numbers of values, only finite numbers; what does not parse is not a metric.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence

from remote_trainer.model import Pattern

_LINE_MAX = 4096  # bytes of a line that are looked at
_VALUES_MAX = 64  # numbers kept of one line


class LineReader:
    """Cuts bytes into the lines a person would see last: after a carriage return only the newest text of a line counts."""

    def __init__(self, rest: bytes = b"") -> None:
        self._rest = rest[-_LINE_MAX:]

    def feed(self, data: bytes) -> Iterator[str]:
        """Yield every line, and every progress update, that these bytes complete."""
        pieces = re.split(rb"[\r\n]", self._rest + data)
        self._rest = pieces.pop()[-_LINE_MAX:]
        for piece in pieces:
            if piece:
                yield piece[:_LINE_MAX].decode("utf-8", "replace")


class PatternReader:
    """Searches lines for the patterns of a plan."""

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self._patterns = [(re.compile(pattern.regex), pattern.kind) for pattern in patterns]

    def read(self, line: str) -> dict[str, float]:
        """Return the numbers of all patterns found in a line; progress comes as ``progress`` (0 to 1), ``step`` and ``total``."""
        values: dict[str, float] = {}
        for regex, kind in self._patterns:
            found = regex.search(line)
            if found is None:
                continue
            named = _numbers(found.groupdict())
            if kind == "progress" and named.get("total"):
                named["progress"] = min(1.0, max(0.0, named.get("step", 0.0) / named["total"]))
            values.update(named)
        return values


def read_json_line(line: bytes) -> dict[str, float]:
    """Return the finite numbers of one line of ``metrics.jsonl``; empty for anything that is not a flat object of them."""
    if len(line) > _LINE_MAX:
        return {}
    try:
        parsed = json.loads(line)
    except ValueError:
        return {}
    return _numbers(parsed) if isinstance(parsed, dict) else {}


def _numbers(raw: Mapping[str, object]) -> dict[str, float]:
    values: dict[str, float] = {}
    for name, value in list(raw.items())[:_VALUES_MAX]:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            continue
        try:
            number = float(value)
        except (ValueError, OverflowError):
            continue
        if math.isfinite(number):
            values[str(name)[:64]] = number
    return values
