"""The long-lived worker: takes jobs it has room for, keeps their leases, drives each in its own task, and drains when told to.

Side tasks are named; if one dies the worker stops, since a worker without heartbeat or writer must not act. A drain stops claiming, lets
running saves finish and gives the leases back; what runs on hosts goes on and is adopted by the next worker.

Rules for editing: no job's state is looked at here. Everything about one job is in ``runner``.
"""

from __future__ import annotations

import asyncio
import contextlib

from remote_trainer import log
from remote_trainer.errors import LeaseLost, RemoteTrainerError, StoreUnavailable
from remote_trainer.model import Event, JobId, Lease, Token
from remote_trainer.policy import backoff_s
from remote_trainer.ports import Change
from remote_trainer.worker.alarm import unreturned
from remote_trainer.worker.audit import Audit
from remote_trainer.worker.identity import holder, is_dead, tells
from remote_trainer.worker.notify import notify, watchdog_s
from remote_trainer.worker.reaper import Reaper
from remote_trainer.worker.runner import JobRunner
from remote_trainer.worker.shop import Shop
from remote_trainer.worker.spool import forget, sweep

_log = log.get()

#: Wakes of the store within that time are answered together: another worker's writes wake us too.
_WAKE_GAP_S = 0.02
#: How often is looked for machines that should be gone.
_ALARM_EVERY_S = 15.0
#: How often workers of this machine are looked at: one that died need not cost its jobs a whole lease.
_NEIGHBOURS_S = 1.0


class Worker:
    """Drives jobs of one store. ``run`` returns when ``stop`` was called and everything is given back."""

    def __init__(
        self,
        shop: Shop,
        *,
        lease_s: float,
        max_jobs: int,
        name: str | None = None,
        reaper: Reaper | None = None,
        audit: Audit | None = None,
    ) -> None:
        self._shop, self._lease_s, self._max_jobs, self._reaper, self._audit = shop, lease_s, max_jobs, reaper, audit
        self.name = name or holder()
        self._runners: dict[JobId, JobRunner] = {}
        self._tasks: dict[JobId, asyncio.Task[None]] = {}
        self._stopping = asyncio.Event()
        self._changed = asyncio.Event()
        self._looked = asyncio.Event()  # the store was asked for jobs at least once

    def stop(self) -> None:
        """Begin to drain. Idempotent."""
        self._stopping.set()

    async def run(self, *, until_idle_s: float | None = None) -> None:
        """Work until stopped, or until there was nothing to do for ``until_idle_s``."""
        await self._evict_dead()
        await sweep(self._shop.store, self._shop.spool_dir)
        sides = {
            asyncio.create_task(self._shop.writer.run(), name="writer"),
            asyncio.create_task(self._heartbeat(), name="heartbeat"),
            asyncio.create_task(self._intake(), name="intake"),
            asyncio.create_task(self._wakes(), name="wakes"),
            asyncio.create_task(self._alarms(), name="alarms"),
        }
        if self._reaper is not None:
            sides.add(asyncio.create_task(self._reaper.run(), name="reaper"))
        if self._audit is not None:
            sides.add(asyncio.create_task(self._audit.run(), name="audit"))
        if tells(self.name):
            sides.add(asyncio.create_task(self._neighbours(), name="neighbours"))
        if (every := watchdog_s()) is not None:
            sides.add(asyncio.create_task(self._watchdog(every), name="watchdog"))
        if until_idle_s is not None:
            sides.add(asyncio.create_task(self._stop_when_idle(until_idle_s), name="idle"))
        stopping = asyncio.create_task(self._stopping.wait(), name="stopping")
        notify("READY=1", "STATUS=working")
        _log.info("training.worker", action="started", holder=self.name, max_jobs=self._max_jobs)
        try:
            done, _ = await asyncio.wait({*sides, stopping}, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopping}:
                task.result()  # a side task never ends by itself but with an error, save the idle one, which calls stop()
        finally:
            notify("STOPPING=1", "STATUS=draining")
            await asyncio.shield(self._drain(sides, stopping))

    # -- taking jobs

    async def _neighbours(self) -> None:
        """Take over from workers of this machine as soon as they are dead."""
        while True:
            await self._shop.clock.sleep(_NEIGHBOURS_S)
            with contextlib.suppress(StoreUnavailable):  # the intake complains
                await self._evict_dead()

    async def _evict_dead(self) -> None:
        """Let leases of processes of this machine that are provably dead run out at once."""
        for name in await self._shop.store.holders():
            if name != self.name and is_dead(name):
                freed = await self._shop.store.evict(name)
                _log.info("training.worker", action="evicted_dead_worker", holder=name, jobs=freed)

    async def _wakes(self) -> None:
        """Turn the store's change feed into ticks; a broken feed is opened again."""
        failures = 0
        while True:
            try:
                async for _ in self._shop.store.watch():
                    failures = 0
                    self._changed.set()
                    await self._shop.clock.sleep(_WAKE_GAP_S)
            except StoreUnavailable as error:
                failures += 1
                _log.warning("training.worker", action="feed_broken", error=str(error))
            await self._shop.clock.sleep(backoff_s(failures, base_s=0.1, max_s=5.0))

    async def _intake(self) -> None:
        """Claim while there is room; look for wishes to cancel. Woken by the feed, and now and then for leases that ran out."""
        while True:
            self._changed.clear()
            try:
                await self._claim()
                self._looked.set()
                if self._runners:
                    await self._renew()
            except StoreUnavailable as error:
                _log.warning("training.worker", action="store_unavailable", error=str(error))
                await self._shop.clock.sleep(0.5)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(1.0, self._lease_s / 3)):
                    await self._changed.wait()

    async def _claim(self) -> None:
        room = self._max_jobs - len(self._runners)
        if room <= 0:
            return
        for lease in await self._shop.store.claim(self.name, lease_s=self._lease_s, limit=room):
            self._adopt(lease)

    def _adopt(self, lease: Lease) -> None:
        job_id = lease.job.id
        try:
            self._shop.driver(lease.job.place.driver, lease.job.place.options)
        except RemoteTrainerError as error:
            _log.error("training.worker", action="no_driver", job=job_id, error=str(error))
            return  # the lease runs out by itself: a worker that knows the driver may be there
        runner = JobRunner(lease, self._shop)
        self._runners[job_id] = runner
        task = self._tasks[job_id] = asyncio.create_task(self._drive(runner), name=f"job:{job_id}")
        task.add_done_callback(lambda _: self._let_go(runner))

    async def _drive(self, runner: JobRunner) -> None:
        job_id = runner.job.id
        try:
            await runner.run()
            await forget(self._shop.spool_dir, job_id)
            await self._shop.store.release({job_id: runner.token})
        except LeaseLost as error:
            _log.info("training.worker", action="lease_lost", job=job_id, reason=str(error))
        except StoreUnavailable as error:
            _log.warning("training.worker", action="release_failed", job=job_id, error=str(error))
        except Exception as error:  # noqa: BLE001 - the outermost frame of a job
            # A bug of ours: stay the holder, so that nobody repeats it; leave everything as it is, visible, for a human.
            _log.exception("training.worker", action="job_parked", job=job_id)
            message = (
                f"internal error, the job stands still and its machine is kept: {error}; look at it, then restart the worker"
            )
            parked = Event(at=self._shop.clock.now(), kind="fault", message=message)
            self._shop.writer.put(Change(job_id=job_id, token=runner.token, events=(parked,)))
            await self._stopping.wait()

    def _let_go(self, runner: JobRunner) -> None:
        # Not in the task itself: one that is cancelled before its first step never gets to any line of it, and its lease would be
        # renewed for ever.
        if self._runners.get(runner.job.id) is runner:  # else we have taken the job again while this runner was ending
            del self._runners[runner.job.id], self._tasks[runner.job.id]
        self._changed.set()

    # -- keeping them

    async def _heartbeat(self) -> None:
        """Renew all leases at a third of their time; drop every job when that failed for a whole one."""
        loop = asyncio.get_running_loop()
        renewed = loop.time()
        while True:
            await self._shop.clock.sleep(self._lease_s / 3)
            began = loop.time()
            if not self._runners:
                renewed = began
                continue
            try:
                left = max(1.0, renewed + self._lease_s - began)  # a store that hangs must not outlast the lease
                async with asyncio.timeout(min(self._lease_s / 3, left)):
                    await self._renew()
                renewed = began
            except (StoreUnavailable, TimeoutError) as error:
                _log.warning("training.worker", action="renew_failed", error=str(error) or "timeout")
                if loop.time() - renewed >= self._lease_s:
                    self._fence_self()

    async def _renew(self) -> None:
        mine: dict[JobId, Token] = {job_id: runner.token for job_id, runner in self._runners.items()}
        renewal = await self._shop.store.renew(self.name, mine, lease_s=self._lease_s)
        for job_id in mine:
            if job_id not in renewal.held and (task := self._tasks.get(job_id)) is not None and job_id in self._runners:
                if self._runners[job_id].token == mine[job_id] and not self._runners[job_id].job.phase.terminal:
                    task.cancel()
            elif job_id in renewal.cancelling and (runner := self._runners.get(job_id)) is not None:
                runner.cancel_wished()

    def _fence_self(self) -> None:
        """Our leases ran out by our own clock: somebody else may act now, so we must not."""
        _log.error("training.worker", action="fenced_self", jobs=len(self._tasks))
        for task in self._tasks.values():
            task.cancel()

    async def _watchdog(self, every_s: float) -> None:
        while True:
            notify("WATCHDOG=1", f"STATUS={len(self._runners)} jobs")
            await self._shop.clock.sleep(every_s)

    async def _stop_when_idle(self, seconds: float) -> None:
        await self._looked.wait()
        loop = asyncio.get_running_loop()
        since = loop.time()
        while loop.time() - since < seconds:
            if self._runners:
                since = loop.time()
            await self._shop.clock.sleep(min(1.0, seconds / 4))
        self.stop()

    # -- telling

    async def _alarms(self) -> None:
        """Tell of machines that should be gone: whatever keeps them, a provider that answers nothing included."""
        while True:
            await self._shop.clock.sleep(_ALARM_EVERY_S)
            now = self._shop.clock.now()
            for runner in tuple(self._runners.values()):
                cause = unreturned(runner.job, now, self._shop.policy.alarm_after_s)
                if cause is not None and self._shop.alarm.ring(cause):
                    event = Event(at=now, kind="alarm", message=cause.message, data=dict(cause.data))
                    self._shop.writer.put(Change(job_id=runner.job.id, token=runner.token, events=(event,)))

    # -- letting go

    async def _drain(self, sides: set[asyncio.Task[None]], stopping: asyncio.Task[bool]) -> None:
        mine = {job_id: runner.token for job_id, runner in self._runners.items()}
        self._stopping.set()
        for task in [*self._tasks.values(), *(side for side in sides if side.get_name() != "writer")]:
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        stopping.cancel()
        for side in sides:
            side.cancel()
        await asyncio.gather(*sides, stopping, return_exceptions=True)
        try:
            # Not for ever while the store is down: after that the leases have run out, and the host still has every byte.
            async with asyncio.timeout(self._lease_s):
                await self._shop.writer.flush()
                await self._shop.store.release(mine)
        except (StoreUnavailable, TimeoutError) as error:
            _log.warning("training.worker", action="release_failed", error=str(error) or "timeout")
        await self._shop.close()
        _log.info("training.worker", action="stopped", given_back=len(mine))
