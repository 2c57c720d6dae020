"""The embedded store keeps the store's contract."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import resource
import sqlite3
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from remote_trainer.errors import ConfigError, DocumentTooNew, InvariantBroken, StoreUnavailable
from remote_trainer.ports import JobQuery, Store
from remote_trainer.store import connection, sqlite, touch
from remote_trainer.store.sqlite import SqliteStore
from remote_trainer.testing.store_contract import StoreContract
from remote_trainer.testing.store_contract_jobs import LOG, NEVER, NewUrl, log, submitted_and_claimed
from remote_trainer.testing.store_peer import make_job, one_write


class TestSqliteStore(StoreContract):
    """One file of SQLite."""

    @pytest.fixture
    def new_url(self, tmp_path: Path) -> NewUrl:
        numbers = itertools.count()
        return lambda: f"sqlite:///{tmp_path}/store/{next(numbers)}.db"

    async def test_every_save_is_one_transaction(self, store: Store) -> None:
        """A gap in one job's log leaves the whole batch unwritten."""
        first, second = await submitted_and_claimed(store, "one"), await submitted_and_claimed(store, "two")
        gap = one_write(second.job.id, second.token, 1)
        with pytest.raises(InvariantBroken):
            await store.save([one_write(first.job.id, first.token, 0), gap])
        assert not await store.events(first.job.id)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store" / "jobs.db"


@pytest.fixture
async def opened(path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path)
    await store.migrate()
    yield store
    await store.close()


@contextlib.contextmanager
def no_room(path: Path) -> Iterator[None]:
    """Let no file of this process grow beyond the present size of one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_nobody_else_can_read_the_store(opened: SqliteStore, path: Path) -> None:
    """The folder is 0700 and every file in it 0600."""
    await opened.submit(make_job("one"))
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert {each.name: each.stat().st_mode & 0o777 for each in path.parent.iterdir()} == {
        "jobs.db": 0o600,
        "jobs.db-journal": 0o600,
    }


async def test_a_missing_store_is_named(path: Path) -> None:
    """Using what was never made says how to make it, and makes nothing."""
    with pytest.raises(ConfigError, match="db migrate"):
        await SqliteStore(path).holders()
    assert not path.parent.exists()


@pytest.fixture(params=[b"no database, but long enough to be one" * 40, b"SQLite format 3\0" + b"\xff" * 4096])
def damaged(path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    path.parent.mkdir()
    path.write_bytes(request.param)
    yield path
    assert path.read_bytes() == request.param


async def test_a_file_that_is_no_store(damaged: Path) -> None:
    """A damaged or foreign file is a ConfigError that names it, and stays as it was."""
    store = SqliteStore(damaged)
    for verb in (store.migrate, store.holders):
        with pytest.raises(ConfigError, match=r"jobs\.db"):
            await verb()
    await store.close()


async def test_a_place_where_no_file_can_be(tmp_path: Path) -> None:
    """A folder in the file's place is a ConfigError."""
    with pytest.raises(ConfigError, match="cannot be made"):
        await SqliteStore(tmp_path).migrate()


async def test_a_read_only_store(opened: SqliteStore, path: Path) -> None:
    """A file that may only be read is a ConfigError on the first write, and can still be read."""
    await opened._file.write(lambda database: database.execute("PRAGMA query_only = ON").fetchall())
    with pytest.raises(ConfigError, match="cannot be written"):
        await opened.submit(make_job("one"))
    assert not await opened.holders()


async def test_a_newer_layout_is_left_alone(opened: SqliteStore, path: Path) -> None:
    """A file that a newer version has migrated is not touched."""
    await opened.close()
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 99")
    later = SqliteStore(path)
    for verb in (later.migrate, later.holders):
        with pytest.raises(DocumentTooNew, match="newer"):
            await verb()
    await later.close()


async def test_a_file_of_the_first_layout_is_brought_up_to_date(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs, tokens and id stay; the ledger is there then; until it is migrated the file says what to do."""
    with monkeypatch.context() as before:
        before.setattr(sqlite, "LAYOUT", 1)
        old = SqliteStore(path)
        await old.migrate()
        known = await old.deployment()
        with contextlib.closing(sqlite3.connect(path)) as database:
            assert not database.execute("SELECT name FROM sqlite_master WHERE name = 'entries'").fetchall()
        await old.close()
    later = SqliteStore(path)
    with pytest.raises(ConfigError, match="db migrate"):
        await later.holders()
    await later.migrate()
    assert await later.deployment() == known
    assert await later.ledger.balances() == {}
    await later.close()


async def test_a_lock_is_waited_for_then_told(opened: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that another process locks is StoreUnavailable after some patience, and usable when the lock is gone."""
    monkeypatch.setattr(connection, "PATIENCE_S", 0.1)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        for work in (opened.submit(make_job("one")), opened.holders()):
            with pytest.raises(StoreUnavailable, match="locked by another process"):
                await work
    await opened.submit(make_job("one"))


async def test_a_full_disk(opened: SqliteStore, path: Path) -> None:
    """A save that the disk has no room for is StoreUnavailable and writes nothing; with room again it is written."""
    lease = await submitted_and_claimed(opened)
    change = replace(one_write(lease.job.id, lease.token, 0), logs=(log(0, bytes(1 << 20)),))
    with no_room(path), pytest.raises(StoreUnavailable, match="failed"):
        await opened.save([change])
    assert not await opened.events(lease.job.id)
    assert not await opened.save([change])
    assert await opened.log_streams(lease.job.id) == {LOG: 1 << 20}


async def test_own_writes_are_no_news(opened: SqliteStore, path: Path) -> None:
    """What a worker saves does not wake its own watch of the queue; what others write does."""
    await opened._file.changed()
    await opened.submit(make_job("one"))
    assert not await opened._file.changed()
    other = SqliteStore(path)
    await other.submit(make_job("two"))
    assert await opened._file.changed()
    await other.close()


async def test_leases_follow_the_clock_of_the_store(path: Path) -> None:
    """A lease runs out when the store's clock says so, not before."""
    now = 1000.0
    store = SqliteStore(path, clock=lambda: now)
    await store.migrate()
    lease = await submitted_and_claimed(store, lease_s=60)
    now = 1059.9
    assert await store.holders() == ["worker"]
    assert not await store.claim("other", lease_s=60, limit=1)
    now = 1060.0
    assert not await store.holders()
    assert [each.token for each in await store.claim("other", lease_s=60, limit=1)] == [lease.token + 1]
    await store.close()


async def test_write_ahead_logging(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where SQLite's version makes the write-ahead log safe, two connections work and wake each other with it."""
    monkeypatch.setattr(connection, "journal_mode", lambda version: "wal")
    reader, writer = SqliteStore(path), SqliteStore(path)
    assert "journal mode wal" in await reader.migrate()
    watch = reader.watch()
    async with asyncio.timeout(NEVER):
        await anext(watch)
        lease = await submitted_and_claimed(writer)
        for number in range(20):
            await writer.save([one_write(lease.job.id, lease.token, number)])
        while len(await reader.events(lease.job.id)) < 20:
            await anext(watch)
    await watch.aclose()
    await reader.close()
    await writer.close()


@pytest.mark.parametrize("told", [True, False])
async def test_a_watch_without_inotify(opened: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch, told: bool) -> None:
    """Where nobody tells of touches, the file is looked at often enough."""
    if not told:
        monkeypatch.setattr(touch, "_watch", lambda path: None)
    other = SqliteStore(path)
    watch = opened.watch()
    async with asyncio.timeout(NEVER):
        await anext(watch)
        await other.submit(make_job("one"))
        while not (await opened.find(JobQuery())).jobs:
            await anext(watch)
    await other.close()
