"""The Store of a simulated life: leases, fencing tokens, compare-and-set; in memory, each verb atomic.

Rules for editing: the contract is that of ``ports.Store``; verbs no simulated worker needs are left out. Delays and outages are dealt
by ports.py, promises are checked by ``World.promises``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from remote_trainer.document import from_json, to_json
from remote_trainer.errors import InvariantBroken, NotFound
from remote_trainer.model import SCHEMA, Entry, Event, Job, JobId, Lease, LogChunk, Token
from remote_trainer.ports import Change, Renewal
from remote_trainer.testing.sim.loop import EPOCH

if TYPE_CHECKING:
    from remote_trainer.testing.sim.world import World


@dataclass
class Row:
    """One job as the store keeps it."""

    job: Job
    token: int = 0
    holder: str = ""
    expires: float = 0.0
    cancelled_at: float | None = None
    events: list[Event] = field(default_factory=list)
    logs: dict[str, bytearray] = field(default_factory=dict)
    saves: int = 0


class SimStore:
    """All jobs."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.rows: dict[JobId, Row] = {}
        self.ledger: dict[str, Entry] = {}

    def submit(self, job: Job) -> None:
        """Insert a job."""
        self.rows[job.id] = Row(job)

    def get(self, job_id: JobId) -> Job:
        """Return a job as it was read from its document."""
        if job_id not in self.rows:
            raise NotFound(f"no job {job_id}")
        return from_json(Job, to_json(self.rows[job_id].job))

    def request_cancel(self, job_id: JobId) -> None:
        """Note the user's wish, unless the job has ended."""
        row = self.rows[job_id]
        if not row.job.phase.terminal:
            self._world.note("cancelled", job_id)
            row.cancelled_at = self._world.now
            row.job = replace(row.job, cancel_requested_at=self._clock())

    def claim(self, holder: str, *, lease_s: float, limit: int, schema: int = SCHEMA) -> Sequence[Lease]:
        """Take unfinished jobs whose lease ran out, of documents that are not newer than the worker."""
        now = self._world.now
        free = [
            row for row in self.rows.values() if row.expires <= now and not row.job.phase.terminal and row.job.schema <= schema
        ]
        for row in free[:limit]:
            if row.expires and row.holder != holder:
                self._world.note("lease-expires", f"{row.job.id}: from {row.holder} to {holder}")
            row.token, row.holder, row.expires = row.token + 1, holder, now + lease_s
            self._world.say(f"store: {holder} takes {row.job.id} ({row.job.phase}) with token {row.token}")
        return [Lease(job=self.get(row.job.id), token=Token(row.token), holder=holder) for row in free[:limit]]

    def renew(self, holder: str, leases: Mapping[JobId, Token], *, lease_s: float) -> Renewal:
        """Extend leases that are still the holder's."""
        held = [row for job_id, token in leases.items() if self._live(row := self.rows[job_id], token) and row.holder == holder]
        for row in held:
            row.expires = self._world.now + lease_s
        cancelling = frozenset(row.job.id for row in held if row.cancelled_at is not None)
        return Renewal(held=frozenset(row.job.id for row in held), cancelling=cancelling)

    def release(self, leases: Mapping[JobId, Token]) -> None:
        """Give leases back."""
        for job_id, token in leases.items():
            if self._live(self.rows[job_id], token):
                self.rows[job_id].expires = 0.0

    def holders(self) -> Sequence[str]:
        """Return who holds a lease."""
        return sorted({row.holder for row in self.rows.values() if row.expires > self._world.now})

    def evict(self, holder: str) -> int:
        """Let the leases of a dead process run out."""
        held = [row for row in self.rows.values() if row.holder == holder and row.expires > self._world.now]
        for row in held:
            row.expires = 0.0
        return len(held)

    def save(self, changes: Sequence[Change]) -> frozenset[JobId]:
        """Write what carries the current token; return the ids of what does not."""
        stale = {change.job_id for change in changes if not self._live(self.rows[change.job_id], change.token)}
        for change in changes:
            if change.job_id not in stale:
                self._write(self.rows[change.job_id], change)
        return frozenset(stale)

    def _live(self, row: Row, token: int) -> bool:
        return row.token == token

    def _write(self, row: Row, change: Change) -> None:
        self._world.promises.wrote(change.job_id, change.token)
        for chunk in change.logs:
            self._append(row, chunk)
        row.events += change.events
        for entry in change.entries:
            self.ledger.setdefault(entry.id, entry)
        if change.job is not None:
            row.saves += 1
            before, row.job = row.job, replace(change.job, cancel_requested_at=row.job.cancel_requested_at)
            self._world.promises.saved(row, before)

    def _append(self, row: Row, chunk: LogChunk) -> None:
        log = row.logs.setdefault(chunk.stream, bytearray())
        if chunk.offset > len(log):
            raise InvariantBroken(f"a gap in {chunk.stream}: {len(log)} bytes there, the next begin at {chunk.offset}")
        size = len(log)
        log += chunk.data[size - chunk.offset :]
        self._world.promises.appended(row.job.id, chunk.stream, log, size)

    def _clock(self) -> datetime:
        return EPOCH + timedelta(seconds=self._world.now)
