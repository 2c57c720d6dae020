"""Numbers out of what a step prints: log lines by the recipe's patterns, ``metrics.jsonl`` by line. Pure.

The text comes from a rented machine: bounded lines, bounded numbers of values, only finite numbers; what does not parse is not a metric.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import regex

from remote_trainer import log
from remote_trainer.model import Pattern

_log = log.get()

_LINE_MAX = 4096  # bytes of a line that are looked at
_VALUES_MAX = 64  # numbers kept of one line
_SEARCH_S = 0.05  # a pattern that takes longer on one line backtracks without end: every job of the worker waits for it


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
    """Searches lines for the patterns of a plan; one that takes for ever on a line is given up, and said so once."""

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self._patterns: list[tuple[regex.Pattern[str], str]] = []
        for pattern in patterns:
            try:
                self._patterns.append((regex.compile(pattern.regex), pattern.kind))
            except regex.error as error:  # the recipe's check knows Python's own dialect, which differs in rare forms
                _log.warning("training.worker", action="pattern_given_up", pattern=pattern.regex, error=str(error))

    def read(self, line: str) -> dict[str, float]:
        """Return the numbers of all patterns found in a line; progress comes as ``progress`` (0 to 1), ``step`` and ``total``."""
        values: dict[str, float] = {}
        for pattern, kind in tuple(self._patterns):
            try:
                found = pattern.search(line, timeout=_SEARCH_S)
            except TimeoutError:
                self._patterns.remove((pattern, kind))
                _log.warning("training.worker", action="pattern_given_up", pattern=pattern.pattern, seconds=_SEARCH_S)
                continue
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
    except (ValueError, RecursionError):
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
