"""What providers bill is written beside our own meter, once, and a difference is told."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import pytest

from remote_trainer.errors import Permanent, StoreUnavailable
from remote_trainer.model import Attempt, Instance, Job, JobId, Offer, Phase, Reason, Verdict
from remote_trainer.policy import Policy
from remote_trainer.ports import Abilities, Change, Charge
from remote_trainer.store.sqlite import SqliteStore
from remote_trainer.worker.audit import Audit
from remote_trainer.worker.shop import Shop
from tests.support.patience import PATIENCE_S
from tests.unit.life import a_job
from tests.unit.test_listing import START, Ticking

D = Decimal
HOUR = timedelta(hours=1)
OFFER = Offer(id="o1", driver="market", price_per_hour=D(1), disk_per_hour=D(1))


class Billing:
    """A driver that only bills."""

    name = "market"
    abilities = Abilities()

    def __init__(self) -> None:
        self.bill: list[Charge] = []
        self.asked: list[tuple[datetime, datetime]] = []
        self.refuses = False

    async def credit(self) -> Decimal:
        return D(100)

    async def charges(self, since: datetime, until: datetime) -> Sequence[Charge]:
        self.asked.append((since, until))
        if self.refuses:
            raise Permanent("the key may not read bills")
        return self.bill


class Office:
    """A store, a driver that bills, and auditors of several workers."""

    def __init__(self, store: SqliteStore) -> None:
        self.store, self.driver, self.clock = store, Billing(), Ticking()

    def auditor(self) -> Audit:
        nothing = cast(Any, None)
        parts: Mapping[str, Any] = {
            **dict.fromkeys(("writer", "objects", "find_secret"), nothing),
            "store": self.store,
            "clock": self.clock,
            "policy": Policy(),
            "make_driver": lambda name, options: self.driver,
        }
        shop = Shop(**parts, deployment="dep", cache_dir=Path("c"), spool_dir=Path("s"))
        shop.driver("market", {})
        return Audit(shop)

    async def ended(self, name: str, *, offer: Offer | None = OFFER, hours: int = 1) -> Job:
        """Have a job that ran for so long and ended now."""
        job = replace(a_job(), id=JobId(name), name=name, tenant="ada", created_at=START, driver="market")
        await self.store.submit(job)
        (lease,) = await self.store.claim("w", lease_s=60, limit=1)
        began = self.clock.now() - hours * HOUR
        attempt = Attempt(
            number=1,
            label=f"rt-dep-{name}-a1",
            started_at=began,
            offer=offer,
            requested_at=began,
            instance=Instance(id=f"i-{name}", label=f"rt-dep-{name}-a1"),
            ended_at=self.clock.now(),
            verdict=Verdict.SUCCEEDED,
            reason=Reason.COMPLETED,
        )
        done = replace(job, phase=Phase.DONE, attempts=(attempt,), finished_at=self.clock.now())
        await self.store.save([Change(job_id=job.id, token=lease.token, job=done)])
        return done

    def billed(self, name: str, amount: str, *, label: str | None = None) -> Charge:
        day = START.replace(hour=0)
        return Charge(instance=f"i-{name}", label=f"rt-dep-{name}-a1" if label is None else label, day=day, amount=D(amount))

    async def posted(self) -> list[tuple[str | None, Decimal]]:
        return [(entry.job, entry.amount) for entry in await self.store.ledger.entries("ada")]


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    store = SqliteStore(tmp_path / "jobs.db")
    await store.migrate()
    yield Office(store)
    await store.close()


async def test_what_is_billed_is_posted_once_by_however_many(office: Office) -> None:
    """Several workers that look at once post a charge once; the next look only what was added."""
    await office.ended("j1")
    office.driver.bill = [office.billed("j1", "0.40")]
    await asyncio.gather(*(office.auditor().look() for _ in range(4)))
    assert await office.posted() == [("j1", D("0.40"))]
    office.driver.bill = [office.billed("j1", "0.95")]
    await office.auditor().look()
    assert await office.posted() == [("j1", D("0.40")), ("j1", D("0.55"))]
    assert await office.store.ledger.balances() == {}


async def test_only_what_is_ours_is_posted(office: Office) -> None:
    """Strangers' machines, other installations' and unknown jobs' are left out; a machine without a label is known by its id."""
    await office.ended("j1")
    office.driver.bill = [
        office.billed("j1", "0.40", label=""),
        office.billed("other", "9", label=""),
        office.billed("j1", "9", label="somebody's"),
        office.billed("j1", "9", label="rt-abcdef-j1-a1"),
        office.billed("j9", "9"),
    ]
    await office.auditor().look()
    assert await office.posted() == [("j1", D("0.40"))]


async def test_a_bill_that_differs_rings_once_it_is_complete(office: Office) -> None:
    """A day after the end, and once."""
    done, audit = await office.ended("j1"), office.auditor()
    office.driver.bill = [office.billed("j1", "1.50")]
    await audit.look()
    assert not audit._shop.alarm._rung
    office.clock.time = START + 25 * HOUR
    await audit.look()
    assert ("charges", done.id) in audit._shop.alarm._rung
    audit._shop.alarm._rung.clear()
    office.clock.time += 2 * HOUR
    await audit.look()
    assert not audit._shop.alarm._rung


async def test_a_bill_that_agrees_rings_nothing(office: Office) -> None:
    """Nor does that of a job whose driver could not be asked."""
    await office.ended("j1")
    office.clock.time = START + 25 * HOUR
    office.driver.bill = [office.billed("j1", "0.95")]
    agreed, unasked = office.auditor(), office.auditor()
    await agreed.look()
    office.driver.refuses = True
    await unasked.look()
    assert not agreed._shop.alarm._rung and not unasked._shop.alarm._rung


async def test_nobody_is_asked_for_what_cost_nothing(office: Office) -> None:
    """Jobs on borrowed machines, and those of long ago, need no bill."""
    await office.ended("free", offer=replace(OFFER, price_per_hour=D(0)))
    await office.ended("old")
    office.clock.time = START + timedelta(days=9)
    await office.auditor().look()
    assert office.driver.asked == []


async def test_a_store_that_is_down_costs_one_look(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one is an hour later."""
    looks: list[datetime] = []
    enough = asyncio.Event()
    audit = office.auditor()

    async def look() -> None:
        looks.append(office.clock.now())
        if len(looks) == 3:
            enough.set()
        raise StoreUnavailable("down")

    monkeypatch.setattr(audit, "look", look)
    running = asyncio.create_task(audit.run())
    async with asyncio.timeout(PATIENCE_S):
        await enough.wait()
    running.cancel()
    assert [later - earlier for earlier, later in itertools.pairwise(looks)] == [HOUR, HOUR]
