"""The shared store: a MongoDB database, for workers on several machines.

How a save is atomic without a transaction, on a replica set as on a single server: everything it writes goes into the job's own
document in one guarded update (``_id``, token, and a count of saves, so that nothing can be computed from an old state). The document
keeps the newest save's events, metrics and log bytes in its ``tail``; the next save first copies them to the collections ``records`` and
``logs`` and then replaces the tail. The copies have fixed keys, so copying twice changes nothing, and only what was once saved
under a valid token is ever copied. A reader reads the document first and the collections second: what has moved in between it sees
twice, never not at all. A stale save matches no document, so nothing of it is anywhere. A batch is three requests, however many jobs.

A claim is a compare-and-set on the token a candidate was read with; ``claim`` holds the mark of whoever won. All times that decide
anything are the server's (``$$NOW``). ``by`` and ``changed`` mark news for watchers: renewals and claims are none.

When the client cannot know whether a batch was written, whoever repeats it must not write twice: log bytes are recognised by their offset,
and the records of jobs in ``_unsure`` by being in the tail already.

Rules for editing: every request goes through ``_using``; write nothing that a crash between two requests leaves half.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import secrets
import string
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from pymongo import ASCENDING, DESCENDING, UpdateOne
from pymongo.errors import BulkWriteError, DuplicateKeyError, PyMongoError

from remote_trainer.document import from_json, job_from_document
from remote_trainer.errors import ConfigError, Conflict, DocumentTooNew, InvariantBroken, NotFound, StoreUnavailable
from remote_trainer.model import SCHEMA, Entry, Event, Job, JobId, Lease, Metric, Phase, Token
from remote_trainer.ports import Change, JobQuery, Page, Renewal
from remote_trainer.store import mongo_news, mongo_tail, records
from remote_trainer.store.mongo_layout import LAYOUT, NEVER, connected, copy_new, described, lay_out, new_document, translated
from remote_trainer.store.mongo_ledger import MongoLedger
from remote_trainer.store.mongo_tail import Document, Tail
from remote_trainer.store.watchers import Watchers

_OURS = {"finished": False, "schema": {"$lte": SCHEMA}, "phase": {"$in": list(records.OPEN_PHASES)}}
_QUEUE = [("priority", DESCENDING), ("created_us", ASCENDING), ("_id", ASCENDING)]
_NEWEST = [("created_us", DESCENDING), ("_id", DESCENDING)]

_ALPHABET = string.ascii_lowercase + string.digits


class MongoStore:
    """The Store of one database. Safe to use from many tasks of one loop, by any number of processes."""

    def __init__(self, url: str) -> None:
        self._place = described(url)
        self._client, self._database = connected(url)
        self._jobs = self._database["jobs"]
        self.ledger = MongoLedger(self._database, self._using, self._now)
        self._watchers = Watchers(self._follow)
        self._me = secrets.token_hex(8)
        self._marks = itertools.count()
        self._saving = asyncio.Lock()
        self._unsure: set[JobId] = set()
        self._ready = False
        self._closed = False

    # ---- the store itself

    async def migrate(self) -> str:
        """Create or update collections, validators and indexes. Idempotent."""
        async with self._reaching():
            found = await self._database["meta"].find_one({"_id": "layout"})
            if found is not None and found["version"] > LAYOUT:
                raise self._too_new()
            await lay_out(self._database)
            deployment = "".join(secrets.choice(_ALPHABET) for _ in range(6))
            for name, change in (
                ("deployment", {"$setOnInsert": {"id": deployment}}),
                ("layout", {"$max": {"version": LAYOUT}}),
            ):
                with contextlib.suppress(DuplicateKeyError):  # another process migrates too
                    await self._database["meta"].update_one({"_id": name}, change, upsert=True)
            version = (await self._client.server_info())["version"]
        return f"MongoDB {version} at {self._place}, layout {LAYOUT}"

    async def close(self) -> None:
        """End every watch and all connections. Idempotent."""
        self._closed = True
        await self._watchers.close()
        await self._client.close()

    async def deployment(self) -> str:
        """Return this store's id."""
        async with self._using():
            found = await self._database["meta"].find_one({"_id": "deployment"})
        return str(found["id"]) if found else ""

    # ---- jobs

    async def submit(self, job: Job, entries: Sequence[Entry] = ()) -> None:
        """Insert a QUEUED job, and entries of its tenant."""
        if job.phase is not Phase.QUEUED:
            raise InvariantBroken(f"job {job.id} was submitted in phase {job.phase}: only a queued one can be")
        async with self._using(), self.ledger.drawing(job, entries):
            try:
                await self._jobs.insert_one({**new_document(job), "by": self._mark(), "changed": await self._now()})
            except DuplicateKeyError as error:
                if "_id" in (error.details or {}).get("keyPattern", {}):
                    raise Conflict(f"there is a job {job.id} already") from error
                message = f"an unfinished job of {job.tenant} is named {job.name!r}: choose another name or cancel it"
                raise Conflict(message) from error
        self._watchers.ring([job.id], queue=True)

    async def get(self, job_id: JobId) -> Job:
        """Return the job."""
        async with self._using():
            row = await self._jobs.find_one({"_id": job_id}, {"document": 1, "cancel_at": 1})
        if row is None:
            raise NotFound(f"there is no job {job_id}")
        return _job(row)

    async def find(self, query: JobQuery) -> Page:
        """Return a page of jobs, newest first."""
        wanted: Document = {}
        if query.after:
            created_us, job_id = records.parse_cursor(query.after)
            wanted["$or"] = [{"created_us": {"$lt": created_us}}, {"created_us": created_us, "_id": {"$lt": job_id}}]
        if query.phases is not None:
            wanted["phase"] = {"$in": sorted(query.phases)}
        for field, value in (("tenant", query.tenant), ("name", query.name)):
            if value is not None:
                wanted[field] = value
        async with self._using():
            cursor = self._jobs.find(wanted, {"document": 1, "cancel_at": 1, "created_us": 1}).sort(_NEWEST)
            rows = await cursor.limit(query.limit + 1).to_list()
        page = rows[: query.limit]
        more = len(rows) > query.limit and bool(page)
        return Page(
            jobs=tuple(_job(row) for row in page),
            cursor=records.cursor(page[-1]["created_us"], page[-1]["_id"]) if more else None,
        )

    async def request_cancel(self, job_id: JobId) -> None:
        """Note the user's wish."""
        wish = [{"$set": {"cancel_at": {"$ifNull": ["$cancel_at", "$$NOW"]}, "by": self._mark(), "changed": "$$NOW"}}]
        async with self._using():
            noted = await self._jobs.update_one({"_id": job_id, "finished": False}, wish)
            found = None if noted.matched_count else await self._jobs.find_one({"_id": job_id}, {"phase": 1})
        if not noted.matched_count:
            if found is None:
                raise NotFound(f"there is no job {job_id}")
            raise Conflict(f"job {job_id} has ended already ({found['phase']}): there is nothing to cancel")
        self._watchers.ring([job_id], queue=True)

    # ---- leases

    async def claim(self, holder: str, *, lease_s: float, limit: int) -> Sequence[Lease]:
        """Take up to ``limit`` jobs that nobody holds."""
        taken: list[Document] = []
        mark = self._mark()
        lease = {"holder": holder, "claim": mark, "expires": _in(lease_s), "token": {"$add": ["$token", 1]}}
        async with self._using():
            while len(taken) < limit:
                unheld = {**_OURS, "expires": {"$lte": await self._now()}}
                free = await self._jobs.find(unheld, {"token": 1}).sort(_QUEUE).limit(limit - len(taken)).to_list()
                if not free:
                    break
                ids = [row["_id"] for row in free]
                wins = [UpdateOne({"_id": row["_id"], "token": row["token"], **unheld}, [{"$set": lease}]) for row in free]
                await self._jobs.bulk_write(wins, ordered=False)
                won = self._jobs.find({"_id": {"$in": ids}, "claim": mark}, {"document": 1, "cancel_at": 1, "token": 1})
                taken += await won.sort(_QUEUE).to_list()
        leases = (
            records.lease_of(json.loads(row["document"]), row.get("cancel_at"), token=row["token"], holder=holder)
            for row in taken
        )
        return [lease for lease in leases if lease is not None]

    async def renew(self, holder: str, leases: Mapping[JobId, Token], *, lease_s: float) -> Renewal:
        """Extend all leases in one write."""
        ours = {"_id": {"$in": list(leases)}, "holder": holder}
        async with self._using():
            await self._jobs.update_many(ours, [{"$set": {"expires": _in(lease_s)}}])
            rows = await self._jobs.find(ours, {"token": 1, "cancel_at": 1}).to_list()
        held = {JobId(row["_id"]): row for row in rows if row["token"] == leases[row["_id"]]}
        return Renewal(held=frozenset(held), cancelling=frozenset(job_id for job_id, row in held.items() if row.get("cancel_at")))

    async def release(self, leases: Mapping[JobId, Token]) -> None:
        """Give leases back at once."""
        free = self._news({"holder": None, "expires": NEVER})
        updates = [UpdateOne({"_id": job_id, "token": token, "holder": {"$ne": None}}, free) for job_id, token in leases.items()]
        if updates:
            async with self._using():
                await self._jobs.bulk_write(updates, ordered=False)
            self._watchers.ring(leases, queue=True)

    async def evict(self, holder: str) -> int:
        """Let every lease of ``holder`` run out now."""
        async with self._using():
            running = {"holder": holder, "expires": {"$gt": await self._now()}}
            result = await self._jobs.update_many(running, self._news({"expires": NEVER}))
        self._watchers.ring_all()
        return result.modified_count

    async def holders(self) -> Sequence[str]:
        """Return all holders with a lease that runs."""
        async with self._using():
            running = {"holder": {"$type": "string"}, "expires": {"$gt": await self._now()}}
            return sorted(str(holder) for holder in await self._jobs.distinct("holder", running))

    # ---- saving

    async def save(self, changes: Sequence[Change]) -> frozenset[JobId]:
        """Write the changes, each job's in one atomic update, but for the stale ones, whose ids are returned."""
        pending = mongo_tail.grouped(changes)
        stale: set[JobId] = set()
        async with self._saving, self._using():
            while pending:
                held = {"_id": {"$in": list(pending)}, "holder": {"$ne": None}}
                rows = {row["_id"]: row for row in await self._jobs.find(held, mongo_tail.FIELDS).to_list()}
                tails: list[tuple[Document, Tail]] = []
                for job_id, of_job in pending.items():
                    row = rows.get(job_id)
                    live = [change for change in of_job if row is not None and row["token"] == change.token]
                    if len(live) < len(of_job):
                        stale.add(job_id)
                    if row is not None and live:
                        tails.append((row, self._tail(row, live)))
                written = await self._replace(tails)
                pending = {tail.job_id: pending[tail.job_id] for _, tail in tails if tail.job_id not in written}
            if paid := [change.job_id for change in changes if change.entries]:
                with contextlib.suppress(PyMongoError):  # the save is done; what is left there the next reader posts
                    await self.ledger.collect({"_id": {"$in": paid}})
        self._watchers.ring({change.job_id for change in changes}, queue=False)
        return frozenset(stale)

    def _tail(self, row: Document, changes: Iterable[Change]) -> Tail:
        tail = Tail.behind(row, repeated=row["_id"] in self._unsure)
        for change in changes:
            tail.add(change)
        return tail

    async def _replace(self, tails: Sequence[tuple[Document, Tail]]) -> set[JobId]:
        """Copy the old tails, put the new ones; returns whose was put: the others have changed since they were read."""
        if not tails:
            return set()
        for name in ("records", "logs"):
            await copy_new(self._database[name], [each for row, _ in tails for each in row["tail"][name]])
        mark = self._mark()
        updates = []
        for row, tail in tails:
            same = {"_id": tail.job_id, "token": row["token"], "saves": row["saves"], "holder": {"$ne": None}}
            update = self._news({**tail.fields(), "saves": row["saves"] + 1, "saved": mark})
            if tail.entries:
                update["$push"] = {"entries": {"$each": tail.entries}}
            updates.append(UpdateOne(same, update))
        ids = {tail.job_id for _, tail in tails}
        self._unsure |= ids
        result = await self._jobs.bulk_write(updates, ordered=False)
        self._unsure -= ids
        if result.matched_count == len(updates):
            return ids
        return {JobId(row["_id"]) async for row in self._jobs.find({"_id": {"$in": list(ids)}, "saved": mark}, {"_id": 1})}

    # ---- records

    async def events(self, job_id: JobId, *, after: int = 0, limit: int = 1000) -> Sequence[Event]:
        """Return events in order."""
        rows = await self._records(job_id, "event", after, limit)
        return [replace(from_json(Event, body), seq=seq) for seq, body in rows]

    async def metrics(self, job_id: JobId, *, after: int = 0, limit: int = 10000) -> Sequence[tuple[int, Metric]]:
        """Return metrics in order, each with its number."""
        rows = await self._records(job_id, "metric", after, limit)
        return [(seq, from_json(Metric, body)) for seq, body in rows]

    async def log_streams(self, job_id: JobId) -> Mapping[str, int]:
        """Return each log stream with its size in bytes."""
        async with self._using():
            row = await self._jobs.find_one({"_id": job_id}, {"streams": 1})
        return {each["name"]: each["size"] for each in row["streams"]} if row else {}

    async def read_log(self, job_id: JobId, stream: str, *, offset: int = 0, limit: int = 1 << 20) -> bytes:
        """Return bytes of a log."""
        end = offset + limit
        of_stream = {"job": job_id, "stream": stream}
        logs = self._database["logs"]
        async with self._using():
            row = await self._jobs.find_one({"_id": job_id}, {"tail.logs": 1})  # first: see the module's docstring
            first = await logs.find_one({**of_stream, "start": {"$lte": offset}}, {"start": 1}, sort=[("start", DESCENDING)])
            begin = first["start"] if first else 0
            found = await logs.find({**of_stream, "start": {"$gte": begin, "$lt": end}}).to_list()
        newest = [each for each in row["tail"]["logs"] if each["stream"] == stream] if row else []
        chunks = {each["start"]: bytes(each["bytes"]) for each in (*found, *newest)}
        return b"".join(
            data[max(0, offset - start) : end - start]
            for start, data in sorted(chunks.items())
            if start < end and start + len(data) > offset
        )

    async def _records(self, job_id: JobId, kind: str, after: int, limit: int) -> list[tuple[int, str]]:
        async with self._using():
            row = await self._jobs.find_one({"_id": job_id}, {"tail.records": 1})  # first: see the module's docstring
            wanted = {"job": job_id, "kind": kind, "seq": {"$gt": after}}
            found = await self._database["records"].find(wanted).sort("seq", ASCENDING).limit(limit).to_list()
        newest = row["tail"]["records"] if row else []
        bodies = {each["seq"]: each["body"] for each in (*found, *newest) if each["kind"] == kind and each["seq"] > after}
        return sorted(bodies.items())[:limit]

    # ---- news

    def watch(self, job_id: JobId | None = None) -> AsyncGenerator[None, None]:
        """Yield when something may have happened to the job; for all jobs, our own saves are no news."""
        return self._watchers.watch(job_id)

    async def _follow(self) -> None:
        async with self._using():
            await mongo_news.follow(self._jobs, self._watchers, self._me)

    async def export(self) -> AsyncIterator[Mapping[str, Any]]:
        """Yield every record, job by job; what is written meanwhile may or may not be among them."""
        after = ""
        while True:
            async with self._using():
                rows = await self._jobs.find({"_id": {"$gt": after}}).sort("_id", ASCENDING).limit(100).to_list()
            if not rows:
                break
            after = rows[-1]["_id"]
            for row in rows:
                document = records.with_wish(json.loads(row["document"]), row.get("cancel_at"))
                yield {"kind": "job", "job": row["_id"], "document": document}
                async for record in records.records_of(self, JobId(row["_id"])):
                    yield record
        async for entry in self.ledger.export():
            yield records.entry_record(entry)

    # ---- the way to the server

    async def _now(self) -> datetime:
        """Return the server's time: a little old when it is used, so that a lease judged by it to have run out has."""
        asked = await self._database["meta"].aggregate([{"$match": {"_id": "layout"}}, {"$project": {"now": "$$NOW"}}])
        now: datetime = (await asked.next())["now"]
        return now

    def _mark(self) -> str:
        return f"{self._me}:{next(self._marks)}"

    def _news(self, fields: Document) -> Document:
        return {"$set": {**fields, "by": self._mark()}, "$currentDate": {"changed": True}}

    def _too_new(self) -> DocumentTooNew:
        return DocumentTooNew(f"the job store {self._place} was made by a newer version: upgrade remote-trainer")

    @contextlib.asynccontextmanager
    async def _using(self) -> AsyncIterator[None]:
        """Reach a store that has our layout."""
        async with self._reaching():
            if not self._ready:
                found = await self._database["meta"].find_one({"_id": "layout"})
                if found is None or found["version"] < LAYOUT:
                    raise ConfigError(f"the job store {self._place} is not prepared: run `remote-trainer db migrate`")
                if found["version"] > LAYOUT:
                    raise self._too_new()
                self._ready = True
            yield

    @contextlib.asynccontextmanager
    async def _reaching(self) -> AsyncIterator[None]:
        """Turn the client's errors into ours, and bring back a cancellation that it has swallowed.

        It calls asyncio.wait_for, which in Python 3.11 returns a result that comes at the same moment as the cancellation: the task
        would go on, and whoever waits for its end would wait for ever.
        """
        if self._closed:
            raise StoreUnavailable(f"the job store {self._place} has been closed")
        task = asyncio.current_task()
        cancels = task.cancelling() if task else 0
        try:
            yield
            if task and task.cancelling() > cancels:
                raise asyncio.CancelledError
        except PyMongoError as error:
            if self._closed:
                raise StoreUnavailable(f"the job store {self._place} has been closed") from error
            # A failed batch carries everything it wanted to write, logs included: no such thing in a traceback.
            raise translated(error, self._place) from (None if isinstance(error, BulkWriteError) else error)


def _in(lease_s: float) -> Document:
    return {"$add": ["$$NOW", round(lease_s * 1000)]}


def _job(row: Mapping[str, Any]) -> Job:
    return job_from_document(records.with_wish(json.loads(row["document"]), row.get("cancel_at")))
