"""Folders that somebody else filled: every file below one, and names and texts as a line of output can hold them.

Editing rules: standard library only; nothing that was found is left out in silence.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def below(folder: Path, wanted: Callable[[str], bool]) -> list[Path]:
    """All that is wanted by name below a folder and is no folder, sorted; what is hidden is passed over.

    Links to folders are followed, each folder is entered once, and so a loop of links ends. A folder that cannot be read raises OSError.
    """
    found: list[Path] = []
    entered: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(place, name) for name in names if wanted(name) and not name.startswith(".")]
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


def shown(text: object) -> str:
    """A name or text from outside as part of one line: what would end the line, move the cursor or is no character is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
