"""The embedded store: one SQLite file, for one machine.

Rules for editing: a verb is one transaction (connection.py) made of named statements (sqlite.sql); values are turned into rows
here and nowhere else. A write goes to all its rows with one `executemany` each, because a worker saves a thousand log lines at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import sqlite3
import string
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from remote_trainer.document import from_json, job_from_document, to_json
from remote_trainer.errors import Conflict, InvariantBroken, NotFound
from remote_trainer.model import SCHEMA, Entry, Event, Job, JobId, Lease, Metric, Phase, Token
from remote_trainer.ports import Change, JobQuery, Page, Renewal
from remote_trainer.store import records
from remote_trainer.store.connection import Connection
from remote_trainer.store.sqlite_ledger import SqliteLedger, add_entries
from remote_trainer.store.touch import touches
from remote_trainer.store.watchers import Watchers

#: The layout of the tables (``PRAGMA user_version``): how many migrations sqlite.sql has.
LAYOUT = 2

#: How often other processes' writes are looked for, seconds: where touches are told it is only a safety net.
_TOLD_S, _POLL_S = 1.0, 0.02
#: Writes that follow each other faster wake once, seconds.
_TOGETHER_S = 0.002

_ALPHABET = string.ascii_lowercase + string.digits


def _statements() -> dict[str, str]:
    text = resources.files(__package__).joinpath("sqlite.sql").read_text(encoding="utf-8")
    _, *parts = re.split(r"^-- (\w+): .*\n", text, flags=re.MULTILINE)
    return {name: body.strip() for name, body in zip(parts[::2], parts[1::2], strict=True)}


SQL = _statements()


def _migrate(database: sqlite3.Connection, found: int) -> None:
    for number in range(found + 1, LAYOUT + 1):
        for statement in SQL[f"migration_{number}"].split(";\n"):
            database.execute(statement)
    deployment = "".join(secrets.choice(_ALPHABET) for _ in range(6))
    database.execute(SQL["set_meta"], {"key": "deployment", "value": deployment})


class SqliteStore:
    """The Store of one file. Safe to use from many tasks of one loop; any number of processes may have the file open."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._file = Connection(path, schema=LAYOUT, clock=clock)
        self._watchers = Watchers(self._follow)
        self.ledger = SqliteLedger(self._file, SQL)

    # ---- the store itself

    async def migrate(self) -> str:
        """Make the file and its tables, or bring them up to date. Idempotent."""
        await self._file.prepare(_migrate)
        mode = await self._file.read(lambda database: database.execute("PRAGMA journal_mode").fetchone()[0])
        return f"SQLite {sqlite3.sqlite_version} at {self._path}, journal mode {mode}, layout {LAYOUT}"

    async def close(self) -> None:
        """Finish what was begun, end every watch, close the file. Idempotent."""
        await self._watchers.close()
        await self._file.close()

    async def deployment(self) -> str:
        """Return this store's id."""
        rows = await self._rows("get_meta", key="deployment")
        return str(rows[0][0])

    # ---- jobs

    async def submit(self, job: Job, entries: Sequence[Entry] = ()) -> None:
        """Insert a QUEUED job, and entries of its tenant."""
        if job.phase is not Phase.QUEUED:
            raise InvariantBroken(f"job {job.id} was submitted in phase {job.phase}: only a queued one can be")
        row = {
            **_columns(job),
            "id": job.id,
            "tenant": job.tenant,
            "name": job.name,
            "created_us": records.microseconds(job.created_at),
        }

        def insert(database: sqlite3.Connection) -> None:
            (number,) = database.execute(SQL["submit"], row).fetchone()
            database.execute(SQL["add_document"], {"job": number, "body": _text(job)})
            self.ledger.draw(database, job.tenant, entries)

        try:
            await self._file.write(insert)
        except sqlite3.IntegrityError as error:
            if "jobs.id" in str(error):
                raise Conflict(f"there is a job {job.id} already") from error
            raise Conflict(
                f"an unfinished job of {job.tenant} is named {job.name!r}: choose another name or cancel it"
            ) from error
        self._watchers.ring([job.id], queue=True)

    async def get(self, job_id: JobId) -> Job:
        """Return the job."""
        rows = await self._rows("get", id=job_id)
        if not rows:
            raise NotFound(f"there is no job {job_id}")
        return _job(*rows[0])

    async def find(self, query: JobQuery) -> Page:
        """Return a page of jobs, newest first."""
        after_us, after_id = records.parse_cursor(query.after) if query.after else (None, None)
        phases = None if query.phases is None else json.dumps(sorted(query.phases))
        rows = await self._rows(
            "find",
            after_us=after_us,
            after_id=after_id,
            tenant=query.tenant,
            name=query.name,
            phases=phases,
            limit=query.limit + 1,
        )
        page = rows[: query.limit]
        more = len(rows) > query.limit and bool(page)
        return Page(
            jobs=tuple(_job(body, cancel_at) for body, cancel_at, _, _ in page),
            cursor=records.cursor(*page[-1][2:]) if more else None,
        )

    async def request_cancel(self, job_id: JobId) -> None:
        """Note the user's wish."""

        def note(database: sqlite3.Connection) -> None:
            if database.execute(SQL["request_cancel"], {"id": job_id}).fetchone() is None:
                row = database.execute(SQL["phase"], {"id": job_id}).fetchone()
                if row is None:
                    raise NotFound(f"there is no job {job_id}")
                raise Conflict(f"job {job_id} has ended already ({row[0]}): there is nothing to cancel")

        await self._file.write(note)
        self._watchers.ring([job_id], queue=True)

    # ---- leases

    async def claim(self, holder: str, *, lease_s: float, limit: int) -> Sequence[Lease]:
        """Take up to ``limit`` jobs that nobody holds."""
        wanted = {
            "holder": holder,
            "lease_s": lease_s,
            "limit": limit,
            "schema": SCHEMA,
            "phases": json.dumps(records.OPEN_PHASES),
        }

        def take(database: sqlite3.Connection) -> list[tuple[Any, ...]]:
            numbers = [number for (number,) in database.execute(SQL["claim"], wanted)]
            return database.execute(SQL["claimed"], {"numbers": json.dumps(numbers)}).fetchall()

        rows = await self._file.write(take, news=False)
        leases = (
            records.lease_of(json.loads(body), records.from_seconds(wish), token=token, holder=holder)
            for body, wish, token in rows
        )
        return [lease for lease in leases if lease is not None]

    async def renew(self, holder: str, leases: Mapping[JobId, Token], *, lease_s: float) -> Renewal:
        """Extend all leases in one write."""
        wanted = {"holder": holder, "leases": json.dumps(leases), "lease_s": lease_s}
        rows = await self._file.write(lambda database: database.execute(SQL["renew"], wanted).fetchall(), news=False)
        return Renewal(
            held=frozenset(JobId(job_id) for job_id, _ in rows),
            cancelling=frozenset(JobId(job_id) for job_id, cancelling in rows if cancelling),
        )

    async def release(self, leases: Mapping[JobId, Token]) -> None:
        """Give leases back at once."""
        wanted = {"leases": json.dumps(leases)}
        rows = await self._file.write(lambda database: database.execute(SQL["release"], wanted).fetchall())
        self._watchers.ring((JobId(job_id) for (job_id,) in rows), queue=bool(rows))

    async def evict(self, holder: str) -> int:
        """Let every lease of ``holder`` run out now."""
        rows = await self._file.write(lambda database: database.execute(SQL["evict"], {"holder": holder}).fetchall())
        self._watchers.ring((JobId(job_id) for (job_id,) in rows), queue=bool(rows))
        return len(rows)

    async def holders(self) -> Sequence[str]:
        """Return all holders with a lease that runs."""
        return [str(holder) for (holder,) in await self._rows("holders")]

    async def save(self, changes: Sequence[Change]) -> frozenset[JobId]:
        """Write the changes in one transaction, but for the stale ones, whose ids are returned."""
        if not changes:
            return frozenset()
        stale = await self._file.write(lambda database: _Save(database, changes).stale)
        self._watchers.ring((change.job_id for change in changes if change.job_id not in stale), queue=False)
        return stale

    # ---- records

    async def events(self, job_id: JobId, *, after: int = 0, limit: int = 1000) -> Sequence[Event]:
        """Return events in order."""
        rows = await self._rows("events", id=job_id, after=after, limit=limit)
        return [replace(from_json(Event, body), seq=seq) for seq, body in rows]

    async def metrics(self, job_id: JobId, *, after: int = 0, limit: int = 10000) -> Sequence[tuple[int, Metric]]:
        """Return metrics in order, each with its number."""
        rows = await self._rows("metrics", id=job_id, after=after, limit=limit)
        return [(seq, from_json(Metric, body)) for seq, body in rows]

    async def log_streams(self, job_id: JobId) -> Mapping[str, int]:
        """Return each log stream with its size in bytes."""
        return dict(await self._rows("log_streams", id=job_id))

    async def read_log(self, job_id: JobId, stream: str, *, offset: int = 0, limit: int = 1 << 20) -> bytes:
        """Return bytes of a log."""
        rows = await self._rows("read_log", id=job_id, stream=stream, offset=offset, end=offset + limit)
        if not rows:
            return b""
        first = offset - rows[0][0]
        return b"".join(data for _, data in rows)[first : first + limit]

    # ---- news

    def watch(self, job_id: JobId | None = None) -> AsyncGenerator[None, None]:
        """Yield when something may have happened to the job; for all jobs, our own saves are no news."""
        return self._watchers.watch(job_id)

    async def _follow(self) -> None:
        touched = asyncio.Event()
        await self._file.changed()  # from here on
        with touches(self._path, touched.set) as told:
            while True:
                self._watchers.ring_all()
                await asyncio.sleep(_TOGETHER_S)
                touched.clear()
                while not await self._file.changed():
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_TOLD_S if told else _POLL_S):
                            await touched.wait()
                    touched.clear()

    async def export(self) -> AsyncIterator[Mapping[str, Any]]:
        """Yield every record, job by job; what is written meanwhile may or may not be among them."""
        after = 0
        while rows := await self._rows("export", after=after, limit=100):
            after = rows[-1][0]
            for _, job_id, body, cancel_at in rows:
                yield {
                    "kind": "job",
                    "job": job_id,
                    "document": records.with_wish(json.loads(body), records.from_seconds(cancel_at)),
                }
                async for record in records.records_of(self, JobId(job_id)):
                    yield record
        async for entry in self.ledger.export():
            yield records.entry_record(entry)

    async def _rows(self, statement: str, /, **values: Any) -> list[tuple[Any, ...]]:
        return await self._file.read(lambda database: database.execute(SQL[statement], values).fetchall())


class _Save:
    """One transaction's worth of changes, written while it is made; ``stale`` are those that were left out."""

    def __init__(self, database: sqlite3.Connection, changes: Sequence[Change]) -> None:
        self._database = database
        ids = json.dumps([change.job_id for change in changes])
        current = {row[0]: row[1:] for row in database.execute(SQL["tokens"], {"ids": ids})}
        self._numbers: dict[JobId, int] = {}
        live, stale = [], set()
        for change in changes:
            number, token = current.get(change.job_id, (0, None))
            if token == change.token:
                self._numbers[change.job_id] = number
                live.append(change)
            else:
                stale.add(change.job_id)
        self.stale = frozenset(stale)
        self._write_jobs(live)
        self._append("add_event", ((change.job_id, event) for change in live for event in change.events))
        self._append("add_metric", ((change.job_id, metric) for change in live for metric in change.metrics))
        self._write_logs([change for change in live if change.logs])
        add_entries(database, SQL, [entry for change in live for entry in change.entries])

    def _write_jobs(self, changes: Iterable[Change]) -> None:
        for change in changes:
            if change.job is not None:
                if change.job.id != change.job_id:
                    raise InvariantBroken(f"a change of job {change.job_id} carries the document of job {change.job.id}")
                number = self._numbers[change.job_id]
                self._database.execute(SQL["set_job"], {"job": number, **_columns(change.job)})
                self._database.execute(SQL["set_document"], {"job": number, "body": _text(change.job)})

    def _append(self, statement: str, items: Iterable[tuple[JobId, Event | Metric]]) -> None:
        self._database.executemany(SQL[statement], ((self._numbers[job_id], to_json(item).decode()) for job_id, item in items))

    def _write_logs(self, changes: Sequence[Change]) -> None:
        streams = self._streams(changes)
        (segment,) = self._database.execute(SQL["segment"]).fetchone()
        extents, rows = [], []
        for change in changes:
            for chunk in change.logs:
                stream = streams[self._numbers[change.job_id], chunk.stream]
                if data := records.new_part(change.job_id, chunk, stream.size):
                    if stream.segment != segment:
                        extents.append((stream.number, stream.size, segment))
                        stream.segment = segment
                    rows.append((segment, stream.number, stream.size, data))
                    stream.size += len(data)
        self._database.executemany(SQL["add_extent"], extents)
        self._database.executemany(SQL["add_log"], rows)
        self._database.executemany(SQL["extend"], ((stream.size, stream.segment, stream.number) for stream in streams.values()))

    def _streams(self, changes: Sequence[Change]) -> dict[tuple[int, str], _Stream]:
        """Return the streams written to, by job number and name; made where missing."""
        wanted = list(dict.fromkeys((self._numbers[change.job_id], chunk.stream) for change in changes for chunk in change.logs))
        rows = self._database.execute(SQL["streams"], {"streams": json.dumps(wanted)})
        found = {(job, name): _Stream(number, size, segment) for job, name, number, size, segment in rows}
        for key in wanted:
            if key not in found:
                found[key] = _Stream(*self._database.execute(SQL["add_stream"], key).fetchone())
        return found


@dataclass(slots=True)
class _Stream:
    number: int
    size: int = 0
    segment: int = -1


def _columns(job: Job) -> dict[str, Any]:
    return {"phase": job.phase, "finished": job.phase.terminal, "schema": job.schema, "priority": job.priority}


def _text(job: Job) -> str:
    return to_json(job).decode()


def _job(body: str, cancel_at: float | None) -> Job:
    return job_from_document(records.with_wish(json.loads(body), records.from_seconds(cancel_at)))
