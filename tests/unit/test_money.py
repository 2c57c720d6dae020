"""What a job has cost by our own meter, when its cap is reached, and what it will have cost."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_trainer.cli import out
from remote_trainer.model import Attempt, HostFacts, Input, Instance, InstanceState, Job, Limits, Offer, Phase
from remote_trainer.policy import (
    attempt_cost,
    cost_between,
    cost_of,
    estimate,
    job_cost,
    limit,
    needed,
    projected_cost,
    spent_at,
)
from remote_trainer.policy.forecast import FETCH_S
from remote_trainer.policy.money import BILLED_TAIL_S
from remote_trainer.worker.history import events_of
from tests.unit.life import NOW, RENTED, Life, a_job

D = Decimal
#: 0.45 an hour, of which 0.09 for the disk; 3 cents a GB in, 1 cent out.
OFFER = Offer(
    id="o1",
    driver="test",
    price_per_hour=D("0.45"),
    disk_per_hour=D("0.09"),
    price_per_gb_in=D("0.03"),
    price_per_gb_out=D("0.01"),
)


def after(minutes: float) -> timedelta:
    return timedelta(minutes=minutes)


def an_attempt(number: int = 1, **fields: object) -> Attempt:
    begun = Attempt(number=number, label=f"rt-dep-j1-a{number}", started_at=NOW, offer=OFFER, requested_at=NOW)
    return replace(begun, **fields)  # type: ignore[arg-type]


def a_job_of(*attempts: Attempt, **fields: object) -> Job:
    return replace(a_job(), phase=Phase.EXECUTING, attempts=attempts, **fields)  # type: ignore[arg-type]


READY = {"ready_at": NOW + after(10)}
BYTES = {"bytes_in": 2 * 10**9, "bytes_out": 5 * 10**8}
SEEN = Instance(id="i1", label="rt-dep-j1-a1", price_per_hour=D("0.60"), disk_per_hour=D("0.12"))

#: What happened, minutes, and what it costs: computed by hand.
TABLE: dict[str, tuple[dict[str, object], float, str]] = {
    "nothing asked for yet": ({"requested_at": None}, 60, "0"),
    "booting: the disk alone": ({}, 20, "0.03"),
    "ready: five minutes more are owed at once": (READY, 10, "0.045"),  # 10 min disk 0.015, 5 min machine 0.03
    "an hour after it was ready": (READY, 70, "0.495"),  # 70 min disk 0.105, 65 min machine 0.39
    "gone after an hour": ({**READY, "ended_at": NOW + after(70)}, 700, "0.495"),
    "given back before it was ready": (  # 30 min disk 0.045; from then on it may be ready: 2 + 5 min machine 0.042
        {"releasing_at": NOW + after(28), "ended_at": NOW + after(30)},
        700,
        "0.087",
    ),
    "ended by a clock that is behind": (  # as if it had ended when it was ready: 10 min disk 0.015, 5 min machine 0.03
        {**READY, "ended_at": NOW - after(30)},
        700,
        "0.045",
    ),
    "never ready": ({"ended_at": NOW + after(30)}, 700, "0.045"),
    "with traffic": ({**READY, **BYTES}, 70, "0.56"),  # and 0.06 in, 0.005 out
    "at the price that the instance has": ({**READY, "instance": SEEN}, 70, "0.66"),  # 70 min disk 0.14, 65 min machine 0.52
    "an instance that tells no price": ({**READY, "instance": replace(SEEN, price_per_hour=D(0))}, 70, "0.495"),
    "a raised bid": ({**READY, "instance": replace(SEEN, price_per_hour=D("0.21")), "raised_at": NOW}, 70, "0.4975"),
    "of an older version": ({"facts": HostFacts(incarnation="i", boot="b")}, 60, "0.48"),  # 60 min disk 0.09, 65 min machine 0.39
    "a race, won after 12 minutes": (
        {**READY, "rivals": (replace(OFFER, price_per_hour=D("0.99")),), "rivals_gone_at": NOW + after(12)},
        70,
        "0.618",  # and 12 min disk 0.018, 7 min machine 0.105
    ),
    "a race that is still on": ({**READY, "rivals": (OFFER,)}, 20, "0.24"),  # twice: 20 min disk 0.03, 15 min machine 0.09
}


@pytest.mark.parametrize("case", TABLE)
def test_the_meter_says_what_is_computed_by_hand(case: str) -> None:
    """Disk from the request until gone, the machine from ready until five minutes after, every byte both ways."""
    fields, minutes, cost = TABLE[case]
    attempt = an_attempt(**fields)
    assert attempt_cost(attempt, NOW + after(minutes)) == D(cost)


_minutes = st.integers(0, 10_000)
_prices = st.decimals(min_value=0, max_value=20, places=6)


@st.composite
def attempts(draw: st.DrawFn) -> Attempt:
    """Return an attempt in any order of what can happen."""
    price, disk = draw(_prices), draw(_prices)
    offer = replace(OFFER, price_per_hour=price, disk_per_hour=min(price, disk), price_per_gb_in=draw(_prices))
    asked = draw(_minutes)
    ready = draw(st.none() | st.integers(asked, 10_000))
    ended = draw(st.none() | st.integers(ready or asked, 10_000))
    return an_attempt(
        offer=offer,
        requested_at=NOW + after(asked),
        ready_at=None if ready is None else NOW + after(ready),
        ended_at=None if ended is None else NOW + after(ended),
        rivals=tuple(replace(offer, price_per_hour=each) for each in draw(st.lists(_prices, max_size=2))),
        instance=draw(st.none() | st.builds(replace, st.just(SEEN), price_per_hour=_prices)),
        bytes_in=draw(st.integers(0, 10**12)),
    )


@given(attempts(), _minutes, _minutes)
@settings(max_examples=60, deadline=None)
def test_cost_never_shrinks_with_time_and_is_never_negative(attempt: Attempt, one: int, other: int) -> None:
    """Whatever happened when: later is not cheaper, nothing is earned, and after the end nothing is added."""
    sooner, later = NOW + after(min(one, other)), NOW + after(max(one, other))
    assert D(0) <= attempt_cost(attempt, sooner) <= attempt_cost(attempt, later)
    if attempt.ended_at is not None:
        assert attempt_cost(attempt, attempt.ended_at) == attempt_cost(attempt, attempt.ended_at + after(99999))


@given(st.lists(attempts(), max_size=4), _minutes, _minutes)
@settings(max_examples=40, deadline=None)
def test_a_job_costs_what_its_attempts_cost_rounded_once(found: list[Attempt], one: int, other: int) -> None:
    """The sum is of exact costs, and what falls into two times that follow each other is what falls into both."""
    job, at = a_job_of(*found), NOW + after(one)
    assert job_cost(job, at) == sum((cost_of(each, at).exact for each in found), D(0)).quantize(D("0.000001"))
    middle, end = NOW + after(min(one, other)), NOW + after(max(one, other))
    assert cost_between(job, NOW - after(1), end) == cost_between(job, NOW - after(1), middle) + cost_between(job, middle, end)


@given(attempts(), st.decimals(min_value="0.01", max_value=50, places=2))
@settings(max_examples=60, deadline=None)
def test_the_cap_holds_with_the_end_and_the_artifacts(attempt: Attempt, cap: Decimal) -> None:
    """Stopped when the cap says so, and gone as long after as fetching takes, a job has cost its cap, and not more."""
    attempt = replace(
        attempt,
        ended_at=None,
        ready_at=attempt.ready_at or attempt.requested_at,
        offer=replace(attempt.offer, price_per_gb_out=D(0)),
    )  # type: ignore[type-var]
    job = a_job_of(attempt, limits=Limits(max_cost=cap))
    reached = spent_at(job)
    if reached is None or reached <= attempt.started_at or reached > NOW + timedelta(days=3000):
        return
    whole = job_cost(job, reached + timedelta(seconds=FETCH_S))
    assert abs(whole - cap) < D("0.0001")


def test_a_cap_that_the_end_alone_uses_up_is_reached_at_once() -> None:
    """Where five minutes of tail and of fetching cost more than the cap, nothing is begun."""
    job = a_job_of(an_attempt(**READY), limits=Limits(max_cost=D("0.05")))
    assert spent_at(job) == NOW


def test_bandwidth_brings_the_cap_nearer() -> None:
    """What was brought to the machine, and what is still to be fetched from it, is spent."""
    bare = a_job_of(an_attempt(**READY), limits=Limits(max_cost=D(1)))
    busy = replace(bare, attempts=(an_attempt(**READY, **BYTES),))
    one, other = limit(bare), limit(busy)
    assert one is not None and other is not None
    # 2 GB in cost 6 cents; of the one GB that is expected to be fetched half has been: the sum stays the same.
    assert (one[0] - other[0]).total_seconds() == pytest.approx(0.06 / 0.45 * 3600)


def test_the_machines_real_price_counts() -> None:
    """A listing that shows another price than the offer had moves the cap."""
    life = Life(a_job(limits=Limits(max_cost=D(1))), RENTED)
    life.tick()
    life.see(offer=OFFER)
    life.see(created=replace(SEEN, state=InstanceState.STARTING, price_per_hour=D("0.45")))
    life.later(600)
    assert life.job.attempts[0].ready_at is None
    life.see(instances=(SEEN,), instances_at=life.now)
    assert life.job.attempts[0].ready_at == life.now
    assert attempt_cost(life.job.attempts[0], life.now) == D("0.06")  # 10 min disk 0.02, 5 min machine 0.04


# ------------------------------------------------------------------------------------------------------------- forecasts

RUNNING = an_attempt(ready_at=NOW, executing_at=NOW)


@pytest.mark.parametrize(
    ("values", "left_s"),
    [({"eta_s": 1800.0, "progress": 0.9}, 1800), ({"progress": 0.25}, 1800), ({}, None), ({"progress": 0.001}, None)],
)
def test_the_projection_follows_what_the_step_says(values: dict[str, float], left_s: float | None) -> None:
    """Its own word counts first, then its progress; without either nothing is said."""
    now = NOW + after(10)
    whole = projected_cost(a_job_of(RUNNING), values, now)
    if left_s is None:
        assert whole is None
    else:
        hours = D(600 + left_s + FETCH_S) / 3600
        assert whole == (D("0.45") * hours + D("0.36") * D(BILLED_TAIL_S) / 3600 + D("0.01")).quantize(D("0.000001"))


def test_without_progress_the_tools_expectation_counts() -> None:
    """Two hours on a GPU of speed 1 are one on one that is twice as fast."""
    job = a_job_of(replace(RUNNING, offer=replace(OFFER, speed=2.0)))
    job = replace(job, plan=replace(job.plan, expected_hours=2.0))
    assert projected_cost(job, {}, NOW) == projected_cost(job, {"eta_s": 3600.0}, NOW)


def test_a_projection_stays_below_the_jobs_limits() -> None:
    """``max_cost`` and ``max_hours`` stop it before; what is spent already is not taken back."""
    long = {"eta_s": 1e6}
    assert projected_cost(a_job_of(RUNNING, limits=Limits(max_cost=D(2))), long, NOW) == D(2)
    hour = projected_cost(a_job_of(RUNNING, limits=Limits(max_hours=1)), long, NOW)
    assert hour == projected_cost(a_job_of(RUNNING), {"eta_s": 3600.0}, NOW)
    late = NOW + after(6000)
    assert projected_cost(a_job_of(RUNNING, limits=Limits(max_cost=D(2))), long, late) == job_cost(a_job_of(RUNNING), late)


def test_an_ended_job_costs_what_it_costs() -> None:
    """Nothing is left to be projected."""
    done = replace(a_job_of(replace(RUNNING, ended_at=NOW + after(60))), phase=Phase.DONE)
    assert projected_cost(done, {"eta_s": 99.0}, NOW + after(90)) == job_cost(done, NOW + after(90)) == D("0.48")


def test_an_offer_is_worth_renting_for_an_hour_or_the_expected_run() -> None:
    """Whichever is less, boot, tail and bandwidth included."""
    job = a_job()
    hour = D("0.45") * D(3600 + BILLED_TAIL_S) / 3600 + D("0.01")
    assert needed(OFFER, estimate(job)) == hour
    short = replace(job, plan=replace(job.plan, expected_hours=0.1), inputs=(_data(10**9),))
    assert needed(OFFER, estimate(short)) == D("0.45") * D(360 + BILLED_TAIL_S) / 3600 + D("0.01") + D("0.03")


def _data(size: int) -> Input:
    return Input(name="dataset", source="d", digest="d" * 64, size=size, files=1, chunks=())


# ------------------------------------------------------------------------------------------------------------- for people


def test_a_machine_that_is_given_back_tells_what_it_cost() -> None:
    """The event names the parts; a borrowed machine has none to tell."""
    running = a_job_of(an_attempt(**READY, **BYTES))
    ended = a_job_of(an_attempt(**READY, **BYTES, ended_at=NOW + after(70)), an_attempt(2, requested_at=None))
    [told] = [event for event in events_of(running, ended, NOW) if event.kind == "cost"]
    assert told.message == "attempt 1 cost $0.5600: machine $0.3900, disk $0.1050, traffic $0.0650"
    assert not [event for event in events_of(ended, ended, NOW) if event.kind == "cost"]
    free = a_job_of(an_attempt(offer=Offer(id="own", driver="local"), ended_at=NOW + after(70)))
    assert not [event for event in events_of(running, free, NOW) if event.kind == "cost"]


def test_cost_is_shown_so_far_and_of_the_whole() -> None:
    """Nothing costs nothing; a whole that is not more than what was spent says nothing."""
    assert [out.cost("0.000000"), out.cost("0.42"), out.cost("0.42", "1.204"), out.cost(D("0.42"), D("0.42"))] == [
        "",
        "$0.42",
        "$0.42 of about $1.20",
        "$0.42",
    ]
