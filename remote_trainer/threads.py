"""Blocking work in a thread that is over before its caller goes on, cancelled or not: nothing is written behind anybody's back.

Rules for editing: whoever loops over blocks calls the watch once a block; nothing here knows what the work is.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from remote_trainer.ports import Progress

T = TypeVar("T")


class GivenUp(Exception):
    """Ends work that nobody waits for any more; never seen outside its thread."""


class Watch:
    """Made in the event loop, called in the thread after each block: reports progress in the loop, ends the work on ``give_up``."""

    def __init__(self, progress: Progress | None = None) -> None:
        self._progress = progress
        self._loop = asyncio.get_running_loop()
        self._given_up = threading.Event()

    def give_up(self) -> None:
        self._given_up.set()

    def __call__(self, done: int, total: int) -> None:
        if self._given_up.is_set():
            raise GivenUp
        if self._progress:
            self._loop.call_soon_threadsafe(self._progress, done, total)


class Threads:
    """A few threads of somebody's own: the loop's common ones must stay free for others while a disk or a server is slow.

    ``leave_s`` is for work that can hang where no watch is called: a request on its way to a server that does not answer. That cannot
    be called back anyway.
    """

    def __init__(self, name: str, *, most: int = 8, leave_s: float | None = None) -> None:
        self._pool, self._leave_s = ThreadPoolExecutor(most, thread_name_prefix=name), leave_s

    async def run(self, watch: Watch, work: Callable[[], T]) -> T:
        """Return what the work returns. On cancellation the watch ends the work, which cleans up behind itself and is waited for."""
        job = self._pool.submit(work)
        try:
            return await asyncio.wrap_future(job)
        except asyncio.CancelledError:
            watch.give_up()
            if not job.cancel():  # else it had to wait for a thread, and never begins
                await _over(asyncio.wrap_future(job), self._leave_s)
            raise


async def to_end(work: Callable[[], T]) -> T:
    """Return what short work returns, done in one of the loop's common threads. On cancellation it is done all the same, and waited for."""
    job = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(job)
    except asyncio.CancelledError:
        await _over(job, None)
        raise


async def _over(work: asyncio.Future[T], leave_s: float | None) -> None:
    """Wait until work that was given up has ended, however it ended; being cancelled once more does not hasten it."""
    work.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody asks for it any more
    loop = asyncio.get_running_loop()
    until = None if leave_s is None else loop.time() + leave_s
    while not work.done() and (until is None or loop.time() < until):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({work}, timeout=None if until is None else until - loop.time())
