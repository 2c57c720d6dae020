"""Where the time goes from the program's start to its first step.

Editing rules: standard library only; it is told once, and nothing depends on it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path


class Laps:
    """Seconds by what they were spent on, from the start of the process on."""

    def __init__(self) -> None:
        self._start = started()
        self._last, self._spent, self._told = self._start, dict[str, float](), False

    def mark(self, what: str) -> None:
        """What was done since the last mark was this."""
        now = time.monotonic()
        self._spent[what] = self._spent.get(what, 0.0) + now - self._last
        self._last = now

    def finish(self, what: str) -> None:
        """Tell all of it, at the first call."""
        if self._told:
            return
        self.mark(what)
        self._told = True
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self._spent.items())
        print(f"first step after {self._last - self._start:.1f} s: {parts}", flush=True)


def started() -> float:
    """When this process began, on the monotonic clock; now, where the system does not tell."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        age = 0.0
    return time.monotonic() - age
