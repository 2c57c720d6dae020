"""One SQLite connection on one thread: opening, patience, transactions, errors.

Rules for editing: the connection is made and used on that thread only; no statement of the store's own is here. What is safe where:

- SQLite 3.7.0 to 3.51.2 can corrupt a database in WAL mode when several connections write (fixed in 3.51.3, 3.50.7, 3.44.6), so
  WAL is used from the fixed versions on. Below, the rollback journal is kept between transactions (PERSIST): its header is zeroed and
  synced where TRUNCATE cuts the file and syncs, the same guarantee without the file system's own journal in the way.
- ``synchronous=FULL`` in both: what was acknowledged survives a power cut.
- SQLite's own waiting for a lock doubles its pauses, so a process that waits long waits ever longer while others overtake it. Ours
  tries again after a short random pause: everybody has the same chance.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from remote_trainer.errors import ConfigError, DocumentTooNew, StoreError, StoreUnavailable

T = TypeVar("T")

#: How long an operation waits for other processes' locks, seconds.
PATIENCE_S = 10.0
_PAUSE_S = (0.0002, 0.003)

#: RETURNING and the JSON operators are used.
OLDEST = (3, 38, 0)

_BROKEN = {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}
_REFUSED = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_AUTH}


def journal_mode(version: tuple[int, int, int]) -> str:
    """Return the journal mode that is safe with this version of SQLite."""
    fixed = version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51, 0) or (3, 44, 6) <= version < (3, 45, 0)
    return "wal" if fixed else "persist"


class Connection:
    """A database file, used one operation at a time."""

    def __init__(self, path: Path, *, schema: int, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._schema = schema
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite")
        self._database: sqlite3.Connection | None = None
        self._seen = -1  # data_version: counts other connections' commits
        self._closed = False

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run one reading statement; ``work`` may be called again, so it must not do anything else."""
        return await self._run(lambda database: self._patiently(lambda: work(database)))

    async def write(self, work: Callable[[sqlite3.Connection], T], *, news: bool = True) -> T:
        """Run ``work`` in a transaction of its own: all of it is written, and durable, or nothing.

        With ``news`` the file is touched then, which tells other processes at once (see touch.py).
        """
        return await self._run(lambda database: self._write(database, work, news))

    async def changed(self) -> bool:
        """Say whether another connection has written since the last call."""
        return await self.read(self._look)

    async def prepare(self, migrations: Callable[[sqlite3.Connection, int], None]) -> None:
        """Make the file if it is missing, and bring its tables to our version: ``migrations`` is told the present one."""
        await self._on_thread(lambda: self._prepare(migrations))

    async def close(self) -> None:
        """Finish what was begun, then close the file. Idempotent."""
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._thread, self._shut)
            self._thread.shutdown()

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await self._on_thread(lambda: work(self._opened()))

    async def _on_thread(self, work: Callable[[], T]) -> T:
        if self._closed:
            raise StoreUnavailable(f"the job store {self.path} has been closed")
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._translated, work)

    # ---- on the thread

    def _translated(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except sqlite3.IntegrityError:
            raise  # what was to be written breaks a rule: the caller knows which
        except sqlite3.Error as error:
            raise self._translation(error) from error
        except OSError as error:
            raise ConfigError(f"the job store {self.path} cannot be reached: {error.strerror}") from error

    def _translation(self, error: sqlite3.Error) -> StoreError | ConfigError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_BUSY:
            return StoreUnavailable(
                f"the job store {self.path} has been locked by another process for {PATIENCE_S:.0f} s: a worker or command that was "
                "stopped (Ctrl-Z, SIGSTOP) in the middle of a write keeps the lock until it goes on or ends"
            )
        if code in _BROKEN:
            return ConfigError(f"{self.path} is not a job store, or is damaged ({error}): move it away or restore a copy")
        if code in _REFUSED:
            return ConfigError(f"the job store {self.path} cannot be written ({error}): check its owner, mode and disk")
        return StoreUnavailable(f"the job store {self.path} failed: {error}")

    def _patiently(self, work: Callable[[], T]) -> T:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return work()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            time.sleep(random.uniform(*_PAUSE_S))  # noqa: S311 - spreads contenders, no secret

    def _write(self, database: sqlite3.Connection, work: Callable[[sqlite3.Connection], T], news: bool) -> T:
        result = self._transact(database, work)
        if news:
            with contextlib.suppress(OSError):  # it is written; who is not told finds out a little later
                os.utime(self.path)
        return result

    def _transact(self, database: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
        self._patiently(lambda: database.execute("BEGIN IMMEDIATE"))
        try:
            result = work(database)
            self._patiently(lambda: database.execute("COMMIT"))  # waits for readers; no new one can begin
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise
        return result

    def _look(self, database: sqlite3.Connection) -> bool:
        (version,) = database.execute("PRAGMA data_version").fetchone()
        before, self._seen = self._seen, version
        return bool(version != before)

    def _opened(self) -> sqlite3.Connection:
        if self._database is None:
            if not self.path.exists():
                raise ConfigError(f"there is no job store at {self.path}: make it with `remote-trainer db migrate`")
            database = self._connect()
            try:
                self._check_version(database)
            except BaseException:
                database.close()
                raise
            self._database = database
        return self._database

    def _check_version(self, database: sqlite3.Connection) -> None:
        (found,) = self._patiently(lambda: database.execute("PRAGMA user_version").fetchone())
        if found > self._schema:
            raise DocumentTooNew(f"the job store {self.path} was made by a newer version: upgrade remote-trainer")
        if found < self._schema:
            raise ConfigError(f"the job store {self.path} has an older layout: run `remote-trainer db migrate`")

    def _connect(self) -> sqlite3.Connection:
        if sqlite3.sqlite_version_info < OLDEST:
            raise ConfigError(f"SQLite {sqlite3.sqlite_version} is too old: {'.'.join(map(str, OLDEST))} or newer is needed")
        database = sqlite3.connect(self.path, timeout=0, isolation_level=None, cached_statements=256)
        try:
            database.create_function("now_s", 0, self._clock)
            mode = journal_mode(sqlite3.sqlite_version_info)
            for setting in (
                f"journal_mode = {mode}",
                "synchronous = FULL",
                f"journal_size_limit = {16 << 20}",  # bytes kept after a large transaction
                f"cache_size = {-32 << 10}",  # KiB, as a negative number
                "cache_spill = OFF",  # a spill needs the exclusive lock in mid-transaction
            ):
                self._patiently(lambda setting=setting: database.execute(f"PRAGMA {setting}").fetchall())  # type: ignore[misc]
        except BaseException:
            database.close()
            raise
        return database

    def _prepare(self, migrations: Callable[[sqlite3.Connection, int], None]) -> None:
        self._shut()
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Made before SQLite makes it, so that nobody else can ever read it; the journals inherit its mode.
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise ConfigError(f"the job store {self.path} cannot be made or written: {error.strerror}") from error

        def upgrade(database: sqlite3.Connection) -> None:
            (found,) = database.execute("PRAGMA user_version").fetchone()
            if found < self._schema:
                migrations(database, found)
                database.execute(f"PRAGMA user_version = {self._schema}")

        with contextlib.closing(self._connect()) as database:
            self._transact(database, upgrade)
        self._opened()

    def _shut(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None
