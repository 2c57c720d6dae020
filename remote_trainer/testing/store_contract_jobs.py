"""The first half of store_contract.py: the store itself, its jobs and their leases; fixtures and helpers for the whole suite.

Rules for editing: those of store_contract.py.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from remote_trainer.errors import Conflict, DocumentTooNew, NotFound, StoreUnavailable
from remote_trainer.model import SCHEMA, Event, JobId, Lease, LogChunk, Metric, Phase, Token
from remote_trainer.ports import Change, JobQuery, Renewal, Store
from remote_trainer.store.open import open_store
from remote_trainer.testing.store_peer import make_job, one_write, peer

AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
NEVER = 300.0  # seconds: only a hang takes so long
LOG = "a1/say.1"

NewUrl = Callable[[], str]
Connect = Callable[[], Store]


def note(text: str) -> Event:
    """Return an event."""
    return Event(at=AT, kind="note", message=text, data={"n": 1})


def loss(value: float) -> Metric:
    """Return a metric."""
    return Metric(at=AT, stream=LOG, values={"loss": value})


def log(offset: int, data: bytes, stream: str = LOG) -> LogChunk:
    """Return a log chunk."""
    return LogChunk(stream=stream, offset=offset, data=data)


async def submit_all(store: Store, count: int) -> list[JobId]:
    """Submit jobs, the oldest first; returns their ids."""
    jobs = [make_job(f"job{number:03d}", age=count - number) for number in range(count)]
    for job in jobs:
        await store.submit(job)
    return [job.id for job in jobs]


async def submitted_and_claimed(store: Store, job_id: str = "job000", *, lease_s: float = 60) -> Lease:
    """Submit a job and claim it."""
    await store.submit(make_job(job_id))
    (lease,) = await store.claim("worker", lease_s=lease_s, limit=1)
    return lease


async def claim_when_free(store: Store, holder: str) -> Sequence[Lease]:
    """Ask until there is something to claim."""
    async with asyncio.timeout(NEVER):
        while not (leases := await store.claim(holder, lease_s=60, limit=10)):  # noqa: ASYNC110 - the store's clock rings no bell
            await asyncio.sleep(0.02)
    return leases


async def messages(store: Store, job_id: JobId) -> list[str]:
    """Return what a job's events say."""
    return [event.message for event in await store.events(job_id)]


class JobsAndLeases:
    """What a store does with jobs and leases."""

    @pytest.fixture
    def new_url(self) -> NewUrl:
        """Return what makes the URL of another empty store."""
        raise NotImplementedError

    @pytest.fixture
    def url(self, new_url: NewUrl) -> str:
        """Return the URL of the store of the test."""
        return new_url()

    @pytest.fixture
    async def connect(self, url: str) -> AsyncIterator[Connect]:
        """Make further connections to the store of the test."""
        opened: list[Store] = []

        def connect() -> Store:
            opened.append(open_store(url))
            return opened[-1]

        yield connect
        for store in opened:
            await store.close()

    @pytest.fixture
    async def store(self, connect: Connect) -> Store:
        """Return the empty store of the test."""
        store = connect()
        await store.migrate()
        return store

    # ---- the store itself

    async def test_migrating_again_changes_nothing(self, store: Store) -> None:
        """Migrating is idempotent, and says what the store is."""
        await store.submit(make_job("one"))
        assert "layout" in await store.migrate()
        assert (await store.get(JobId("one"))).name == "one"

    async def test_deployment_is_made_once(self, store: Store, connect: Connect) -> None:
        """The id of the store is six lower-case letters or digits, the same for everybody."""
        deployment = await store.deployment()
        assert len(deployment) == 6 and deployment.isalnum() and deployment.lower() == deployment
        assert await connect().deployment() == deployment

    async def test_closing_twice_and_using_afterwards(self, store: Store) -> None:
        """Closing is idempotent; a closed store says that it is."""
        await store.close()
        await store.close()
        with pytest.raises(StoreUnavailable, match="closed"):
            await store.holders()

    async def test_closing_during_use(self, store: Store) -> None:
        """What runs while the store is closed is done, or raises StoreUnavailable."""
        lease = await submitted_and_claimed(store)
        saves = [asyncio.create_task(store.save([one_write(lease.job.id, lease.token, 0)])) for _ in range(5)]
        await asyncio.sleep(0)
        await store.close()
        for result in await asyncio.gather(*saves, return_exceptions=True):
            assert result == frozenset() or isinstance(result, StoreUnavailable)

    # ---- jobs

    async def test_a_job_is_returned_as_it_was_submitted(self, store: Store, connect: Connect) -> None:
        """Every field of a job survives."""
        job = make_job("one", priority=3)
        await store.submit(job)
        assert await connect().get(job.id) == job

    async def test_an_absent_job(self, store: Store) -> None:
        """What is not there is NotFound; its records are empty."""
        for verb in (store.get, store.request_cancel):
            with pytest.raises(NotFound, match="nobody"):
                await verb(JobId("nobody"))
        assert not await store.events(JobId("nobody"))
        assert not await store.log_streams(JobId("nobody"))
        assert await store.read_log(JobId("nobody"), LOG) == b""

    async def test_an_id_is_taken_once(self, store: Store) -> None:
        """A second job with the same id is a Conflict."""
        await store.submit(make_job("one"))
        with pytest.raises(Conflict, match="one"):
            await store.submit(make_job("one", name="other"))

    async def test_a_name_is_taken_until_its_job_has_ended(self, store: Store) -> None:
        """An unfinished job of a tenant has its name alone; another tenant, or a later job, may have it too."""
        await store.submit(make_job("one", name="cat"))
        with pytest.raises(Conflict, match="cat"):
            await store.submit(make_job("two", name="cat"))
        await store.submit(make_job("three", name="cat", tenant="other"))
        leases = await store.claim("worker", lease_s=60, limit=9)
        (lease,) = (lease for lease in leases if lease.job.id == "one")
        ended = replace(lease.job, phase=Phase.DONE, finished_at=AT)
        await store.save([Change(job_id=lease.job.id, token=lease.token, job=ended)])
        await store.submit(make_job("two", name="cat"))

    async def test_pages_show_every_job_once_newest_first(self, store: Store) -> None:
        """Pages follow each other without repeats or gaps; the last has no cursor."""
        ids = await submit_all(store, 7)
        found: list[JobId] = []
        cursor: str | None = None
        while True:
            page = await store.find(JobQuery(limit=3, after=cursor))
            found += [job.id for job in page.jobs]
            if (cursor := page.cursor) is None:
                break
        assert found == ids[::-1]

    async def test_filters(self, store: Store) -> None:
        """A query narrows by phase, tenant and name."""
        for job in (make_job("one", tenant="red"), make_job("two", tenant="blue"), make_job("three", tenant="blue")):
            await store.submit(job)

        async def found(query: JobQuery) -> set[str]:
            return {job.id for job in (await store.find(query)).jobs}

        assert await found(JobQuery(tenant="blue")) == {"two", "three"}
        assert await found(JobQuery(name="one")) == {"one"}
        assert await found(JobQuery(phases=frozenset({Phase.QUEUED}), tenant="red")) == {"one"}
        assert await found(JobQuery(phases=frozenset({Phase.DONE, Phase.FAILED}))) == set()

    async def test_a_cancel_is_noted_once(self, store: Store) -> None:
        """The wish to cancel keeps its first time, and no save undoes it."""
        lease = await submitted_and_claimed(store)
        await store.request_cancel(lease.job.id)
        wished = (await store.get(lease.job.id)).cancel_requested_at
        assert wished is not None and abs(wished - datetime.now(UTC)).total_seconds() < NEVER
        await store.request_cancel(lease.job.id)
        await store.save([Change(job_id=lease.job.id, token=lease.token, job=replace(lease.job, note="working"))])
        job = await store.get(lease.job.id)
        assert (job.cancel_requested_at, job.note) == (wished, "working")

    async def test_an_ended_job_cannot_be_cancelled(self, store: Store) -> None:
        """Cancelling what has ended is a Conflict."""
        lease = await submitted_and_claimed(store)
        await store.save([Change(job_id=lease.job.id, token=lease.token, job=replace(lease.job, phase=Phase.FAILED))])
        with pytest.raises(Conflict, match="ended"):
            await store.request_cancel(lease.job.id)

    async def test_a_newer_document_is_left_alone(self, store: Store) -> None:
        """A document of a newer version cannot be read, is not handed out, and does not stop others."""
        await store.submit(replace(make_job("new", priority=9), schema=SCHEMA + 1))
        await store.submit(make_job("old"))
        with pytest.raises(DocumentTooNew, match="new"):
            await store.get(JobId("new"))
        assert [lease.job.id for lease in await store.claim("worker", lease_s=60, limit=9)] == ["old"]

    async def test_a_document_with_unknown_values_does_not_stop_others(self, store: Store) -> None:
        """A word that only a newer version knows makes one job unreadable, not the queue."""
        with warnings.catch_warnings(action="ignore"):
            await store.submit(replace(make_job("odd", priority=9), reason="reason_of_tomorrow"))  # type: ignore[arg-type]
        await store.submit(make_job("plain"))
        with pytest.raises(DocumentTooNew, match="reason"):
            await store.get(JobId("odd"))
        assert [lease.job.id for lease in await store.claim("worker", lease_s=60, limit=9)] == ["plain"]

    # ---- leases

    async def test_the_queue_is_by_priority_then_age(self, store: Store) -> None:
        """A claim takes the highest priority first, the oldest among equals, and no more than asked for."""
        for job in (make_job("young"), make_job("old", age=9), make_job("urgent", priority=1)):
            await store.submit(job)
        first = await store.claim("worker", lease_s=60, limit=2)
        second = await store.claim("worker", lease_s=60, limit=2)
        assert [lease.job.id for lease in (*first, *second)] == ["urgent", "old", "young"]
        assert {lease.holder for lease in first} == {"worker"}

    async def test_tokens_grow_by_one_with_each_claim(self, store: Store) -> None:
        """The fencing tokens of a job begin at 1 and only grow."""
        lease = await submitted_and_claimed(store)
        tokens = [lease.token]
        for _ in range(3):
            await store.release({lease.job.id: tokens[-1]})
            tokens += [lease.token for lease in await store.claim("worker", lease_s=60, limit=1)]
        assert tokens == [1, 2, 3, 4]

    async def test_an_ended_job_is_not_handed_out(self, store: Store) -> None:
        """A job that has ended is never claimed again."""
        lease = await submitted_and_claimed(store)
        await store.save([Change(job_id=lease.job.id, token=lease.token, job=replace(lease.job, phase=Phase.CANCELLED))])
        await store.release({lease.job.id: lease.token})
        assert not await store.claim("worker", lease_s=60, limit=1)

    async def test_one_winner_among_connections(self, store: Store, connect: Connect) -> None:
        """However many connections claim at once, each job is handed out once."""
        ids = await submit_all(store, 24)
        stores = [connect() for _ in range(4)]
        claimed = await asyncio.gather(*(stores[n % 4].claim(f"w{n}", lease_s=60, limit=5) for n in range(12)))
        claimed += [await store.claim("last", lease_s=60, limit=24)]  # what nobody got because others were in the way
        assert sorted(lease.job.id for leases in claimed for lease in leases) == ids
        assert {lease.token for leases in claimed for lease in leases} == {1}

    async def test_one_winner_among_processes(self, store: Store, url: str) -> None:
        """However many processes claim at once, each job is handed out once."""
        ids = await submit_all(store, 40)

        async def claims(holder: str) -> list[str]:
            async with peer(url, "claim_all", holder) as process:
                said, _ = await process.communicate()
                assert process.returncode == 0
                return said.decode().splitlines()

        said = await asyncio.gather(*(claims(holder) for holder in "abc"))
        assert sorted(line for lines in said for line in lines) == [f"{job_id} 1" for job_id in ids]

    async def test_a_lease_runs_out(self, store: Store, connect: Connect) -> None:
        """A lease that is not renewed in time is somebody else's to take, and its holder's next renewal says so."""
        lease = await submitted_and_claimed(store)
        assert not await connect().claim("other", lease_s=60, limit=1)
        await store.renew("worker", {lease.job.id: lease.token}, lease_s=0.2)
        (taken,) = await claim_when_free(connect(), "other")
        assert (taken.job.id, taken.token) == (lease.job.id, 2)
        renewal = await store.renew("worker", {lease.job.id: lease.token}, lease_s=60)
        assert not renewal.held

    async def test_a_renewed_lease_does_not_run_out(self, store: Store) -> None:
        """A renewal counts from now."""
        lease = await submitted_and_claimed(store, lease_s=0.2)
        await store.renew("worker", {lease.job.id: lease.token}, lease_s=60)
        await store.submit(make_job("clock"))
        await store.claim("other", lease_s=0.3, limit=1)  # runs out later than the first lease would have
        leases = await claim_when_free(store, "other")
        assert [each.job.id for each in leases] == ["clock"]

    async def test_a_lease_that_nobody_took_is_renewed(self, store: Store) -> None:
        """A lease that ran out is still its holder's as long as nobody took it."""
        lease = await submitted_and_claimed(store)
        assert await store.evict("worker") == 1
        renewal = await store.renew("worker", {lease.job.id: lease.token}, lease_s=60)
        assert renewal.held == {lease.job.id}
        assert not await store.claim("other", lease_s=60, limit=1)

    async def test_a_renewal_says_what_is_held_and_what_is_to_be_cancelled(self, store: Store) -> None:
        """Of many leases renewed at once, those held and those with a cancel wish are told."""
        ids = await submit_all(store, 4)
        leases = {lease.job.id: lease.token for lease in await store.claim("worker", lease_s=60, limit=4)}
        await store.release({ids[0]: leases[ids[0]]})
        await store.request_cancel(ids[1])
        asked = {**leases, ids[2]: Token(leases[ids[2]] + 1), JobId("nobody"): Token(1)}
        renewal = await store.renew("worker", asked, lease_s=60)
        assert renewal == Renewal(held=frozenset({ids[1], ids[3]}), cancelling=frozenset({ids[1]}))
        assert not (await store.renew("other", leases, lease_s=60)).held

    async def test_a_released_job_is_free_at_once(self, store: Store) -> None:
        """Giving back is idempotent, ignores stale leases, and ends the right to save."""
        lease = await submitted_and_claimed(store)
        await store.release({lease.job.id: Token(lease.token + 1), JobId("nobody"): Token(1)})
        assert not await store.claim("other", lease_s=60, limit=1)
        for _ in range(2):
            await store.release({lease.job.id: lease.token})
        assert await store.save([one_write(lease.job.id, lease.token, 0)]) == {lease.job.id}
        assert len(await store.claim("other", lease_s=60, limit=1)) == 1
        await store.release({lease.job.id: lease.token})
        assert await store.holders() == ["other"]

    async def test_the_leases_of_a_dead_holder_are_evicted(self, store: Store) -> None:
        """Holders are those whose lease runs; evicting one frees all its jobs and nobody else's."""
        await submit_all(store, 3)
        await store.claim("dead", lease_s=60, limit=2)
        await store.claim("alive", lease_s=60, limit=1)
        assert sorted(await store.holders()) == ["alive", "dead"]
        assert await store.evict("dead") == 2
        assert await store.evict("dead") == 0
        assert await store.holders() == ["alive"]
        assert {lease.token for lease in await store.claim("next", lease_s=60, limit=9)} == {2}
