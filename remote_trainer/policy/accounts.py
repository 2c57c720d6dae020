"""What a job's account entries are: what is set aside for it, what of that comes back, and what the provider billed.

Rules for editing: as in money.py. The same job always gives the same entries, with the same ids: posted twice they count once.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from decimal import Decimal

from remote_trainer.model import Attempt, Entry, EntryKind, Job, Reason, Verdict
from remote_trainer.policy.money import attempt_cost, job_cost, rentals
from remote_trainer.ports import Charge

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


# ---------------------------------------------------------------------------------------------------- the provider's bill

_DIFFERS, _WORTH_TELLING = Decimal("0.1"), Decimal("0.05")  # so much of the meter, and so many US dollars


def charged(job: Job, driver: str, charges: Iterable[Charge], posted: Iterable[Entry], at: datetime) -> list[Entry]:
    """Return the entries that bring what was posted for a job's machines up to what a driver's provider has billed.

    Each is numbered within its machine and day: of workers that look at the same time only one posts it.
    """
    counts: Counter[str] = Counter()
    sums: defaultdict[str, Decimal] = defaultdict(Decimal)
    for entry in posted:
        if entry.kind is EntryKind.CHARGE:
            subject = entry.id.rpartition("/")[0]
            counts[subject] += 1
            sums[subject] += entry.amount
    found = []
    for charge in charges:
        subject = f"{EntryKind.CHARGE}/{driver}/{charge.instance}/{charge.day:%Y-%m-%d}"
        amount = charge.amount.quantize(Decimal("0.000001")) - sums[subject]
        if amount:
            note = f"{driver} billed {charge.amount:.4f} for {charge.day:%Y-%m-%d}"
            name = f"{subject}/{counts[subject] + 1}"
            found.append(replace(_entry(job, EntryKind.CHARGE, amount, note), id=name, at=at, machine=charge.instance))
    return found


def misbilled(job: Job, billed: Decimal) -> Decimal:
    """Return by how much a provider's bill for an ended job differs from our meter, below zero for too little; 0 if that is nothing.

    The meter counts more minutes after the end than most providers do: not to bill those is no difference.
    """
    metered = job_cost(job, job.finished_at or job.created_at)
    tails = sum((each.tail for attempt in job.attempts for each in rentals(attempt)), Decimal(0))
    differs = billed - metered if billed > metered else min(Decimal(0), billed - (metered - tails))
    return differs if abs(differs) > max(_WORTH_TELLING, metered * _DIFFERS) else Decimal(0)
