"""The durable truth about jobs. Rules for editing: as in the package's docstring."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

from remote_trainer.model import (
    Entry,
    Event,
    Job,
    JobId,
    Lease,
    LogChunk,
    Metric,
    Phase,
    Token,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Everything one save writes for one job: all of it, or (stale token) none of it."""

    job_id: JobId
    token: Token
    job: Job | None = None  # None: the document stays as it is
    events: tuple[Event, ...] = ()
    logs: tuple[LogChunk, ...] = ()
    metrics: tuple[Metric, ...] = ()
    entries: tuple[Entry, ...] = ()  # of the ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class JobQuery:
    """Which jobs to list, newest first. ``after`` is the ``cursor`` of the page before."""

    phases: frozenset[Phase] | None = None
    tenant: str | None = None
    name: str | None = None
    limit: int = 50
    after: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page of jobs; ``cursor`` is None on the last one."""

    jobs: tuple[Job, ...]
    cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewal:
    """What a renew found: still ours, and which of those the user wants cancelled."""

    held: frozenset[JobId]
    cancelling: frozenset[JobId]


class Ledger(Protocol):
    """Durable truth about tenants' money: entries are added and never changed. Errors as of the store, of which it is a part."""

    async def post(self, entries: Sequence[Entry]) -> None:
        """Add entries. One whose id is there already is left as it is: posting twice changes nothing. Any balance will do."""
        ...

    async def balance(self, tenant: str) -> Decimal | None:
        """Return what a tenant has left, US dollars; None for one that no entry but charges was ever posted for: it has no account."""
        ...

    async def balances(self) -> Mapping[str, Decimal]:
        """Return what every tenant with an account has left."""
        ...

    async def entries(self, tenant: str, *, job: JobId | None = None, after: int = 0, limit: int = 1000) -> Sequence[Entry]:
        """Return a tenant's entries (of one job) with ``seq > after`` in order."""
        ...


class Store(Protocol):
    """Durable truth about jobs. All verbs raise StoreUnavailable when it cannot be reached; nothing was written then, or all of it.

    A lease is judged by the store's clock only. Tokens are per job, start at 1 and grow by one with each claim. Documents newer than
    this program raise DocumentTooNew from ``get`` and are never handed out by ``claim``.
    """

    async def migrate(self) -> str:
        """Create or upgrade tables, indexes, validators.

        Idempotent. Returns a sentence on what it is ("sqlite 3.40.1, journal …").
        """
        ...

    async def close(self) -> None:
        """Release every resource. Idempotent."""
        ...

    async def deployment(self) -> str:
        """Return this store's id (6 lower-case letters/digits, made once): part of every instance label."""
        ...

    @property
    def ledger(self) -> Ledger:
        """Return the accounts of this store's tenants."""
        ...

    async def submit(self, job: Job, entries: Sequence[Entry] = ()) -> None:
        """Insert a QUEUED job, and entries of its tenant with it: both or nothing.

        Conflict if the id exists, or its name is that of an unfinished job of the same tenant. Overdrawn if the tenant's balance would be
        below zero with the entries, whoever else submits at the same time.
        """
        ...

    async def get(self, job_id: JobId) -> Job:
        """Return the job, ``cancel_requested_at`` included. NotFound if there is none."""
        ...

    async def find(self, query: JobQuery) -> Page:
        """Return a page of jobs, newest first; ids never repeat over the pages of an unchanged store."""
        ...

    async def claim(self, holder: str, *, lease_s: float, limit: int) -> Sequence[Lease]:
        """Take up to ``limit`` unfinished jobs that nobody holds (or whose lease ran out): priority, then age.

        One winner under any contention; each lease carries a token larger than any before for that job.
        """
        ...

    async def renew(self, holder: str, leases: Mapping[JobId, Token], *, lease_s: float) -> Renewal:
        """Extend all leases in one write. What is not in ``held`` is lost (taken over, or unknown): drop it at once.

        A lease that ran out but that nobody took is renewed.
        """
        ...

    async def release(self, leases: Mapping[JobId, Token]) -> None:
        """Give leases back at once, so that the next worker need not wait. Stale ones are ignored. Idempotent."""
        ...

    async def evict(self, holder: str) -> int:
        """Let every lease of ``holder`` run out now (its process is known to be dead). Returns how many."""
        ...

    async def holders(self) -> Sequence[str]:
        """Return all holders with a lease that has not run out."""
        ...

    async def save(self, changes: Sequence[Change]) -> frozenset[JobId]:
        """Write each change atomically under its token, all in one transaction where the backend can. Returns the stale ones' ids.

        Of a stale change nothing is written: no document, event, log, metric or entry. A log chunk must begin where the stream ends: one
        that begins earlier is cut to its new part (so a repeated write changes nothing); a gap raises InvariantBroken. An entry whose id
        is there is left as it is. ``cancel_requested_at`` of the document is ignored.
        """
        ...

    async def request_cancel(self, job_id: JobId) -> None:
        """Note the user's wish.

        Idempotent; NotFound if absent; Conflict if the job has ended. A QUEUED job nobody holds is still cancelled by a
        worker.
        """
        ...

    async def events(self, job_id: JobId, *, after: int = 0, limit: int = 1000) -> Sequence[Event]:
        """Return events with ``seq > after`` in order."""
        ...

    async def log_streams(self, job_id: JobId) -> Mapping[str, int]:
        """Return each log stream of the job with its size in bytes, in order of first write."""
        ...

    async def read_log(self, job_id: JobId, stream: str, *, offset: int = 0, limit: int = 1 << 20) -> bytes:
        """Return up to ``limit`` bytes from ``offset``; empty at the end or for an unknown stream."""
        ...

    async def metrics(self, job_id: JobId, *, after: int = 0, limit: int = 10000) -> Sequence[tuple[int, Metric]]:
        """Return (seq, metric) with ``seq > after`` in order."""
        ...

    def watch(self, job_id: JobId | None = None) -> AsyncGenerator[None, None]:
        """Yield once at the start and then whenever something another connection wrote may concern the job (or any job).

        Spurious wakes are allowed, missed ones are not: what was written before a wake is readable after it. Wakes come within tens of
        milliseconds, also across processes. Closing the iterator frees it.
        """
        ...

    def export(self) -> AsyncIterator[Mapping[str, Any]]:
        """Yield every record as a JSON-ready mapping with a ``kind`` (job, event, log (base64), metric, entry)."""
        ...
