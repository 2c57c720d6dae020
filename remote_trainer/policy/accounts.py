"""What a job's account entries are: what is set aside for it, and what of that comes back.

Rules for editing: as in money.py. The same job always gives the same entries, with the same ids: posted twice they count once.
"""

from __future__ import annotations

from decimal import Decimal

from remote_trainer.model import Attempt, Entry, EntryKind, Job, Reason, Verdict
from remote_trainer.policy.money import attempt_cost, job_cost

#: Attempts that failed so cost the tenant nothing, as those that were lost.
_NOT_THE_TENANTS = frozenset(
    {
        Reason.NO_CAPACITY,
        Reason.PROVISIONING_FAILED,
        Reason.HOST_UNSUITABLE,
        Reason.HOST_KEY_MISMATCH,
        Reason.INTERNAL,
    }
)


def reservation(job: Job) -> tuple[Entry, ...]:
    """Return what is to be posted with the job's submit; nothing for a tenant without an account."""
    if not job.reserved:
        return ()
    return (_entry(job, EntryKind.RESERVE, -job.reserved, f"{job.plan.tool}: all that {job.name} may cost"),)


def settlement(job: Job) -> tuple[Entry, ...]:
    """Return what is to be posted with the save that ends the job.

    The tenant pays what its attempts cost, and never more than was set aside; those that were lost by no fault of the tenant's are free.
    """
    if not job.reserved or not job.phase.terminal or job.finished_at is None:
        return ()
    cost = job_cost(job, job.finished_at)
    lost = [attempt for attempt in job.attempts if _is_free(attempt)]
    free = sum((attempt_cost(attempt, job.finished_at) for attempt in lost), Decimal(0))
    paid = max(Decimal(0), min(cost - free, job.reserved))
    settled = _entry(job, EntryKind.SETTLE, job.reserved - cost, f"{job.phase}: cost {cost:.4f} of {job.reserved:.2f} set aside")
    if cost == paid:
        return (settled,)
    why = [f"attempt {attempt.number} was lost ({attempt.reason})" for attempt in lost]
    why += ["beyond what was set aside"] if cost - free > paid else []
    return settled, _entry(job, EntryKind.REFUND, cost - paid, "; ".join(why))


def _is_free(attempt: Attempt) -> bool:
    if attempt.verdict is Verdict.LOST:
        return True
    return attempt.verdict is Verdict.FAILED and attempt.reason in _NOT_THE_TENANTS


def _entry(job: Job, kind: EntryKind, amount: Decimal, note: str) -> Entry:
    at = job.finished_at or job.created_at
    return Entry(id=f"{kind}/{job.id}", tenant=job.tenant, kind=kind, amount=amount, at=at, job=job.id, note=note)
