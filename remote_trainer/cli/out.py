"""All that is printed goes through here: secrets are taken out, and nothing a rented machine wrote can steer the terminal.

Rules for editing: standard library only, since every command imports it. JSON is ASCII, so that it cannot hold control characters.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, TextIO

from remote_trainer.redact import redact

_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"  # OSC: titles, links, clipboard
    r"|(?:\x1b[PX^_]|[\x90\x98\x9e\x9f])[^\x1b\x9c]*(?:\x1b\\|\x9c)?"  # strings to the terminal
    r"|\x1b[ -/]*[0-~]?"
)
#: Controls but newline and tab; and marks that reorder or hide the text around them.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


def clean(text: str) -> str:
    """Return text that only shows characters: no escape sequences, no control characters but newline and tab."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text))


class PipeClosed(Exception):
    """The reader of what is printed has had enough."""


def line(text: str = "") -> None:
    """Print to stdout."""
    _print(clean(redact(text)) + "\n", sys.stdout)


def problem(text: str) -> None:
    """Print to stderr: errors, warnings, and words beside a JSON document."""
    _print(clean(redact(text)) + "\n", sys.stderr)


def document(value: Mapping[str, Any]) -> None:
    """Print a JSON document to stdout."""
    _print(redact(json.dumps(value, indent=2)) + "\n", sys.stdout)


def record(value: Mapping[str, Any]) -> None:
    """Print one line of JSON Lines to stdout, as it is: it is data, not words."""
    _print(json.dumps(value) + "\n", sys.stdout)


def harmless(text: str) -> None:
    """Print text that was cleaned already."""
    _print(text, sys.stdout)


def raw(data: bytes) -> None:
    """Print bytes as they are."""
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError as error:
        raise PipeClosed from error


def _print(text: str, stream: TextIO) -> None:
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError as error:
        raise PipeClosed from error


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print columns that are as wide as they must be."""
    cells = [list(head), *([_cell(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _cell(text: str) -> str:
    return clean(redact(text)).replace("\n", " ").replace("\t", " ")


def is_terminal() -> bool:
    """Can a view be drawn on stdout?"""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


# -------------------------------------------------------------------------------------------------------------- wording


def size(count: int | None) -> str:
    """Return bytes as people read them: 1.2 GB."""
    if count is None:
        return "?"
    number = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 99.95 else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def duration(seconds: float) -> str:
    """Return a time span as people read it: 4.2 s, 3:07, 2:03:59."""
    if seconds < 60:
        return f"{max(seconds, 0.0):.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def cost(so_far: Decimal | str, whole: Decimal | str | None = None) -> str:
    """Return US dollars as people read them, so far and of the whole: $0.42 of about $1.20; empty for nothing."""
    if not Decimal(so_far):
        return ""
    expected = f" of about ${Decimal(whole):.2f}" if whole is not None and Decimal(whole) > Decimal(so_far) else ""
    return f"${Decimal(so_far):.2f}{expected}"


def number(value: float) -> str:
    """Return a metric in few characters."""
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e7 else f"{value:.4g}"


def value(given: Any) -> str:
    """Return a parameter as it would be typed."""
    return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)


def settings(given: Mapping[str, Any]) -> str:
    """Return ``key=value key=value``."""
    return " ".join(f"{key}={value(each)}" for key, each in given.items())


def plural(count: int, word: str) -> str:
    """Return ``1 file``, ``2 files``."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
