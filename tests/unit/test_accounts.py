"""What a job sets aside of its tenant's account, and what of that comes back."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_trainer.model import Attempt, EntryKind, Job, Offer, Phase, Reason, Verdict
from remote_trainer.policy import job_cost, reservation, settlement
from tests.unit.life import NOW, a_job
from tests.unit.test_money import after

D = Decimal
#: A dollar an hour, all of it from the request on.
OFFER = Offer(id="o1", driver="test", price_per_hour=D(1), disk_per_hour=D(1))


def attempt(minutes: int, verdict: Verdict, reason: Reason, number: int = 1) -> Attempt:
    return Attempt(
        number=number,
        label=f"rt-dep-j1-a{number}",
        started_at=NOW,
        offer=OFFER,
        requested_at=NOW,
        ended_at=NOW + after(minutes),
        verdict=verdict,
        reason=reason,
    )


def ended(*attempts: Attempt, phase: Phase = Phase.FAILED, reserved: str = "5") -> Job:
    return replace(a_job(), phase=phase, attempts=attempts, reserved=D(reserved), finished_at=NOW + after(600))


def moved(job: Job) -> dict[EntryKind, Decimal]:
    return {entry.kind: entry.amount for entry in (*reservation(job), *settlement(job))}


LOST, FAILED, DONE = Verdict.LOST, Verdict.FAILED, Verdict.SUCCEEDED
#: How the attempts ended, and what the tenant pays of one dollar an hour.
TABLE: dict[str, tuple[tuple[Attempt, ...], str]] = {
    "success": ((attempt(60, DONE, Reason.COMPLETED),), "1"),
    "the user's program failed": ((attempt(60, FAILED, Reason.STEP_FAILED),), "1"),
    "cancelled": ((attempt(30, Verdict.CANCELLED, Reason.CANCELLED_BY_USER),), "0.5"),
    "a limit of the job's": ((attempt(60, FAILED, Reason.COST_LIMIT),), "1"),
    "the user's data": ((attempt(6, FAILED, Reason.TRANSFER_FAILED),), "0.1"),
    "never a machine": ((attempt(0, FAILED, Reason.NO_CAPACITY),), "0"),
    "the machine did not come up": ((attempt(30, LOST, Reason.PROVISIONING_FAILED),), "0"),
    "the driver refused": ((attempt(30, FAILED, Reason.PROVISIONING_FAILED),), "0"),
    "our own bug": ((attempt(30, FAILED, Reason.INTERNAL),), "0"),
    "lost, then done": ((attempt(60, LOST, Reason.INSTANCE_GONE), attempt(30, DONE, Reason.COMPLETED, 2)), "0.5"),
    "lost three times": (tuple(attempt(30, LOST, Reason.EVICTED, number) for number in (1, 2, 3)), "0"),
    "dearer than its cap": ((attempt(330, DONE, Reason.COMPLETED),), "5"),
    "nothing was begun": ((), "0"),
}


@pytest.mark.parametrize("case", TABLE)
def test_who_pays(case: str) -> None:
    """The tenant pays what was used, never for what was lost or failed by our fault, and never more than was set aside."""
    attempts, pays = TABLE[case]
    job = ended(*attempts)
    entries = moved(job)
    assert -sum(entries.values()) == D(pays)
    assert entries[EntryKind.RESERVE] == -5
    assert entries[EntryKind.SETTLE] == 5 - job_cost(job, NOW + after(600))
    assert entries.get(EntryKind.REFUND, D(0)) == job_cost(job, NOW + after(600)) - D(pays)


def test_entries_say_what_they_are_for() -> None:
    """A person who reads the account sees the job, what it cost, and why something came back."""
    job = ended(attempt(60, LOST, Reason.EVICTED), attempt(330, DONE, Reason.COMPLETED, 2))
    settled, refunded = settlement(job)
    assert (settled.id, refunded.id) == ("settle/j1", "refund/j1")
    assert settled.note == "failed: cost 6.5000 of 5.00 set aside"
    assert refunded.note == "attempt 1 was lost (evicted); beyond what was set aside"
    assert {entry.tenant for entry in settlement(replace(job, tenant="rich"))} == {"rich"}


def test_without_an_account_or_before_the_end_nothing_is_posted() -> None:
    """Nor is anything for a job whose tenant has none."""
    job = ended(attempt(60, DONE, Reason.COMPLETED))
    assert moved(replace(job, reserved=D(0))) == {}
    assert not settlement(replace(job, phase=Phase.RELEASING, finished_at=None))


_verdicts = st.sampled_from(
    [(LOST, Reason.EVICTED), (FAILED, Reason.STEP_FAILED), (FAILED, Reason.INTERNAL), (DONE, Reason.COMPLETED)]
)


@given(st.lists(st.tuples(st.integers(0, 500), _verdicts), max_size=4), st.decimals(min_value="0.01", max_value=20, places=2))
@settings(max_examples=50, deadline=None)
def test_the_sum_is_between_nothing_and_what_was_set_aside(
    found: list[tuple[int, tuple[Verdict, Reason]]], reserved: Decimal
) -> None:
    """However a job ended, its tenant pays at most the reservation and gets nothing for free."""
    attempts = [attempt(minutes, *how, number=number) for number, (minutes, how) in enumerate(found, 1)]
    paid = -sum(moved(ended(*attempts, reserved=str(reserved))).values())
    assert 0 <= paid <= min(reserved, job_cost(ended(*attempts), NOW + after(600)))
