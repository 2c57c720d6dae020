"""The text with which a rented machine ends itself. Rules for editing: the script is farewell.sh; it holds no secret and is given none."""

from __future__ import annotations

import math
import shlex
from functools import cache
from pathlib import Path


def farewell(url: str) -> str:
    """Return sh text for the machines of one service."""
    return f"RT_PROVIDER={shlex.quote(url)}\n{_script()}"


def last_resort(url: str, seconds: float) -> str:
    """Return sh text for a machine's start that ends it after so long, and returns at once: for a machine of which nobody ever hears.

    A start puts it off by as much again, so it is no deadline; whoever hears of the machine sets one.
    """
    lines = [line for line in farewell(url).splitlines() if not line.startswith("#")]  # the provider takes 4 kB
    text = "\n".join(lines)
    return f"(\ntrap '' HUP\nsleep {math.ceil(seconds)}\nuntil (\n{text}\n); do sleep 600; done\n) </dev/null >/dev/null 2>&1 &"


@cache
def _script() -> str:
    return Path(__file__).with_name("farewell.sh").read_text(encoding="utf-8")
