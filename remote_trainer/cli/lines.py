"""Bytes of logs to lines for people: what a progress bar overwrote with carriage returns is left out.

Rules for editing: pure; the bytes come from a rented machine, so what is kept of an unfinished line is bounded.
"""

from __future__ import annotations

_LINE_MAX = 16 * 1024  # bytes of a line that are shown


class Lines:
    """Cuts the bytes of one log stream into lines."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """Return the lines that these bytes complete."""
        *complete, rest = (self._rest + data).split(b"\n")
        # Of an unfinished line only its newest text will ever be shown; the last return may be half of a line's end.
        self._rest = rest[max(rest.rfind(b"\r", 0, -1), 0) :][:_LINE_MAX]
        return [_shown(line) for line in complete]

    @property
    def unfinished(self) -> str:
        """The newest text of the line that is not complete yet."""
        return _shown(self._rest)


def _shown(line: bytes) -> str:
    return line.rstrip(b"\r").rpartition(b"\r")[2][:_LINE_MAX].decode("utf-8", "replace")


def last_lines(data: bytes, count: int) -> list[str]:
    """Return the last lines of a log that people can read."""
    lines = Lines()
    found = [*lines.feed(data), lines.unfinished]
    return [line for line in found if line.strip()][-count:]
