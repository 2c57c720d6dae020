"""Group commit: every save of every job of this worker goes through one queue, so that a thousand log lines cost one transaction.

A change that carries a document or events goes out at once; pure log appends linger a few milliseconds for company. While the store is
down everything waits here, in order, and is written when it is back; who gives up (a cancelled task) takes its change out.

Rules for editing: never reorder the changes of one job; never drop one whose waiter is still there.
"""

from __future__ import annotations

import asyncio
from collections import deque

from remote_trainer import log
from remote_trainer.errors import LeaseLost, RemoteTrainerError, StoreUnavailable
from remote_trainer.policy import backoff_s
from remote_trainer.ports import Change, Clock, Store

_log = log.get()

#: Time between two transactions that hold nothing but log lines, seconds, after a small and after a large one: a commit costs a
#: millisecond of CPU and two syncs, so a thousand busy jobs wait for company a little longer than one.
_PACE_S = (0.02, 0.05)
_LARGE = 40  # changes

#: Most changes in one transaction: bounds how long a commit holds the store.
_BATCH = 2000


class Writer:
    """The only way from a worker's jobs to ``store.save``. ``run`` must be running."""

    def __init__(self, store: Store, clock: Clock, *, linger_s: float = 0.008) -> None:
        self._store, self._clock, self._linger_s = store, clock, linger_s
        self._queue: deque[tuple[Change, asyncio.Future[None]]] = deque()
        self._some = asyncio.Event()
        self._urgent = asyncio.Event()
        self._flushing = asyncio.Lock()
        self._flushed_at, self._flushed = 0.0, 0  # the last flush: when, by the loop's clock, and how many changes

    def put(self, change: Change) -> asyncio.Future[None]:
        """Queue a change; the future ends when it is durable, with LeaseLost if the token was stale."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((change, done))
        self._some.set()
        if change.job is not None or change.events:
            self._urgent.set()
        return done

    async def save(self, change: Change) -> None:
        """Write a change durably. LeaseLost when another worker owns the job."""
        await self.put(change)

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._some.wait()
            if not self._urgent.is_set() and self._linger_s:
                await self._linger()
            self._some.clear()
            self._urgent.clear()
            await asyncio.shield(self.flush())  # a drain must not lose what was already taken from the queue

    async def _linger(self) -> None:
        # A line now and then hardly waits; lines in quick succession, of one job or a thousand, share a transaction.
        least, most = _PACE_S
        pace = least + (most - least) * min(1.0, self._flushed / _LARGE)
        delay = max(self._linger_s, self._flushed_at + pace - asyncio.get_running_loop().time())
        try:
            async with asyncio.timeout(delay):
                await self._urgent.wait()
        except TimeoutError:
            return

    async def flush(self) -> None:
        """Write everything that is queued now."""
        async with self._flushing:
            self._flushed_at, self._flushed = asyncio.get_running_loop().time(), len(self._queue)
            await self._flush()

    async def _flush(self) -> None:
        while self._queue:
            batch = [self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))]
            await self._write([item for item in batch if not item[1].cancelled()])

    async def _write(self, batch: list[tuple[Change, asyncio.Future[None]]]) -> None:
        failures = 0
        while batch:
            try:
                stale = await self._store.save([change for change, _ in batch])
            except StoreUnavailable as error:
                failures += 1
                if failures in (1, 10, 100):
                    _log.warning(
                        "training.worker", action="store_unavailable", waiting=len(batch), failures=failures, error=str(error)
                    )
                await self._clock.sleep(backoff_s(failures, base_s=0.1, max_s=5.0))
                batch = [item for item in batch if not item[1].cancelled()]
                continue
            except (RemoteTrainerError, ValueError) as error:  # ValueError: what cannot be written as text
                await self._one_by_one(batch, error)
                return
            for change, done in batch:
                _settle(done, LeaseLost(f"job {change.job_id} belongs to another worker") if change.job_id in stale else None)
            return

    async def _one_by_one(self, batch: list[tuple[Change, asyncio.Future[None]]], error: Exception) -> None:
        """One bad change must not take the others' down with it: find out whose it is."""
        if len(batch) == 1:
            _settle(batch[0][1], error)
            return
        for item in batch:
            await self._write([item])


def _settle(done: asyncio.Future[None], error: Exception | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)
