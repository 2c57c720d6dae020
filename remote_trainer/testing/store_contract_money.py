"""The part of store_contract.py about the ledger of tenants' money.

Rules for editing: those of store_contract.py.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from decimal import Decimal

import pytest

from remote_trainer.errors import Conflict, InvariantBroken, Overdrawn
from remote_trainer.model import Entry, EntryKind, JobId, Phase, Token
from remote_trainer.ports import Change, Store
from remote_trainer.testing.store_contract_jobs import AT, NEVER, Connect, submitted_and_claimed
from remote_trainer.testing.store_peer import make_job, peer

RICH = "rich"


def entry(name: str, amount: str, kind: EntryKind = EntryKind.GRANT, *, tenant: str = RICH, job: str | None = None) -> Entry:
    """Return an entry of the ledger."""
    job_id = JobId(job) if job else None
    return Entry(id=name, tenant=tenant, kind=kind, amount=Decimal(amount), at=AT, job=job_id, note="wörd")


def reserve(job: str, amount: str) -> Entry:
    """Return what a submit sets aside."""
    return entry(f"reserve/{job}", f"-{amount}", EntryKind.RESERVE, job=job)


class Accounts:
    """Grants, reservations, what jobs' ends post; overdraft and repetition."""

    async def test_entries_are_posted_once(self, store: Store, connect: Connect) -> None:
        """What was posted is there for everybody, in order; a second entry of the same id, whatever it says, changes nothing."""
        first, second = entry("g1", "5.000001"), entry("g2", "-1.5")
        await store.ledger.post([first])
        await connect().ledger.post([second, second])
        await store.ledger.post([first, replace(second, amount=Decimal(99)), entry("g3", "7", tenant="other")])
        found = await store.ledger.entries(RICH)
        assert [replace(each, seq=0) for each in found] == [first, second]
        assert await connect().ledger.balance(RICH) == Decimal("3.500001")
        assert await store.ledger.balances() == {RICH: Decimal("3.500001"), "other": Decimal(7)}

    async def test_entries_are_read_on_and_by_job(self, store: Store) -> None:
        """Entries are numbered upwards within a tenant, are read on behind the last number seen, and by job."""
        for number in range(5):
            await store.ledger.post([entry(f"g{number}", "1", job=f"job{number % 2}"), entry(f"o{number}", "1", tenant="other")])
        first = await store.ledger.entries(RICH, limit=2)
        rest = await store.ledger.entries(RICH, after=first[-1].seq)
        assert [each.id for each in (*first, *rest)] == [f"g{number}" for number in range(5)]
        assert [each.id for each in await store.ledger.entries(RICH, job=JobId("job1"))] == ["g1", "g3"]
        assert await store.ledger.entries("nobody") == []

    async def test_a_charge_does_not_count(self, store: Store) -> None:
        """What the provider billed is told in the ledger, moves no balance, and makes no account."""
        await store.ledger.post([entry("c1", "3", EntryKind.CHARGE)])
        assert await store.ledger.balance(RICH) is None
        await store.ledger.post([entry("g1", "1")])
        assert await store.ledger.balance(RICH) == Decimal(1)
        assert len(await store.ledger.entries(RICH)) == 2

    async def test_a_submit_draws_on_the_account(self, store: Store) -> None:
        """A job that its tenant can pay is queued with its reservation; one that it cannot pay is not, and costs nothing."""
        await store.ledger.post([entry("g1", "5")])
        await store.submit(make_job("cheap", tenant=RICH), [reserve("cheap", "3")])
        assert await store.ledger.balance(RICH) == Decimal(2)
        with pytest.raises(Overdrawn, match=r"2\.00 .*3\.00 "):
            await store.submit(make_job("dear", tenant=RICH), [reserve("dear", "3")])
        await store.submit(make_job("last", tenant=RICH), [reserve("last", "2")])
        assert await store.ledger.balance(RICH) == Decimal(0)
        assert [each.id for each in await store.ledger.entries(RICH)] == ["g1", "reserve/cheap", "reserve/last"]
        assert {lease.job.id for lease in await store.claim("worker", lease_s=60, limit=9)} == {"cheap", "last"}

    async def test_a_submit_that_is_refused_draws_nothing(self, store: Store) -> None:
        """A name that is taken leaves the balance as it was."""
        await store.ledger.post([entry("g1", "5")])
        await store.submit(make_job("one", name="cats", tenant=RICH), [reserve("one", "1")])
        with pytest.raises(Conflict):
            await store.submit(make_job("two", name="cats", tenant=RICH), [reserve("two", "1")])
        with pytest.raises(Conflict):
            await store.submit(make_job("one", tenant=RICH), [reserve("one", "1")])
        assert await store.ledger.balance(RICH) == Decimal(4)

    async def test_submits_at_the_same_time_cannot_overdraw(self, store: Store, connect: Connect, url: str) -> None:
        """Of ten submits from several processes and connections, an account that pays for three lets three through."""
        await store.ledger.post([entry("g1", "3.5")])
        others = [connect() for _ in range(3)]

        async def one(number: int) -> bool:
            name = f"job{number}"
            try:
                await others[number % 3].submit(make_job(name, tenant=RICH), [reserve(name, "1")])
            except Overdrawn:
                return False
            return True

        async with asyncio.timeout(NEVER), peer(url, "draw", RICH, "1", "4") as process:
            here = await asyncio.gather(*(one(number) for number in range(6)))
            said, _ = await process.communicate()
        assert sum(here) + said.split().count(b"drawn") == 3
        assert await store.ledger.balance(RICH) == Decimal("0.5")
        assert len(await store.claim("worker", lease_s=60, limit=99)) == 3

    async def test_a_save_posts_its_entries_once(self, store: Store, connect: Connect) -> None:
        """Entries ride with the save that ends a job, however often it is repeated."""
        await store.ledger.post([entry("g1", "5")])
        await store.submit(make_job("job", tenant=RICH), [reserve("job", "4")])
        (lease,) = await store.claim("worker", lease_s=60, limit=1)
        settled = (
            entry("settle/job", "2.75", EntryKind.SETTLE, job="job"),
            entry("refund/job", "0.25", EntryKind.REFUND, job="job"),
        )
        change = Change(job_id=lease.job.id, token=lease.token, job=replace(lease.job, phase=Phase.FAILED), entries=settled)
        for _ in range(2):
            assert not await store.save([change])
        assert await connect().ledger.balance(RICH) == Decimal(4)
        kinds = [each.kind for each in await connect().ledger.entries(RICH, job=lease.job.id)]
        assert kinds == [EntryKind.RESERVE, EntryKind.SETTLE, EntryKind.REFUND]

    async def test_a_stale_save_posts_nothing(self, store: Store) -> None:
        """Entries are fenced as everything else that a save writes, and a gap in a log keeps them back too."""
        lease = await submitted_and_claimed(store)
        change = Change(job_id=lease.job.id, token=Token(lease.token + 1), entries=(entry("e1", "1"),))
        assert await store.save([change]) == {lease.job.id}
        assert await store.ledger.entries(RICH) == []

    async def test_an_amount_that_cannot_be_kept_is_refused(self, store: Store) -> None:
        """Nothing is rounded behind anybody's back."""
        with pytest.raises(InvariantBroken, match="millionths"):
            await store.ledger.post([entry("g1", "0.0000001")])

    async def test_export_has_the_ledger(self, store: Store) -> None:
        """Every tenant's entries are exported, charges included."""
        await store.ledger.post([entry("g1", "5"), entry("c1", "1", EntryKind.CHARGE, tenant="other")])
        exported = [record["entry"] async for record in store.export() if record["kind"] == "entry"]
        assert {(each["id"], each["tenant"], each["amount"]) for each in exported} == {("g1", RICH, "5"), ("c1", "other", "1")}
