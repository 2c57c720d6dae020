"""Time, as the shell gets it. Rules for editing: as in the package's docstring."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol


class Clock(Protocol):
    """The only source of time for the shell; the core is handed ``now``."""

    def now(self) -> datetime:
        """Return the aware UTC wall time."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait; cancellable."""
        ...
