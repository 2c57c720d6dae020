"""The ports of one simulated worker process: every message may be late, lost, or sent by a process that is dead when it arrives.

Rules for editing: a verb that changes something arrives by itself (``Line.send``): cancelling who waits for its reply does not call it
back. A paused process sends nothing and hears nothing until it goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, TypeVar

from remote_trainer.errors import Ambiguous, HostUnreachable, ObjectsUnavailable, RemoteTrainerError, StoreUnavailable, Transient
from remote_trainer.model import HostFacts, Instance, InstanceState, JobId, Lease, Offer, Resources, StepState, Token
from remote_trainer.ports import Abilities, Change, Ended, Heartbeat, Output, Renewal, Spec, StepSpec, StepStatus
from remote_trainer.testing.sim.store import SimStore
from remote_trainer.testing.sim.world import Machine, World

T = TypeVar("T")
Raises = Callable[[str], RemoteTrainerError]

_SILENCE_S = 15.0


class Line:
    """A process's way out into the world."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.paused_until = 0.0
        self._errands: set[asyncio.Task[Any]] = set()

    async def gate(self) -> None:
        """Wait while the process is paused."""
        while (left := self.paused_until - self.world.now) > 0:  # noqa: ASYNC110 - a pause may grow while it lasts
            await asyncio.sleep(left)

    async def send(self, act: Callable[[], T], lost: Raises, unsure: Raises | None = None, *, most_s: float = 0.4) -> T:
        """Send a request that changes something and wait for the reply."""
        await self.gate()
        world = self.world
        if world.chance(world.faults.loss):
            await asyncio.sleep(world.dice.uniform(0, most_s))
            raise lost("the request was lost")
        errand = asyncio.create_task(self._arrive(act, world.dice.uniform(0, most_s)))
        self._errands.add(errand)
        errand.add_done_callback(self._done)
        result = await asyncio.shield(errand)
        if world.chance(world.faults.loss):
            await asyncio.sleep(world.dice.uniform(0, 5))
            raise (unsure or lost)("the reply was lost")
        await self.gate()
        return result

    async def ask(self, act: Callable[[], T], lost: Raises, *, most_s: float = 0.4) -> T:
        """Ask for something that changes nothing."""
        await self.gate()
        world, delay = self.world, self.world.dice.uniform(0, most_s)
        await asyncio.sleep(delay / 2)
        result = act()
        if world.chance(world.faults.loss):
            await asyncio.sleep(delay)
            raise lost("no answer")
        await asyncio.sleep(delay / 2)
        await self.gate()
        return result

    async def _arrive(self, act: Callable[[], T], after_s: float) -> T:
        await asyncio.sleep(after_s)
        return act()

    def _done(self, errand: asyncio.Task[Any]) -> None:
        self._errands.discard(errand)
        if not errand.cancelled():
            errand.exception()  # whoever waited has it too


class StoreLine:
    """``ports.Store``, as far as a worker's jobs need it, over a line."""

    def __init__(self, line: Line, store: SimStore) -> None:
        self._line, self._store = line, store

    async def claim(self, holder: str, *, lease_s: float, limit: int) -> Sequence[Lease]:
        return await self._send(lambda: self._store.claim(holder, lease_s=lease_s, limit=limit))

    async def renew(self, holder: str, leases: Mapping[JobId, Token], *, lease_s: float) -> Renewal:
        return await self._send(lambda: self._store.renew(holder, leases, lease_s=lease_s))

    async def release(self, leases: Mapping[JobId, Token]) -> None:
        await self._send(lambda: self._store.release(leases))

    async def save(self, changes: Sequence[Change]) -> frozenset[JobId]:
        return await self._send(lambda: self._store.save(changes))

    async def holders(self) -> Sequence[str]:
        return []

    async def watch(self, job_id: JobId | None = None) -> AsyncIterator[None]:
        """Wake once and never again: correctness must not depend on wakes."""
        yield
        await asyncio.Event().wait()

    async def log_streams(self, job_id: JobId) -> Mapping[str, int]:
        return await self._send(lambda: {name: len(log) for name, log in self._store.rows[job_id].logs.items()})

    async def read_log(self, job_id: JobId, stream: str, *, offset: int = 0, limit: int = 1 << 20) -> bytes:
        return await self._send(lambda: bytes(self._store.rows[job_id].logs.get(stream, b"")[offset : offset + limit]))

    async def _send(self, act: Callable[[], T]) -> T:
        def there() -> T:
            if self._line.world.now < self._line.world.store_down_until:
                raise StoreUnavailable("the store is down")
            return act()

        return await self._line.send(there, StoreUnavailable, most_s=0.02)


class SimDriver:
    """``ports.Driver`` over a line: refuses, loses replies, lists late, forgets to destroy."""

    name = "sim"

    def __init__(self, line: Line) -> None:
        self._line, self._world = line, line.world
        faults = line.world.faults
        self.abilities = Abilities(borrowed=line.world.borrowed, visibility_lag_s=faults.lag_s)

    async def offers(self, wanted: Resources) -> Sequence[Offer]:
        price = Decimal(0) if self.abilities.borrowed else Decimal("0.04")
        return await self._answer(lambda: [Offer(id="o1", driver=self.name, price_per_hour=price)])

    async def create(self, offer: Offer, spec: Spec, label: str) -> Instance:
        if self.abilities.borrowed:
            return Instance(id="own", label=label, borrowed=True)
        if self._world.chance(self._world.faults.refusals):
            raise Transient("the provider refuses")
        late = self._world.faults.late_creates and self._world.chance(0.1)
        most_s = 90.0 if late else 3.0
        return await self._line.send(lambda: self._world.create(label), Ambiguous, Ambiguous, most_s=most_s)

    async def instances(self, prefix: str) -> Sequence[Instance]:
        if self.abilities.borrowed:
            return []
        slow = self._world.chance(self._world.faults.slow_listing)
        return await self._answer(lambda: self._world.listing(prefix), most_s=30.0 if slow else 1.0)

    async def destroy(self, instance: Instance) -> None:
        if self._world.chance(self._world.faults.refusals):
            raise Transient("the provider is down")
        await self._line.send(lambda: self._world.destroy(instance.id), Transient, most_s=2.0)

    async def connect(self, instance: Instance) -> Any:
        raise NotImplementedError("simulated hosts are reached by SimHost")

    async def check(self) -> str:
        return "simulated"

    async def close(self) -> None:
        """Nothing is open."""

    async def _answer(self, act: Callable[[], T], *, most_s: float = 0.5) -> T:
        if self._world.chance(self._world.faults.refusals):
            raise Transient("the provider is down")
        return await self._line.ask(act, Transient, most_s=most_s)


class SimHost:
    """``ports.Host`` over a line, as far as step runs go; outputs are kept by ``keep``."""

    root = "~"

    def __init__(self, line: Line, instance: Instance) -> None:
        self._line, self._world = line, line.world
        self._machine: Machine = line.world.machine(instance)
        ready = instance.borrowed or line.world.rented[instance.id].listed(line.world.now).state is InstanceState.READY
        self._there = ready
        self.transport = SimpleNamespace(address=f"sim:{instance.id}", host_key="")

    async def bootstrap(self, incarnation: str) -> HostFacts:
        return await self._send(lambda: HostFacts(incarnation=self._machine.incarnation, boot="b"))

    async def start(self, key: str, token: Token, spec: StepSpec, *, incarnation: str, deadman_s: float) -> StepStatus:
        return await self._send(lambda: self._machine.start(key, spec.key, token, incarnation))

    async def stop(self, key: str, step_key: str, token: Token, *, grace_s: float) -> StepStatus:
        return await self._send(lambda: self._machine.stop(key, step_key, token, grace_s))

    async def clean(self, key: str, token: Token) -> None:
        await self._send(lambda: self._machine.check(key, token))

    async def status(self, key: str, step_keys: Sequence[str]) -> Mapping[str, StepStatus]:
        nothing = StepStatus(state=StepState.NONE)
        runs, now = self._machine.runs, self._world.now
        return await self._send(
            lambda: {each: runs[key, each].status(now) if (key, each) in runs else nothing for each in step_keys}
        )

    @asynccontextmanager
    async def follow(
        self, key: str, step_key: str, offset: int, *, metrics: str = "", every_s: float = 20.0
    ) -> AsyncIterator[Any]:
        """Follow a log: bytes as they come, a sign of life now and then, at last the end."""
        await self._send(lambda: None)
        yield _Follow(self._iterate(key, step_key, offset))

    async def _iterate(self, key: str, step_key: str, offset: int) -> AsyncIterator[Output | Heartbeat | Ended]:
        while True:
            await self._line.gate()
            if not self._machine.answers():
                await asyncio.sleep(_SILENCE_S)
                raise HostUnreachable("the host fell silent")
            run, now = self._machine.runs[key, step_key], self._world.now
            status, log = run.status(now), run.log(now)
            if len(log) > offset:
                yield Output(log[offset:])
                offset = len(log)
            elif status.state is not StepState.RUNNING:
                yield Ended(status)
                return
            else:
                yield Heartbeat(len(log))
                await asyncio.sleep(min(7.0, max(0.05, run.ends - now)))

    async def keep(self, label: str, *, complete: bool) -> None:
        """Bring the outputs to the object store and write the manifest."""

        def put() -> None:
            if self._world.now < self._world.objects_down_until:
                raise ObjectsUnavailable("the object store is down")
            self._world.kept[label] = complete

        await self._send(lambda: None)
        await asyncio.sleep(self._world.dice.uniform(0, 5))
        await self._send(lambda: None)
        await self._line.send(put, ObjectsUnavailable)

    async def _send(self, act: Callable[[], T]) -> T:
        def there() -> T:
            if not self._machine.answers() or not self._there:
                raise HostUnreachable("no connection")
            return act()

        return await self._line.send(there, HostUnreachable)


class _Follow:
    def __init__(self, items: AsyncIterator[Output | Heartbeat | Ended]) -> None:
        self._items = items

    def __aiter__(self) -> AsyncIterator[Output | Heartbeat | Ended]:
        return self._items

    async def ack(self, offset: int) -> None:
        """Nothing to give back."""
