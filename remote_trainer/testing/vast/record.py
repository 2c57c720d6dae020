"""Everything that happened, in order, and what may never have happened.

Rules for editing: append-only; times are the simulated clock's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One thing that happened."""

    at: float
    what: str  # created, refused, running, stopped, ended (the request to destroy was accepted), gone (and its processes too), fault
    instance: int = 0
    label: str = ""
    offer: int = 0
    detail: str = ""


class Record:
    """The account's history."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []

    def add(self, entry: Entry) -> None:
        """Append."""
        self._entries.append(entry)

    def entries(self, what: str = "") -> list[Entry]:
        """Return all of them, or those of a kind."""
        return [entry for entry in self._entries if what in ("", entry.what)]

    def documents(self) -> list[dict[str, Any]]:
        """Return them for a reader outside."""
        return [asdict(entry) for entry in self._entries]

    def alive(self) -> list[int]:
        """Return the instances that were created and are not gone."""
        gone = {entry.instance for entry in self.entries("gone")}
        return [entry.instance for entry in self.entries("created") if entry.instance not in gone]

    def doubles(self) -> list[str]:
        """Return the labels under which two instances were alive at a time."""
        return sorted(set(self._doubles()))

    def _doubles(self) -> Iterator[str]:
        alive: dict[int, str] = {}
        for entry in self._entries:
            if entry.what == "created":
                if entry.label and entry.label in alive.values():
                    yield entry.label
                alive[entry.instance] = entry.label
            elif entry.what in ("ended", "gone"):
                alive.pop(entry.instance, None)
