"""The Store of a simulated life: leases, fencing tokens, compare-and-set; in memory, each verb atomic.

Rules for editing: the contract is that of ``ports.Store``; verbs no simulated worker needs are left out. Delays and outages are dealt
by ports.py, promises are checked by ``on_save``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from remote_trainer.errors import InvariantBroken
from remote_trainer.model import Event, Job, JobId, Lease, Token
from remote_trainer.ports import Change, Renewal
from remote_trainer.testing.sim.loop import VirtualClock


@dataclass
class Row:
    """One job as the store keeps it."""

    job: Job
    token: int = 0
    holder: str = ""
    expires: float = 0.0
    events: list[Event] = field(default_factory=list)
    logs: dict[str, bytearray] = field(default_factory=dict)
    saves: int = 0


class SimStore:
    """All jobs; ``now`` is the store's own clock, ``on_save`` sees each document before and after a save."""

    def __init__(self, now: Callable[[], float], on_save: Callable[[Job, Job], None]) -> None:
        self._now, self._on_save = now, on_save
        self.rows: dict[JobId, Row] = {}

    def submit(self, job: Job) -> None:
        """Insert a job."""
        self.rows[job.id] = Row(job)

    def request_cancel(self, job_id: JobId) -> bool:
        """Note the user's wish; False if the job has ended."""
        row = self.rows[job_id]
        if not row.job.phase.terminal:
            row.job = replace(row.job, cancel_requested_at=VirtualClock().now())
        return not row.job.phase.terminal

    def claim(self, holder: str, *, lease_s: float, limit: int) -> Sequence[Lease]:
        """Take unfinished jobs whose lease ran out."""
        free = [row for row in self.rows.values() if not row.job.phase.terminal and row.expires <= self._now()]
        for row in free[:limit]:
            row.token, row.holder, row.expires = row.token + 1, holder, self._now() + lease_s
        return [Lease(job=row.job, token=Token(row.token), holder=holder) for row in free[:limit]]

    def renew(self, holder: str, leases: Mapping[JobId, Token], *, lease_s: float) -> Renewal:
        """Extend leases that are still the holder's."""
        held = [row for job_id, token in leases.items() if self._live(row := self.rows[job_id], token) and row.holder == holder]
        for row in held:
            row.expires = self._now() + lease_s
        cancelling = frozenset(row.job.id for row in held if row.job.cancel_requested_at)
        return Renewal(held=frozenset(row.job.id for row in held), cancelling=cancelling)

    def release(self, leases: Mapping[JobId, Token]) -> None:
        """Give leases back."""
        for job_id, token in leases.items():
            if self._live(self.rows[job_id], token):
                self.rows[job_id].expires = 0.0

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
        for chunk in change.logs:
            log = row.logs.setdefault(chunk.stream, bytearray())
            if chunk.offset > len(log):
                raise InvariantBroken(f"a gap in {chunk.stream}: {len(log)} bytes there, the next begin at {chunk.offset}")
            log += chunk.data[len(log) - chunk.offset :]
        row.events += change.events
        if change.job is not None:
            row.saves += 1
            before, row.job = row.job, replace(change.job, cancel_requested_at=row.job.cancel_requested_at)
            self._on_save(before, row.job)
