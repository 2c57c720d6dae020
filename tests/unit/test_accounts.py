"""What a job sets aside of its tenant's account, and what of that comes back."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_trainer.model import Attempt, Entry, EntryKind, Job, Offer, Phase, Reason, Verdict
from remote_trainer.policy import charged, job_cost, misbilled, reservation, settlement
from remote_trainer.ports import Charge
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


# ---------------------------------------------------------------------------------------------------- the provider's bill

DAY = NOW.replace(hour=0)


def charge(amount: str, *, instance: str = "i1", days: int = 0) -> Charge:
    return Charge(instance=instance, label="rt-dep-j1-a1", day=DAY + days * after(1440), amount=D(amount))


def test_a_bill_that_grows_is_posted_by_its_differences() -> None:
    """By machine and day; what is known adds nothing, and a correction is one more entry."""
    job = ended()
    posted: list[Entry] = []
    for bill, news in [
        ([charge("0.10")], ["0.10"]),
        ([charge("0.10")], []),
        ([charge("0.25"), charge("1", instance="i2"), charge("2", days=1)], ["0.15", "1", "2"]),
        ([charge("0.20")], ["-0.05"]),
        ([charge("0.25")], ["0.05"]),
    ]:
        new = charged(job, "vastai", bill, posted, NOW)
        assert [entry.amount for entry in new] == [D(each) for each in news]
        assert not {entry.id for entry in new} & {entry.id for entry in posted}
        posted += new
    assert [entry.id for entry in posted][:2] == ["charge/vastai/i1/2026-01-01/1", "charge/vastai/i1/2026-01-01/2"]
    assert {(entry.kind, entry.job, entry.machine) for entry in posted} == {
        (EntryKind.CHARGE, "j1", "i1"),
        (EntryKind.CHARGE, "j1", "i2"),
    }


def test_of_two_auditors_one_posts() -> None:
    """They read the same before, and one of them a newer bill: their entries have one id, so the ledger keeps one of them."""
    job, posted = ended(), charged(ended(), "vastai", [charge("0.10")], [], NOW)
    one, other = (charged(job, "vastai", [charge(amount)], posted, NOW) for amount in ("0.30", "0.40"))
    assert one[0].id == other[0].id
    rest = charged(job, "vastai", [charge("0.40")], [*posted, *one], NOW)
    assert sum(entry.amount for entry in (*posted, *one, *rest)) == D("0.40")


@pytest.mark.parametrize(
    ("billed", "differs"),
    [("1.00", "0"), ("1.10", "0"), ("1.11", "0.11"), ("0.92", "0"), ("0.84", "0"), ("0.81", "-0.1067"), ("0", "-0.9167")],
)
def test_a_bill_that_differs_is_told(billed: str, differs: str) -> None:
    """By more than a tenth and five cents; our meter's minutes after the end need not be billed."""
    offer = replace(OFFER, disk_per_hour=D(0))
    ran = replace(attempt(55, DONE, Reason.COMPLETED), offer=offer, ready_at=NOW)  # 55 minutes, and 5 of tail: one dollar
    assert misbilled(ended(ran), D(billed)).quantize(D("0.0001")) == D(differs)


def test_cents_are_not_worth_telling() -> None:
    """However many times too high they are."""
    assert misbilled(ended(attempt(1, DONE, Reason.COMPLETED)), D("0.06")) == 0
