"""Wakes whoever waits for news of a store: its own writes at once, other connections' by a follower that runs while somebody waits.

Rules for editing: nothing of a particular database; a wake may come for nothing, but is never missed: everything rings after the
write can be read, and a follower rings once when it has begun, for what happened before.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager

from remote_trainer.errors import StoreUnavailable
from remote_trainer.model import JobId

#: Watches other connections' writes for ever and rings after each; rings all once when it has begun.
Follower = Callable[[], Awaitable[None]]

#: How long a follower that lost its store waits before it tries again, seconds.
RETRY_S = 0.5
#: How long a follower has to end before it is cancelled once more, seconds.
_AGAIN_S = 1.0


class Watchers:
    """The waiting readers of one store object, and the follower that serves them."""

    def __init__(self, follow: Follower) -> None:
        self._follow = follow
        self._waiting: dict[JobId | None, set[asyncio.Event]] = {}
        self._task: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False

    def ring(self, jobs: Iterable[JobId], *, queue: bool) -> None:
        """Wake those who watch these jobs and, with ``queue``, those who watch all."""
        for job_id in jobs:
            self._wake(job_id)
        if queue:
            self._wake(None)

    def ring_all(self) -> None:
        """Wake everybody."""
        for job_id in self._waiting:
            self._wake(job_id)

    async def watch(self, job_id: JobId | None) -> AsyncGenerator[None, None]:
        """Yield at the start and after each ring; ends when the store is closed."""
        rung = asyncio.Event()
        with self._registered(job_id, rung):
            yield
            while not self._closed:
                await rung.wait()
                rung.clear()
                if self._task is not None and self._task.done() and not self._closed:
                    self._task.result()  # it only ends by a fault
                if not self._closed:
                    yield

    async def close(self) -> None:
        """End every watch."""
        self._closed = True
        self.ring_all()
        self._stop_following()
        if self._ending:
            await asyncio.wait(self._ending)

    def _wake(self, job_id: JobId | None) -> None:
        for rung in self._waiting.get(job_id, ()):
            rung.set()

    @contextmanager
    def _registered(self, job_id: JobId | None, rung: asyncio.Event) -> Iterator[None]:
        self._waiting.setdefault(job_id, set()).add(rung)
        if not self._closed and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._serve(), name="store-follower")
        try:
            yield
        finally:
            self._waiting[job_id].discard(rung)
            if not self._waiting[job_id]:
                del self._waiting[job_id]
            if not self._waiting:
                self._stop_following()

    def _stop_following(self) -> None:
        if self._task is not None:
            ending = asyncio.create_task(_end(self._task), name="store-follower-end")
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)
            self._task = None

    async def _serve(self) -> None:
        try:
            while True:
                try:
                    await self._follow()
                except StoreUnavailable:
                    self.ring_all()  # whoever reads now sees the fault for himself
                    await asyncio.sleep(RETRY_S)
        finally:
            self.ring_all()


async def _end(follower: asyncio.Task[None]) -> None:
    """Cancel until it has ended: a database's client may swallow a cancellation, and a follower has no end of its own."""
    while not follower.done():
        follower.cancel()
        await asyncio.wait([follower], timeout=_AGAIN_S)
    if not follower.cancelled():
        follower.exception()  # seen: nobody waits for news any more
