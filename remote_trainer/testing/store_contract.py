"""What every store keeps to, as a pytest suite: subclass ``StoreContract`` and give it a ``new_url`` fixture.

    class TestMine(StoreContract):
        @pytest.fixture
        def new_url(self, tmp_path): return lambda: f"sqlite:///{tmp_path}/{secrets.token_hex(4)}.db"

Rules for editing: only what ports.Store promises; each docstring is one sentence of it. Waiting is for an event, with a bound that
only a hang reaches; a lease that has to run out is a short one, and asked for until it has.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from remote_trainer.errors import InvariantBroken
from remote_trainer.model import SCHEMA, JobId, Phase, Token
from remote_trainer.ports import Change, JobQuery, Store
from remote_trainer.testing import store_machine
from remote_trainer.testing.store_contract_jobs import (
    AT,
    LOG,
    NEVER,
    Connect,
    JobsAndLeases,
    NewUrl,
    log,
    loss,
    messages,
    note,
    submit_all,
    submitted_and_claimed,
)
from remote_trainer.testing.store_contract_money import Accounts
from remote_trainer.testing.store_peer import make_job, one_write, peer


class StoreContract(JobsAndLeases, Accounts):
    """The suite."""

    #: How many random stories are played against the model.
    stories = 20

    # ---- saving

    async def test_a_save_writes_everything(self, store: Store, connect: Connect) -> None:
        """Document, events, logs and metrics of a change are there for everybody once it is saved."""
        lease = await submitted_and_claimed(store)
        job = replace(lease.job, phase=Phase.EXECUTING, note="ünderway", since=AT)
        change = Change(
            job_id=job.id,
            token=lease.token,
            job=job,
            events=(note("a"), note("b")),
            logs=(log(0, b"\x00\xff\r\n"),),
            metrics=(loss(0.5),),
        )
        assert await store.save([change]) == frozenset()
        other = connect()
        assert await other.get(job.id) == job
        assert [replace(event, seq=0) for event in await other.events(job.id)] == [note("a"), note("b")]
        assert await other.read_log(job.id, LOG) == b"\x00\xff\r\n"
        assert [metric for _, metric in await other.metrics(job.id)] == [loss(0.5)]

    async def test_a_stale_save_changes_nothing(self, store: Store, connect: Connect) -> None:
        """Of a change under an old token nothing is written: no document, event, log or metric."""
        stale = await submitted_and_claimed(store)
        await store.evict("worker")
        (lease,) = await connect().claim("other", lease_s=60, limit=1)
        for token in (stale.token, Token(lease.token + 1)):
            change = Change(
                job_id=stale.job.id,
                token=token,
                job=replace(stale.job, note="ghost"),
                events=(note("x"),),
                logs=(log(0, b"x"),),
                metrics=(loss(1),),
            )
            assert await store.save([change]) == {stale.job.id}
        assert await store.get(stale.job.id) == lease.job
        assert not await store.events(stale.job.id)
        assert not await store.log_streams(stale.job.id)
        assert not await store.metrics(stale.job.id)

    async def test_stale_changes_do_not_stop_others(self, store: Store) -> None:
        """In a mixed batch the stale changes, and those of unknown jobs, are left out and named; the others are written."""
        ids = await submit_all(store, 3)
        leases = await store.claim("worker", lease_s=60, limit=3)
        await store.release({leases[1].job.id: leases[1].token})
        changes = [one_write(lease.job.id, lease.token, 0) for lease in leases]
        stale = await store.save([*changes, one_write(JobId("nobody"), Token(1), 0)])
        assert stale == {ids[1], "nobody"}
        assert [await messages(store, job_id) for job_id in ids] == [["0"], [], ["0"]]
        assert [await store.log_streams(job_id) for job_id in ids] == [{LOG: 8}, {}, {LOG: 8}]

    async def test_changes_of_one_job_are_written_in_order(self, store: Store) -> None:
        """Several changes of a job in one batch follow each other."""
        lease = await submitted_and_claimed(store)
        changes = [one_write(lease.job.id, lease.token, number) for number in range(3)]
        changes.append(Change(job_id=lease.job.id, token=lease.token, job=replace(lease.job, note="last")))
        assert not await store.save(changes)
        assert await messages(store, lease.job.id) == ["0", "1", "2"]
        assert await store.read_log(lease.job.id, LOG) == b"0000000\n0000001\n0000002\n"
        assert (await store.get(lease.job.id)).note == "last"

    async def test_an_empty_save(self, store: Store) -> None:
        """Nothing to save is nothing stale."""
        assert await store.save([]) == frozenset()

    async def test_a_change_with_another_jobs_document(self, store: Store) -> None:
        """A change whose document is another job's is refused."""
        lease = await submitted_and_claimed(store)
        with pytest.raises(InvariantBroken, match="other"):
            await store.save([Change(job_id=lease.job.id, token=lease.token, job=make_job("other"))])

    async def test_a_repeated_or_overlapping_chunk_adds_only_what_is_new(self, store: Store) -> None:
        """A log chunk that begins before the end is cut to its new part."""
        lease = await submitted_and_claimed(store)
        for chunk in (log(0, b"abc"), log(0, b"abc"), log(1, b"bcde"), log(0, b"ab"), log(5, b""), log(5, b"f")):
            await store.save([Change(job_id=lease.job.id, token=lease.token, logs=(chunk,))])
        assert await store.read_log(lease.job.id, LOG) == b"abcdef"
        assert await store.log_streams(lease.job.id) == {LOG: 6}

    async def test_a_gap_in_a_log_is_refused(self, store: Store) -> None:
        """A log chunk that begins behind the end raises InvariantBroken, and its change is not written."""
        lease = await submitted_and_claimed(store)
        with pytest.raises(InvariantBroken, match="missing"):
            await store.save(
                [Change(job_id=lease.job.id, token=lease.token, events=(note("x"),), logs=(log(0, b"a"), log(2, b"c")))]
            )
        assert not await messages(store, lease.job.id)
        assert not await store.read_log(lease.job.id, LOG)

    # ---- records

    async def test_a_log_is_read_from_any_byte(self, store: Store) -> None:
        """Whatever the chunks were, a read returns exactly the bytes asked for, and nothing behind the end."""
        lease = await submitted_and_claimed(store)
        data = bytes(range(40))
        cuts = [0, 1, 2, 9, 10, 25, 40]
        for start, end in itertools.pairwise(cuts):
            await store.save(
                [
                    Change(
                        job_id=lease.job.id,
                        token=lease.token,
                        logs=(log(start, data[start:end]), log(start, data[start:end], "a1/x.1")),
                    )
                ]
            )
        for offset in (0, 1, 5, 9, 24, 39, 40, 99):
            for limit in (1, 3, 16, 100):
                assert await store.read_log(lease.job.id, LOG, offset=offset, limit=limit) == data[offset : offset + limit]
        assert await store.read_log(lease.job.id, "a9/none.1") == b""

    async def test_streams_are_in_order_of_their_first_write(self, store: Store) -> None:
        """The streams of a job are listed in order of first write, each with its size."""
        lease = await submitted_and_claimed(store)
        for stream, offset in (("a1/z.1", 0), ("a1/a.1", 0), ("a1/z.1", 2), ("a2/z.1", 0)):
            await store.save([Change(job_id=lease.job.id, token=lease.token, logs=(log(offset, b"xy", stream),))])
        assert list((await store.log_streams(lease.job.id)).items()) == [("a1/z.1", 4), ("a1/a.1", 2), ("a2/z.1", 2)]

    async def test_events_and_metrics_are_read_on(self, store: Store) -> None:
        """Events and metrics are numbered upwards within a job, and are read on behind the last number seen."""
        await submit_all(store, 2)
        leases = await store.claim("worker", lease_s=60, limit=2)
        for number in range(5):
            await store.save(
                [
                    Change(job_id=each.job.id, token=each.token, events=(note(f"{number}"),), metrics=(loss(number),))
                    for each in leases
                ]
            )
        for each in leases:
            first = await store.events(each.job.id, limit=2)
            rest = await store.events(each.job.id, after=first[-1].seq)
            assert [event.message for event in (*first, *rest)] == ["0", "1", "2", "3", "4"]
            assert sorted({event.seq for event in (*first, *rest)}) == [event.seq for event in (*first, *rest)]
            start = await store.metrics(each.job.id, limit=2)
            end = await store.metrics(each.job.id, after=start[-1][0])
            assert [metric.values["loss"] for _, metric in (*start, *end)] == [0, 1, 2, 3, 4]

    async def test_export_has_every_record(self, store: Store) -> None:
        """An export holds each job with its events, logs and metrics, newer documents included."""
        lease = await submitted_and_claimed(store)
        await store.save([replace(one_write(lease.job.id, lease.token, 0), metrics=(loss(1),))])
        await store.submit(replace(make_job("new"), schema=SCHEMA + 1))
        exported = [record async for record in store.export()]
        by_kind = {kind: [record for record in exported if record["kind"] == kind] for kind in ("job", "event", "log", "metric")}
        assert {kind: len(records) for kind, records in by_kind.items()} == {"job": 2, "event": 1, "log": 1, "metric": 1}
        assert {record["job"] for record in by_kind["job"]} == {"job000", "new"}
        assert base64.b64decode(by_kind["log"][0]["data"]) == b"0000000\n"
        assert by_kind["event"][0]["event"]["message"] == "0"
        assert by_kind["event"][0]["job"] == by_kind["metric"][0]["job"] == "job000"

    # ---- news

    async def test_a_watch_wakes_for_another_process(self, store: Store, url: str) -> None:
        """Who waits for any job is woken by what another process submits, and can read it then."""
        watch = store.watch()
        await anext(watch)
        async with asyncio.timeout(NEVER), peer(url, "submit", "news"):
            while not (await store.find(JobQuery())).jobs:
                await anext(watch)
        await watch.aclose()

    async def test_a_watch_misses_nothing(self, store: Store, url: str) -> None:
        """Who reads after each wake sees everything another process wrote, without asking in between."""
        lease = await submitted_and_claimed(store)
        async with asyncio.timeout(NEVER), peer(url, "save", lease.job.id, str(lease.token), "30"):
            async for _ in store.watch(lease.job.id):
                if (await store.log_streams(lease.job.id)).get(LOG) == 30 * 8:
                    break
        assert await messages(store, lease.job.id) == [str(number) for number in range(30)]

    async def test_own_writes_wake_too(self, store: Store) -> None:
        """Submits, cancels and releases of the same store object wake the waiting as others' do."""
        watch = store.watch()
        async with asyncio.timeout(NEVER):
            await anext(watch)
            lease = await submitted_and_claimed(store)
            await anext(watch)
            of_job = store.watch(lease.job.id)
            await anext(of_job)
            await store.save([one_write(lease.job.id, lease.token, 0)])
            await anext(of_job)
            await store.request_cancel(lease.job.id)
            await anext(watch)
            await store.release({lease.job.id: lease.token})
            await anext(watch)

    async def test_closing_the_store_ends_a_watch(self, store: Store) -> None:
        """A watch ends with its store."""
        waiting = asyncio.create_task(self._count(store.watch()))
        await asyncio.sleep(0)
        await store.close()
        async with asyncio.timeout(NEVER):
            await waiting

    async def _count(self, watch: AsyncIterator[None]) -> int:
        return len([None async for _ in watch])

    # ---- abuse

    async def test_a_killed_writer_loses_nothing_acknowledged(self, store: Store, url: str) -> None:
        """After `kill -9` of a writing process everything it was told is written is there, and each write is there whole."""
        lease = await submitted_and_claimed(store)
        async with peer(url, "save", lease.job.id, str(lease.token), "100000") as process:
            assert process.stdout is not None
            for _ in range(25):
                acknowledged = int(await process.stdout.readline())
            process.kill()
            rest, _ = await process.communicate()
        acknowledged = max([acknowledged, *(int(line) for line in rest.splitlines())])
        written = await messages(store, lease.job.id)
        assert written == [str(number) for number in range(len(written))]
        assert len(written) > acknowledged
        assert await store.log_streams(lease.job.id) == {LOG: len(written) * 8}
        assert await store.save([one_write(lease.job.id, lease.token, len(written))]) == frozenset()

    def test_random_stories(self, new_url: NewUrl) -> None:
        """Whatever is done in whatever order, the store does what the model of it does."""
        store_machine.check(new_url, stories=self.stories)
