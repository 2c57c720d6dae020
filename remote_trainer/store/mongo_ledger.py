"""The ledger of the shared store.

How posting is atomic and happens once, without a transaction: an account is one document, replaced by guarded updates (``_id`` and a
count of changes). It keeps the balance and, in its ``tail``, the entries of the newest change; the next change first copies them to the
collection ``ledger``, where an entry's id is the key, and then replaces the tail. So what was ever posted is in the tail or in the
collection, and whoever posts looks in both first; if somebody else was faster, the guard says so.

Two documents are never written at once, so what belongs together is led to its end by whoever comes next:

- A job's save puts entries into the job's own document. They are posted after that, and then taken out of there.
- A submit first draws on the account, where it leaves a note that it is ``opening`` a job, then inserts the job, then takes the note
  away. A note that is an hour old tells of a submit that died: if there is no such job, what it drew is given back.

Rules for editing: as in mongo.py. Readers first lead to its end what is unfinished.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal

from pymongo import ASCENDING
from pymongo.errors import DuplicateKeyError

from remote_trainer.document import from_json, to_json
from remote_trainer.errors import Conflict
from remote_trainer.model import Entry, EntryKind, Job, JobId
from remote_trainer.store import records
from remote_trainer.store.mongo_layout import Database, Document, copy_new

#: How old a note of a submit must be to tell of one that died: far longer than any submit takes.
_DEAD = timedelta(hours=1)


class MongoLedger:
    """The accounts of one database."""

    def __init__(
        self, database: Database, using: Callable[[], AbstractAsyncContextManager[None]], now: Callable[[], Awaitable[datetime]]
    ) -> None:
        self._database, self._using, self._now = database, using, now
        self._accounts = database["accounts"]

    async def post(self, entries: Sequence[Entry]) -> None:
        """Add entries, but for those that are there."""
        async with self._using():
            await self._post(entries)

    async def balance(self, tenant: str) -> Decimal | None:
        """Return what a tenant has left; None without an account."""
        async with self._using():
            await self._finish(tenant)
            account = await self._accounts.find_one({"_id": tenant, "opened": True}, {"micros": 1})
        return records.dollars(account["micros"]) if account else None

    async def balances(self) -> Mapping[str, Decimal]:
        """Return what every tenant with an account has left."""
        async with self._using():
            await self.collect({})
            rows = await self._accounts.find({"opened": True}, {"micros": 1}).sort("_id", ASCENDING).to_list()
        return {row["_id"]: records.dollars(row["micros"]) for row in rows}

    async def entries(self, tenant: str, *, job: JobId | None = None, after: int = 0, limit: int = 1000) -> Sequence[Entry]:
        """Return a tenant's entries in order."""
        async with self._using():
            await self._finish(tenant)
            account = await self._accounts.find_one({"_id": tenant}, {"tail": 1})  # first: what moves meanwhile is seen twice
            wanted = {"tenant": tenant, "seq": {"$gt": after}, **({} if job is None else {"job": job})}
            found = await self._database["ledger"].find(wanted).sort("seq", ASCENDING).limit(limit).to_list()
        newest = [row for row in account["tail"] if row["seq"] > after and job in (None, row["job"])] if account else []
        bodies = {row["seq"]: row["body"] for row in (*found, *newest)}
        return [replace(from_json(Entry, body), seq=seq) for seq, body in sorted(bodies.items())[:limit]]

    async def export(self) -> AsyncIterator[Entry]:
        """Yield every tenant's entries."""
        async with self._using():
            await self.collect({})
            tenants = await self._accounts.distinct("_id")
        for tenant in sorted(tenants):
            after = 0
            while found := await self.entries(tenant, after=after):
                after = found[-1].seq
                for entry in found:
                    yield entry

    # ---- what goes with jobs

    @contextlib.asynccontextmanager
    async def drawing(self, job: Job, entries: Sequence[Entry]) -> AsyncIterator[None]:
        """Add entries for a job that is inserted meanwhile; Overdrawn if the balance would be below zero. A Conflict takes them back."""
        if not entries:
            yield
            return
        await self._finish(job.tenant)
        await self._change(job.tenant, entries, opening=job.id)
        try:
            yield
        except Conflict:
            await self._close(job.tenant, job.id, entries)
            raise
        await self._close(job.tenant, job.id, entries)

    async def collect(self, wanted: Document) -> None:
        """Post what saves have left in jobs' documents."""
        for row in await self._database["jobs"].find({**wanted, "entries": {"$exists": True}}, {"entries": 1}).to_list():
            await self._post([from_json(Entry, body) for body in row["entries"]])
            # Only if nothing was added meanwhile; then the next one does it.
            await self._database["jobs"].update_one({"_id": row["_id"], "entries": row["entries"]}, {"$unset": {"entries": ""}})

    async def _finish(self, tenant: str) -> None:
        """Lead to its end what somebody began for this tenant and did not finish."""
        await self.collect({"tenant": tenant})
        account = await self._accounts.find_one({"_id": tenant, "opening": {"$exists": True, "$ne": []}}, {"opening": 1})
        if account is None:
            return
        now = await self._now()
        for note in account["opening"]:
            if now - note["at"] >= _DEAD:
                await self._close(tenant, note["job"], [from_json(Entry, body) for body in note["drawn"]])

    async def _close(self, tenant: str, job_id: str, drawn: Sequence[Entry]) -> None:
        """Take the note of a submit away; what it drew is given back unless the job is there."""
        if await self._database["jobs"].find_one({"_id": job_id}, {"_id": 1}) is None:
            await self._change(tenant, [_undone(entry) for entry in drawn])
        await self._accounts.update_one({"_id": tenant}, {"$pull": {"opening": {"job": job_id}}})

    # ---- changing an account

    async def _post(self, entries: Sequence[Entry]) -> None:
        for tenant in dict.fromkeys(entry.tenant for entry in entries):
            await self._change(tenant, [entry for entry in entries if entry.tenant == tenant])

    async def _change(self, tenant: str, entries: Sequence[Entry], *, opening: JobId | None = None) -> None:
        """Add those entries to a tenant's account that are not there. ``opening`` a job, the balance must not be below zero then."""
        while True:
            account = await self._accounts.find_one({"_id": tenant}) or _new_account(tenant)
            new = await self._unknown(account, entries)
            if not new:
                return
            drawn = sum(records.micros(entry.moves) for entry in new)
            if opening is not None and account["micros"] + drawn < 0:
                raise records.overdrawn(tenant, account["micros"], -drawn)
            await copy_new(self._database["ledger"], account["tail"])
            if await self._replace(account, new, drawn, opening):
                return

    async def _unknown(self, account: Document, entries: Sequence[Entry]) -> list[Entry]:
        by_id = {entry.id: entry for entry in entries}
        known = {row["_id"] for row in account["tail"]}
        known |= {row["_id"] async for row in self._database["ledger"].find({"_id": {"$in": list(by_id)}}, {"_id": 1})}
        return [entry for entry in by_id.values() if entry.id not in known]

    async def _replace(self, account: Document, new: Sequence[Entry], drawn: int, opening: JobId | None) -> bool:
        """Put the next state of an account; False if somebody else was faster."""
        tenant, seq = account["_id"], account["seq"]
        fields: Document = {
            "version": account["version"] + 1,
            "seq": seq + len(new),
            "micros": account["micros"] + drawn,
            "opened": account["opened"] or any(entry.kind is not EntryKind.CHARGE for entry in new),
            "tail": [_row(replace(entry, seq=seq + place)) for place, entry in enumerate(new, 1)],
        }
        update: Document = {"$set": fields}
        if opening is not None:
            note = {"job": opening, "at": await self._now(), "drawn": [to_json(entry).decode() for entry in new]}
            update["$push"] = {"opening": note}
        try:
            done = await self._accounts.update_one(
                {"_id": tenant, "version": account["version"]}, update, upsert=not account["version"]
            )
        except DuplicateKeyError:  # another one made it
            return False
        return bool(done.matched_count or done.upserted_id)


def _new_account(tenant: str) -> Document:
    return {"_id": tenant, "version": 0, "seq": 0, "micros": 0, "opened": False, "tail": []}


def _row(entry: Entry) -> Document:
    return {"_id": entry.id, "tenant": entry.tenant, "job": entry.job, "seq": entry.seq, "body": to_json(entry).decode()}


def _undone(entry: Entry) -> Entry:
    return replace(
        entry, id=f"{entry.id}/undone", kind=EntryKind.REFUND, amount=-entry.amount, note="the job was not queued", seq=0
    )
