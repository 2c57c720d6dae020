"""Blocking work is over when its caller goes on, cancelled or not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from remote_trainer.threads import GivenUp, Threads, Watch, to_end
from tests.support.patience import PATIENCE_S


class Work:
    """Begins, and lasts until it is let go, at the latest when its test ends; then it does what its watch says."""

    def __init__(self, watch: Callable[[int, int], None] = lambda done, total: None) -> None:
        self.begun, self.let_go = threading.Event(), threading.Event()
        self.over = ""
        self._watch = watch

    def __enter__(self) -> Work:
        return self

    def __exit__(self, *exc: object) -> None:
        self.let_go.set()

    def __call__(self) -> str:
        self.begun.set()
        self.let_go.wait(PATIENCE_S)
        try:
            self._watch(1, 1)
            self.over = "done"
        except GivenUp:
            self.over = "given up"
            raise
        return self.over


async def turns() -> None:
    """Let everybody else have many turns."""
    for _ in range(100):
        await asyncio.sleep(0)


async def cancelled(task: asyncio.Task[str]) -> None:
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_work_returns_what_it_returns() -> None:
    """What the thread returns comes back, after all the progress it has told."""
    told: list[tuple[int, int]] = []
    watch = Watch(lambda done, total: told.append((done, total)))
    with Work(watch) as work:
        work.let_go.set()
        assert await Threads("test").run(watch, work) == "done"
    assert told == [(1, 1)]
    assert await to_end(lambda: "done") == "done"


async def test_cancelled_work_is_told_and_waited_for() -> None:
    """Whoever is cancelled, and however often, goes on when the work has ended; its next look at the watch ends it."""
    watch = Watch()
    with Work(watch) as work:
        task = asyncio.create_task(Threads("test").run(watch, work))
        await asyncio.to_thread(work.begun.wait, PATIENCE_S)
        for _ in range(3):
            task.cancel()
            await turns()
            assert not task.done()
        work.let_go.set()
        await cancelled(task)
        assert work.over == "given up"


async def test_work_that_has_not_begun() -> None:
    """Cancelled while it waits for a thread, work never begins, and nobody waits for it."""
    threads = Threads("test", most=1)
    with Work() as first, Work() as second:
        running = asyncio.create_task(threads.run(Watch(), first))
        await asyncio.to_thread(first.begun.wait, PATIENCE_S)
        waiting = asyncio.create_task(threads.run(Watch(), second))
        await asyncio.sleep(0)
        waiting.cancel()
        await cancelled(waiting)
    assert await running == "done"
    assert await threads.run(Watch(), lambda: "behind both") == "behind both"
    assert not second.begun.is_set()


async def test_work_that_hangs() -> None:
    """Work that can hang where nothing watches is left when it was waited for as long as was said."""
    with Work() as work:
        task = asyncio.create_task(Threads("test", leave_s=0.0).run(Watch(), work))
        await asyncio.to_thread(work.begun.wait, PATIENCE_S)
        task.cancel()
        await cancelled(task)
        assert not work.over


async def test_short_work_is_done_to_its_end() -> None:
    """Short work is done although its caller was cancelled, and over when he goes on."""
    with Work() as work:
        task = asyncio.create_task(to_end(work))
        await asyncio.to_thread(work.begun.wait, PATIENCE_S)
        task.cancel()
        await turns()
        assert not task.done()
        work.let_go.set()
        await cancelled(task)
        assert work.over == "done"
