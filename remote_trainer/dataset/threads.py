"""Blocking work on data in a thread that ends soon after nobody waits for it: Ctrl-C must not wait until 100 GB are read.

Rules for editing: work looks at ``gone`` between pieces of at most a chunk.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

from remote_trainer.errors import DatasetError

T = TypeVar("T")


class Gone:
    """Tells work in threads whether somebody still waits for it."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Nobody waits any more."""
        self._event.set()

    def check(self) -> None:
        """Raise DatasetError, which nobody will see, once nobody waits."""
        if self._event.is_set():
            raise DatasetError("interrupted")


async def in_thread(work: Callable[[Gone], T]) -> T:
    """Do blocking work; when this is cancelled the work is told."""
    gone = Gone()
    try:
        return await asyncio.to_thread(work, gone)
    except asyncio.CancelledError:
        gone.set()
        raise
