"""Work on data ends soon after nobody waits for it."""

from __future__ import annotations

import asyncio
import threading

import pytest

from remote_trainer.dataset.threads import Gone, in_thread
from remote_trainer.errors import DatasetError
from tests.support.patience import PATIENCE_S


async def test_work_returns_its_result() -> None:
    """What the thread returns comes back."""
    assert await in_thread(lambda gone: gone.check() or 42) == 42


async def test_cancelled_work_is_told() -> None:
    """When the waiting is cancelled, the next look at ``gone`` ends the work."""
    started, ended = threading.Event(), threading.Event()

    def work(gone: Gone) -> None:
        started.set()
        try:
            while True:
                gone.check()
        except DatasetError:
            ended.set()

    waiting = asyncio.create_task(in_thread(work))
    await asyncio.to_thread(started.wait, PATIENCE_S)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await asyncio.to_thread(ended.wait, PATIENCE_S)
