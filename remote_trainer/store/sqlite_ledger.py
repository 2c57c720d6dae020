"""The ledger of the embedded store: the ``entries`` table of its file.

Rules for editing: as in sqlite.py. An entry is only ever inserted; whether it is there already, the table itself knows.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from remote_trainer.document import from_json, to_json
from remote_trainer.model import Entry, JobId
from remote_trainer.store import records
from remote_trainer.store.connection import Connection


class SqliteLedger:
    """The accounts in one file."""

    def __init__(self, file: Connection, statements: Mapping[str, str]) -> None:
        self._file, self._sql = file, statements

    async def post(self, entries: Sequence[Entry]) -> None:
        """Add entries, but for those that are there."""
        await self._file.write(lambda database: add_entries(database, self._sql, entries))

    async def balance(self, tenant: str) -> Decimal | None:
        """Return what a tenant has left; None without an account."""
        rows = await self._rows("balances", tenant=tenant)
        return records.dollars(rows[0][1]) if rows else None

    async def balances(self) -> Mapping[str, Decimal]:
        """Return what every tenant with an account has left."""
        return {tenant: records.dollars(left) for tenant, left in await self._rows("balances", tenant=None)}

    async def entries(self, tenant: str, *, job: JobId | None = None, after: int = 0, limit: int = 1000) -> Sequence[Entry]:
        """Return a tenant's entries in order."""
        return await self._entries(tenant=tenant, job=job, after=after, limit=limit)

    async def export(self) -> AsyncIterator[Entry]:
        """Yield every tenant's entries."""
        after = 0
        while found := await self._entries(tenant=None, job=None, after=after, limit=1000):
            after = found[-1].seq
            for entry in found:
                yield entry

    def draw(self, database: sqlite3.Connection, tenant: str, entries: Sequence[Entry]) -> None:
        """Add entries within a transaction; Overdrawn, which ends it, if the tenant's balance would be below zero then."""
        add_entries(database, self._sql, entries)
        row = database.execute(self._sql["balances"], {"tenant": tenant}).fetchone() if entries else None
        if row is not None and row[1] < 0:
            wanted = -sum(records.micros(entry.moves) for entry in entries)
            raise records.overdrawn(tenant, row[1] + wanted, wanted)

    async def _entries(self, **wanted: Any) -> list[Entry]:
        return [replace(from_json(Entry, body), seq=seq) for seq, body in await self._rows("entries", **wanted)]

    async def _rows(self, statement: str, /, **values: Any) -> list[tuple[Any, ...]]:
        return await self._file.read(lambda database: database.execute(self._sql[statement], values).fetchall())


def add_entries(database: sqlite3.Connection, statements: Mapping[str, str], entries: Iterable[Entry]) -> None:
    """Add entries within a transaction, but for those that are there."""
    rows = (
        (entry.id, entry.tenant, entry.job, entry.kind, records.micros(entry.amount), to_json(entry).decode())
        for entry in entries
    )
    database.executemany(statements["add_entry"], rows)
