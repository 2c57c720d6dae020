"""One job in one worker: decide, save, perform, wait; again on every event.

Rules for editing: nothing here knows a phase. The set of running effect tasks is made equal to the set of wishes; a fulfilled wish is not
repeated while it stands, a failed one is when the core says so; one whose kind is just being cancelled waits for that. ``Create`` is
never cancelled and never repeated from here.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace

from remote_trainer import log
from remote_trainer.effects import Create, Destroy, Effect, Seen
from remote_trainer.errors import Fenced, InvariantBroken, LeaseLost, RemoteTrainerError
from remote_trainer.lifecycle import Decision, Moment, decide, forget
from remote_trainer.model import SCHEMA, Job, Lease
from remote_trainer.policy import settlement
from remote_trainer.ports import Change, Driver
from remote_trainer.worker.history import events_of
from remote_trainer.worker.perform import Performer
from remote_trainer.worker.shop import Shop
from remote_trainer.worker.trouble import Circumstances, judge

_log = log.get()

#: More changes than this in a row without waiting mean that decide() contradicts itself.
_TICKS_MAX = 200

#: So many rounds later a request to end an instance that still waits for its answer is sent anew.
_ROUNDS_MAX = 20


class JobRunner:
    """Drives one leased job until it ends, the lease is lost, or the worker drains."""

    def __init__(self, lease: Lease, shop: Shop) -> None:
        self.job, self.token = lease.job, lease.token
        self._shop = shop
        self._seen = Seen(since=shop.clock.now())
        self._awake = asyncio.Event()
        self._tasks: dict[Effect, asyncio.Task[None]] = {}
        self._fulfilled: set[Effect] = set()
        self._lost: LeaseLost | None = None
        self._performer = Performer(shop, self)

    # -- what effects and the worker tell us

    def observe(self, change: Callable[[Seen], Seen]) -> None:
        """Merge something seen, and tick."""
        self._seen = change(self._seen)
        self._awake.set()

    def cancel_wished(self) -> None:
        """Note the user's wish, as the store holds it."""
        if self.job.cancel_requested_at is None:
            self.job = replace(self.job, cancel_requested_at=self._shop.clock.now())
            self._awake.set()

    @property
    def driver(self) -> Driver:
        """The driver of the place where the current attempt is, or is to be."""
        return self._shop.driver(self.job.place.driver, self.job.place.options)

    @property
    def seen(self) -> Seen:
        """Return what this worker has seen of the job."""
        return self._seen

    # -- the loop

    async def run(self) -> None:
        """Drive the job. Raises LeaseLost when another worker owns it; effects are ended in any case, the host's work goes on."""
        try:
            with log.bound(job=self.job.id, token=self.token):
                while not self.job.phase.terminal:
                    self._awake.clear()
                    decision = await self._tick()
                    self._reconcile(decision.effects)
                    await self._wait(decision)
        finally:
            await self._end_effects()

    async def _tick(self) -> Decision:
        """Decide and save until nothing changes any more; return the standing wishes."""
        for _ in range(_TICKS_MAX):
            if self._lost is not None:
                raise self._lost
            decision = self._decide()
            if decision.job == self.job:
                return decision
            await self._save(decision.job)
            for effect in decision.effects:
                if isinstance(effect, Create):
                    self._seen = replace(self._seen, creating=self._seen.creating | {effect.number})
                    self._start(effect)
        raise InvariantBroken(f"job {self.job.id} in phase {self.job.phase} changes without end; please report this")

    def _decide(self) -> Decision:
        """Ask the rules; where they fail, the job stands still, and only its limits and the user's wish still count."""
        try:
            return decide(self.job, self._moment())
        except Exception as error:
            if self._seen.broken:
                raise
            _log.exception(log.event(self.job.phase), action="bug")
            self._seen = replace(self._seen, broken=f"{type(error).__name__}: {error}")
            return decide(self.job, self._moment())

    def _moment(self) -> Moment:
        return Moment(
            seen=self._seen,
            now=self._shop.clock.now(),
            policy=self._shop.policy,
            abilities=self.driver.abilities,
            deployment=self._shop.deployment,
        )

    async def _save(self, job: Job) -> None:
        job = self._performer.traffic.onto(job)
        events = tuple(events_of(self.job, job, self._shop.clock.now()))
        # As this version writes it: an older worker, which would lose what it does not know, leaves it alone from now on.
        written = replace(job, schema=SCHEMA)
        await self._shop.writer.save(Change(job_id=job.id, token=self.token, job=written, events=events, entries=settlement(job)))
        before = self.job
        # The wish to cancel may have come in between: it is the store's, not ours to overwrite.
        self.job = replace(job, cancel_requested_at=job.cancel_requested_at or before.cancel_requested_at)
        if job.phase is not before.phase:
            _log.info(log.event(job.phase), action="phase", attempt=len(job.attempts), note=job.message or job.note)
        if len(job.attempts) != len(before.attempts):
            await self._end_effects()
        still_known = forget(self._seen, before, job, self._shop.clock.now())
        if still_known is not self._seen:
            self._seen = still_known
            self._fulfilled.clear()  # what was found out by them is forgotten

    async def _wait(self, decision: Decision) -> None:
        if self.job.phase.terminal:
            return
        timeout = None
        if decision.wake_at is not None:
            timeout = max(0.0, (decision.wake_at - self._shop.clock.now()).total_seconds())
        try:
            async with asyncio.timeout(timeout):
                await self._awake.wait()
        except TimeoutError:
            return

    # -- effects

    def _reconcile(self, wishes: tuple[Effect, ...]) -> None:
        self._fulfilled &= set(wishes)
        for effect, task in list(self._tasks.items()):
            if effect not in wishes and not isinstance(effect, Create) and not any(_is_asked(wish, effect) for wish in wishes):
                task.cancel()
        for effect in wishes:
            if effect not in self._fulfilled and not self._must_wait(effect):
                self._start(effect)

    def _must_wait(self, wish: Effect) -> bool:
        """Does a task see to a wish already, or is a cancelled one of its kind still ending? Both at once would be at the same files."""
        return any(
            _is_asked(wish, effect) or (type(effect) is type(wish) and task.cancelling()) for effect, task in self._tasks.items()
        )

    def _start(self, effect: Effect) -> None:
        name = f"{self.job.id}:{type(effect).__name__}"
        task = self._tasks[effect] = asyncio.create_task(self._run_effect(effect), name=name)
        task.add_done_callback(lambda over: self._over(effect, over))

    def _over(self, effect: Effect, task: asyncio.Task[None]) -> None:
        # Not in the task itself: one that is cancelled before its first step never gets to any line of it.
        if self._tasks.get(effect) is task:
            del self._tasks[effect]
        self._awake.set()

    async def _run_effect(self, effect: Effect) -> None:
        kind = type(effect)
        try:
            await self._performer.perform(effect)
            self._fulfilled.add(effect)
            if kind in self._seen.troubles:
                self._seen = self._seen.with_trouble(kind, None)
        except (LeaseLost, Fenced) as error:
            self._lost = LeaseLost(str(error))
        except RemoteTrainerError as error:
            self._note_trouble(effect, error)
        except Exception as error:  # noqa: BLE001 - the outermost frame of an effect: a bug of ours must not take the worker down
            _log.exception(log.event(self.job.phase), action="bug", effect=kind.__name__)
            self._note_trouble(effect, InvariantBroken(f"internal error in {kind.__name__}: {type(error).__name__}: {error}"))

    def _note_trouble(self, effect: Effect, error: RemoteTrainerError) -> None:
        circumstances = Circumstances(
            before=self._seen.troubles.get(type(effect)),
            now=self._shop.clock.now(),
            policy=self._shop.policy,
            borrowed=self.driver.abilities.borrowed and not self.job.fallbacks,
            jitter=random.random(),  # noqa: S311 - spreads retries, keeps no secret
            heard_at=self._seen.instances_at,
        )
        trouble = judge(effect, error, circumstances)
        self._seen = self._seen.with_trouble(type(effect), trouble)
        _log.warning(
            log.event(self.job.phase),
            action="trouble",
            effect=type(effect).__name__,
            severity=trouble.severity,
            count=trouble.count,
            error=trouble.message,
        )

    async def _end_effects(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _is_asked(wish: Effect, running: Effect) -> bool:
    """Is a wish what a running effect does? A request to end an instance may wait its turn at the provider for several rounds: one that
    gave up its place to the next round's, with many machines to return, would never get there.
    """
    if isinstance(wish, Destroy) and isinstance(running, Destroy):
        return wish.instance_id == running.instance_id and wish.round - running.round < _ROUNDS_MAX
    return wish == running
