"""Store, driver and object store as one worker process has them: over its line.

Rules for editing: what the other side does is in store.py, provider.py and bucket.py; here is what becomes of messages, and what a
driver or client makes of bad answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

from remote_trainer.errors import Ambiguous, ObjectsUnavailable, Permanent, StoreUnavailable, Transient
from remote_trainer.model import SCHEMA, Instance, Job, JobId, Lease, Offer, Resources, Token
from remote_trainer.ports import Abilities, Change, JobQuery, Page, Progress, Renewal, Spec, StoredObject
from remote_trainer.testing.sim.line import Line

T = TypeVar("T")

#: A process that stands still right between its look at the clock and its request to rent sends it whenever it goes on. Only a reaper
#: can put that right, so in a world without one such a request is lost.
_PROMPT_S = 3.0


class StoreLine:
    """``ports.Store``, as far as a worker needs it. ``schema`` is the newest document that this version knows."""

    def __init__(self, line: Line, schema: int = SCHEMA) -> None:
        self._line, self._store, self._schema = line, line.world.store, schema

    async def claim(self, holder: str, *, lease_s: float, limit: int) -> Sequence[Lease]:
        return await self._send(lambda: self._store.claim(holder, lease_s=lease_s, limit=limit, schema=self._schema), heavy=False)

    async def renew(self, holder: str, leases: Mapping[JobId, Token], *, lease_s: float) -> Renewal:
        return await self._send(lambda: self._store.renew(holder, leases, lease_s=lease_s), heavy=False)

    async def release(self, leases: Mapping[JobId, Token]) -> None:
        await self._send(lambda: self._store.release(leases))

    async def save(self, changes: Sequence[Change]) -> frozenset[JobId]:
        heavy = any(change.job is not None for change in changes)
        # The simulated older version is this very program: what it writes is of its own schema.
        written = [
            replace(each, job=replace(each.job, schema=self._schema)) if each.job is not None else each for each in changes
        ]
        return await self._send(lambda: self._store.save(written), heavy=heavy)

    async def get(self, job_id: JobId) -> Job:
        return await self._send(lambda: self._store.get(job_id), heavy=False)

    async def find(self, query: JobQuery) -> Page:
        rows = self._store.rows.values()
        return await self._send(lambda: Page(jobs=tuple(row.job for row in rows)[: query.limit], cursor=None), heavy=False)

    async def holders(self) -> Sequence[str]:
        return await self._send(self._store.holders, heavy=False)

    async def evict(self, holder: str) -> int:
        return await self._send(lambda: self._store.evict(holder))

    async def watch(self, job_id: JobId | None = None) -> AsyncGenerator[None, None]:
        """Wake once and never again: correctness must not depend on wakes."""
        yield
        await asyncio.Event().wait()

    async def log_streams(self, job_id: JobId) -> Mapping[str, int]:
        logs = self._store.rows[job_id].logs
        return await self._send(lambda: {name: len(log) for name, log in logs.items()}, heavy=False)

    async def read_log(self, job_id: JobId, stream: str, *, offset: int = 0, limit: int = 1 << 20) -> bytes:
        logs = self._store.rows[job_id].logs
        return await self._send(lambda: bytes(logs.get(stream, b"")[offset : offset + limit]), heavy=False)

    async def _send(self, act: Callable[[], T], *, heavy: bool = True) -> T:
        def there() -> T:
            if self._line.world.now < self._line.world.store_down_until:
                raise StoreUnavailable("the store is down")
            return act()

        return await self._line.send(there, StoreUnavailable, most_s=0.02, heavy=heavy)


class SimDriver:
    """``ports.Driver``: refuses, loses replies, lists late, and knows a listing that is cut short."""

    def __init__(self, line: Line, name: str = "sim") -> None:
        self._line, self._world, self.name = line, line.world, name
        profile, lag_s = line.world.profile, line.world.faults.lag_s
        borrowed = profile.borrowed or name == "lab"
        choosy = profile.market and not borrowed
        self.abilities = Abilities(borrowed=borrowed, spot=choosy, records=choosy, visibility_lag_s=lag_s)

    async def offers(self, wanted: Resources, *, spot: bool = False) -> Sequence[Offer]:
        world = self._world
        if self.abilities.borrowed:
            return await self._answer(lambda: [self._offer("own", "0")])
        if world.deal("no-offers", world.faults.empty):
            return await self._answer(list)
        kind, price = ("s", "0.02") if spot else ("o", "0.04")
        numbers = range(1, 5 if world.profile.market else 3)
        return await self._answer(lambda: [self._offer(f"{kind}{number}", price, spot=spot) for number in numbers])

    def _offer(self, name: str, price: str, *, spot: bool = False) -> Offer:
        disk = Decimal("0.002") if spot else Decimal(0)
        return Offer(id=name, driver=self.name, machine=f"m-{name}", price_per_hour=Decimal(price), disk_per_hour=disk, spot=spot)

    async def create(self, offer: Offer, spec: Spec, label: str) -> Instance:
        if self.abilities.borrowed:
            return Instance(id="own", label=label, borrowed=True)
        self._refuse()
        if self._world.deal("offer-gone", self._world.faults.refusals / 2):
            raise Permanent("the offer is gone")
        if self._world.deal("create-waits", self._world.faults.waits):
            await asyncio.sleep(self._world.dice.uniform(0, 8))
        if spec.left_s() < 0:
            raise Transient("the turn to rent came too late: not sent")
        late = self._world.deal("create-late", self._world.faults.late_creates)
        asked_at = self._world.now

        def rent() -> Instance:
            if not self._world.profile.nets and self._world.now > asked_at + _PROMPT_S:
                raise Ambiguous("the request never arrived")
            return self._world.provider.create(label, offer)

        most_s = 60.0 if late else 1.5
        self._world.provider.busy_until = max(self._world.provider.busy_until, asked_at + most_s)
        return await self._line.send(rent, Ambiguous, Ambiguous, most_s=most_s)

    async def instances(self, prefix: str) -> Sequence[Instance]:
        if self.abilities.borrowed:
            return []
        slow = self._world.deal("listing-late", self._world.faults.slow_listing)
        found = await self._answer(lambda: self._world.provider.listing(prefix), most_s=20.0 if slow else 1.0)
        if found and self._world.deal("listing-partial", self._world.faults.partial_listing):
            return self._cut_short(found[: self._world.dice.randrange(len(found))])
        return found

    def _cut_short(self, found: Sequence[Instance]) -> Sequence[Instance]:
        """A page is missing: the contract says complete, or raise."""
        raise Transient(f"the listing broke off after {len(found)} instances")

    async def destroy(self, instance: Instance) -> None:
        self._refuse()
        await self._line.send(lambda: self._world.provider.destroy(instance.id), Transient, most_s=2.0)

    async def recorded(self, offer: Offer, label: str, since: datetime) -> Sequence[Instance]:
        return await self._answer(lambda: self._world.provider.recorded(label))

    async def bid(self, instance: Instance, price: Decimal) -> None:
        self._refuse()
        await self._line.send(lambda: self._world.provider.take_bid(instance.id, price), Transient, most_s=2.0)

    async def connect(self, instance: Instance) -> Any:
        raise NotImplementedError("simulated hosts are handed out by SimShop")

    async def check(self) -> str:
        return "simulated"

    async def close(self) -> None:
        """Nothing is open."""

    async def _answer(self, act: Callable[[], T], *, most_s: float = 0.5) -> T:
        self._refuse()
        return await self._line.send(act, Transient, most_s=most_s, heavy=False)

    def _refuse(self) -> None:
        if self._world.deal("provider-refuses", self._world.faults.refusals):
            raise Transient("the provider is down", retry_after_s=self._world.dice.choice((None, 2.0)))


class SimObjects:
    """``ports.Objects``: what arrives, and what lies there, may be something else; whoever reads it finds out."""

    def __init__(self, line: Line) -> None:
        self._line, self._bucket = line, line.world.bucket

    async def put(self, key: str, path: Path, *, sha256: str, progress: Progress | None = None) -> StoredObject:
        data = path.read_bytes()  # noqa: ASYNC240 - there are no threads in this world
        return await self._send(lambda: self._bucket.put(key, data, sha256))

    async def get(self, key: str, path: Path, *, sha256: str, progress: Progress | None = None) -> None:
        data = await self._send(lambda: self._bucket.get(key, sha256), heavy=False)
        path.write_bytes(data)  # noqa: ASYNC240 - likewise

    async def head(self, key: str) -> StoredObject | None:
        return await self._send(lambda: self._bucket.head(key), heavy=False)

    async def verify(self, key: str, *, size: int, sha256: str) -> None:
        await self._send(lambda: self._bucket.verify(key, size, sha256), heavy=False)

    async def list(self, prefix: str) -> AsyncIterator[StoredObject]:
        for each in await self._send(lambda: self._bucket.list(prefix), heavy=False):
            yield each

    async def delete(self, key: str) -> None:
        await self._send(lambda: self._bucket.delete(key))

    async def presign(self, key: str, *, expires_s: int) -> str:
        raise NotImplementedError("nobody downloads here")

    async def check(self) -> str:
        return "simulated"

    async def _send(self, act: Callable[[], T], *, heavy: bool = True) -> T:
        def there() -> T:
            if self._line.world.now < self._bucket.down_until:
                raise ObjectsUnavailable("the object store is down")
            return act()

        return await self._line.send(there, ObjectsUnavailable, most_s=0.2, heavy=heavy)
