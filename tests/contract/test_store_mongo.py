"""The shared store keeps the store's contract."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from decimal import Decimal
from urllib.parse import urlsplit, urlunsplit

import pytest

from remote_trainer.document import to_json
from remote_trainer.errors import ConfigError, DocumentTooNew, InvariantBroken, StoreUnavailable
from remote_trainer.model import JobId
from remote_trainer.ports import Change, JobQuery, Store
from remote_trainer.testing.store_contract import StoreContract
from remote_trainer.testing.store_contract_jobs import (
    LOG,
    NEVER,
    Connect,
    NewUrl,
    log,
    messages,
    note,
    submitted_and_claimed,
)
from remote_trainer.testing.store_contract_money import RICH, entry, reserve
from remote_trainer.testing.store_peer import make_job, one_write, peer
from tests.support.mongo import MongoServer

pytest.importorskip("pymongo")

from pymongo import MongoClient
from pymongo.errors import WriteError

from remote_trainer.store.mongo import MongoStore
from remote_trainer.store.mongo_layout import NEVER as NEVER_CLAIMED
from remote_trainer.store.mongo_layout import Document


def database_of(uri: str, name: str) -> str:
    """Return the server's URL with a database in it."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(path=f"/{name}"))


class TestMongoStore(StoreContract):
    """A database of a server that speaks MongoDB's protocol."""

    stories = 10

    @pytest.fixture
    def new_url(self, mongo_uri: str) -> Iterator[NewUrl]:
        names: list[str] = []

        def new_url() -> str:
            names.append(f"rt_{secrets.token_hex(6)}")
            return database_of(mongo_uri, names[-1])

        yield new_url
        with MongoClient[Document](mongo_uri) as client:
            for name in names:
                client.drop_database(name)

    async def test_two_savers_with_one_token(self, store: Store, connect: Connect) -> None:
        """Saves that race under the same token follow each other: each is written once and whole."""
        lease = await submitted_and_claimed(store)
        stores = [store, connect()]
        changes = [
            Change(job_id=lease.job.id, token=lease.token, events=(note(str(number)),), logs=(log(0, b"x", f"a1/s.{number}"),))
            for number in range(12)
        ]
        await asyncio.gather(*(stores[number % 2].save([change]) for number, change in enumerate(changes)))
        assert sorted(int(text) for text in await messages(store, lease.job.id)) == list(range(12))
        assert set((await store.log_streams(lease.job.id)).values()) == {1}

    async def test_a_save_that_is_too_large(self, store: Store) -> None:
        """A change beyond the size of a document is refused with what to do, and nothing of it is written."""
        lease = await submitted_and_claimed(store)
        with pytest.raises(InvariantBroken, match="save in parts"):
            await store.save([Change(job_id=lease.job.id, token=lease.token, logs=(log(0, bytes(17 << 20)),))])
        assert not await store.log_streams(lease.job.id)

    async def test_an_unprepared_database(self, connect: Connect) -> None:
        """Using what was never made says how to make it."""
        with pytest.raises(ConfigError, match="db migrate"):
            await connect().holders()

    async def test_a_newer_layout_is_left_alone(self, store: Store, connect: Connect) -> None:
        """A database that a newer version has migrated is not touched."""
        assert isinstance(store, MongoStore)
        await store._database["meta"].update_one({"_id": "layout"}, {"$set": {"version": 99}})
        for verb in (connect().migrate, connect().holders):
            with pytest.raises(DocumentTooNew, match="newer"):
                await verb()

    async def test_documents_are_checked(self, store: Store) -> None:
        """What breaks the schema of a collection is refused by the server."""
        assert isinstance(store, MongoStore)
        with pytest.raises(WriteError, match="validation"):
            await store._jobs.insert_one({"_id": "odd"})


class TestServerFaults:
    """What a server does to us: it dies, comes back, breaks connections, lacks change streams."""

    @pytest.fixture
    def url(self, own_mongo: MongoServer) -> str:
        return database_of(own_mongo.uri, "jobs")

    @pytest.fixture
    async def store(self, url: str) -> AsyncIterator[MongoStore]:
        store = MongoStore(url)
        await store.migrate()
        yield store
        await store.close()

    async def fail(self, store: MongoStore, mode: object, **how: object) -> None:
        """Let the server fail requests."""
        await store._client.admin.command({"configureFailPoint": "failCommand", "mode": mode, "data": how})

    @pytest.mark.fault("store-down")
    async def test_a_killed_server_has_what_it_acknowledged(self, own_mongo: MongoServer, store: MongoStore, url: str) -> None:
        """After `kill -9` of the server every acknowledged save is there, each one whole."""
        lease = await submitted_and_claimed(store)
        async with peer(url, "save", lease.job.id, str(lease.token), "100000") as process:
            assert process.stdout is not None
            for _ in range(40):
                acknowledged = int(await process.stdout.readline())
            own_mongo.kill()
            rest, _ = await process.communicate()
        acknowledged = max([acknowledged, *(int(line) for line in rest.splitlines())])
        await asyncio.to_thread(own_mongo.start)
        written = await messages(store, lease.job.id)
        assert len(written) > acknowledged
        assert written == [str(number) for number in range(len(written))]
        assert await store.log_streams(lease.job.id) == {LOG: len(written) * 8}
        assert len(await store.read_log(lease.job.id, LOG)) == len(written) * 8

    @pytest.mark.fault("store-down")
    async def test_a_server_that_is_down_and_comes_back(self, own_mongo: MongoServer, store: MongoStore) -> None:
        """While the server is down each verb is StoreUnavailable; afterwards everything works, and a watch that waited wakes."""
        lease = await submitted_and_claimed(store)
        other = MongoStore(database_of(own_mongo.uri, "jobs"))
        watch = other.watch()
        await anext(watch)
        own_mongo.kill()
        for work in (store.get(lease.job.id), store.renew("worker", {lease.job.id: lease.token}, lease_s=60)):
            with pytest.raises(StoreUnavailable, match="cannot be reached"):
                await work
        with pytest.raises(StoreUnavailable):
            await store.save([one_write(lease.job.id, lease.token, 0)])
        await asyncio.to_thread(own_mongo.start)
        assert not await store.save([one_write(lease.job.id, lease.token, 0)])
        async with asyncio.timeout(NEVER):
            while await messages(other, lease.job.id) != ["0"]:
                await anext(watch)
        await other.close()

    @pytest.mark.fault("store-down")
    async def test_a_reply_that_is_lost(self, store: MongoStore) -> None:
        """A write whose connection breaks is sent again by the client and takes effect once."""
        lease = await submitted_and_claimed(store)
        for number in range(5):
            await self.fail(store, {"times": 1}, failCommands=["update", "insert"], closeConnection=True)
            assert not await store.save([one_write(lease.job.id, lease.token, number)])
        assert await messages(store, lease.job.id) == ["0", "1", "2", "3", "4"]

    @pytest.mark.fault("store-down")
    async def test_a_save_that_failed_after_it_was_written(self, store: MongoStore) -> None:
        """A save that is repeated because nobody could say whether it was written is written once."""
        lease = await submitted_and_claimed(store)
        change = one_write(lease.job.id, lease.token, 0)
        await self.fail(store, {"times": 2}, failCommands=["update"], writeConcernError={"code": 64, "errmsg": "timed out"})
        with pytest.raises(StoreUnavailable):
            await store.save([change])
        assert await messages(store, lease.job.id) == ["0"]
        await self.fail(store, "off")
        assert not await store.save([change])
        assert not await store.save([one_write(lease.job.id, lease.token, 1)])
        assert await messages(store, lease.job.id) == ["0", "1"]
        assert await store.read_log(lease.job.id, LOG) == b"0000000\n0000001\n"

    @pytest.mark.fault("store-down")
    async def test_a_crash_between_the_requests_of_a_save(self, store: MongoStore) -> None:
        """A save that dies after its copies were made, but before its own update, has changed nothing that can be read."""
        lease = await submitted_and_claimed(store)
        await store.save([one_write(lease.job.id, lease.token, 0)])
        await self.fail(store, "alwaysOn", failCommands=["update"], errorCode=96)
        with pytest.raises(StoreUnavailable):
            await store.save([one_write(lease.job.id, lease.token, 1)])
        await self.fail(store, "off")
        assert await messages(store, lease.job.id) == ["0"]
        assert await store.read_log(lease.job.id, LOG) == b"0000000\n"
        assert not await store.save([one_write(lease.job.id, lease.token, 1)])
        assert await store.read_log(lease.job.id, LOG) == b"0000000\n0000001\n"

    async def test_a_server_without_change_streams(self, store: MongoStore, url: str) -> None:
        """Where the server has no change streams, the store looks for news itself."""
        await store.holders()
        await self.fail(store, {"times": 1}, failCommands=["aggregate"], errorCode=40573)
        watch = store.watch()
        async with asyncio.timeout(NEVER):
            await anext(watch)
            await anext(watch)  # the follower has begun
            assert not (await store.find(JobQuery())).jobs
            async with peer(url, "submit", "news"):
                while not (await store.find(JobQuery())).jobs:
                    await anext(watch)

    async def test_a_server_that_refuses_us(self, store: MongoStore) -> None:
        """A refusal is a ConfigError without the URL's secrets."""
        await self.fail(store, {"times": 1}, failCommands=["find"], errorCode=13)
        with pytest.raises(ConfigError, match="refuses us"):
            await store.get(JobId("one"))


class TestUnfinishedPostings:
    """What a process that died has left halfway in a MongoDB store's ledger."""

    @pytest.fixture
    async def store(self, mongo_uri: str) -> AsyncIterator[MongoStore]:
        store = MongoStore(database_of(mongo_uri, name := f"rt_{secrets.token_hex(6)}"))
        await store.migrate()
        yield store
        await store.close()
        with MongoClient[Document](mongo_uri) as client:
            client.drop_database(name)

    async def test_what_a_save_left_in_the_job_is_posted_by_the_next_reader(self, store: MongoStore) -> None:
        """A worker that died between its save and the posting loses no entry, and none is posted twice."""
        lease = await submitted_and_claimed(store)
        left = [to_json(entry("s1", "2")).decode()] * 2
        await store._jobs.update_one({"_id": lease.job.id}, {"$set": {"entries": left}})
        assert [entry.id async for entry in store.ledger.export()] == ["s1"]
        await store._jobs.update_one({"_id": lease.job.id}, {"$set": {"entries": left}})
        assert await store.ledger.balances() == {RICH: Decimal(2)}
        assert "entries" not in (await store._jobs.find_one({"_id": lease.job.id}) or {})
        await store._jobs.update_one({"_id": lease.job.id}, {"$set": {"entries": left, "tenant": RICH}})
        assert await store.ledger.balance(RICH) == Decimal(2)

    @pytest.mark.parametrize(("age", "left"), [(timedelta(minutes=59), "1"), (timedelta(minutes=61), "4")])
    async def test_what_a_dead_submit_drew_is_given_back(self, store: MongoStore, age: timedelta, left: str) -> None:
        """After an hour, when no submit can still be on its way to insert its job."""
        await store.ledger.post([entry("g1", "4")])
        await store.ledger._change(RICH, [reserve("ghost", "3")], opening=JobId("ghost"))
        await store._database["accounts"].update_one({"_id": RICH}, {"$set": {"opening.0.at": (await store._now()) - age}})
        for _ in range(2):
            assert await store.ledger.balance(RICH) == Decimal(left)

    async def test_a_submit_that_died_after_the_job_was_queued_keeps_its_reservation(self, store: MongoStore) -> None:
        """The note it left is taken away, and the job is paid."""
        await store.ledger.post([entry("g1", "4")])
        await store.ledger._change(RICH, [reserve("job", "3")], opening=JobId("job"))
        await store.submit(make_job("job", tenant=RICH))
        await store._database["accounts"].update_one({"_id": RICH}, {"$set": {"opening.0.at": NEVER_CLAIMED}})
        assert await store.ledger.balance(RICH) == Decimal(1)
        assert (await store._database["accounts"].find_one({"_id": RICH}) or {})["opening"] == []
