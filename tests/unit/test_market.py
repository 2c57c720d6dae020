"""Which offer is taken: expected cost of the whole run, and no machine that failed somebody lately."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any, cast

import pytest

from remote_trainer.model import Attempt, Job, Limits, Offer, Reason, Strategy
from remote_trainer.policy import Estimate, Lot, estimate, expected_cost, expected_hours, is_avoided, pick, raised, with_bid
from remote_trainer.ports import JobQuery, Page
from remote_trainer.worker.market import Market, failed_machines
from tests.unit.test_lifecycle import NOW, a_job

RUN = Estimate(hours=2, gb_in=10, gb_out=1)
CHEAP = Offer(id="o1", driver="d", price_per_hour=Decimal("0.50"), machine="m1")
NOBODY: frozenset[str] = frozenset()


def taken(offers: Sequence[Offer], avoid: frozenset[str] = NOBODY, dice: float = 0.0) -> str:
    """Return the id of the offer that a job with one place takes."""
    lots = [Lot(offer=offer, avoided=is_avoided(offer, avoid)) for offer in offers]
    return pick(lots, RUN, Strategy.PREFERRED, dice=dice)[0].offer.id


def test_a_run_costs_rent_boot_tail_and_bandwidth() -> None:
    """Two hours, ten minutes of boot, five of tail at 0.60 $/h; 10 GB in and 1 GB out."""
    offer = replace(
        CHEAP, price_per_hour=Decimal("0.60"), boot_s=600, price_per_gb_in=Decimal("0.01"), price_per_gb_out=Decimal("0.02")
    )
    assert expected_cost(offer, RUN) == Decimal("1.47")


def test_a_faster_machine_may_be_the_cheaper_one() -> None:
    """Twice the price an hour and three times the speed."""
    fast = replace(CHEAP, id="o2", price_per_hour=Decimal("1.00"), speed=3.0)
    assert taken([CHEAP, fast]) == "o2"


def test_dear_traffic_counts() -> None:
    """A cheap hour with dear bandwidth loses against a machine without."""
    metered = replace(CHEAP, id="o2", price_per_hour=Decimal("0.40"), price_per_gb_in=Decimal("0.04"))
    assert taken([CHEAP, metered]) == "o1"


def test_a_narrow_line_costs_time() -> None:
    """Much data takes hours to a machine that promises little: it is paid meanwhile, so a dearer one with a wide line comes first."""
    narrow, wide = replace(CHEAP, mbit=50), replace(CHEAP, id="o2", price_per_hour=CHEAP.price_per_hour * 6 / 5, mbit=2000)
    hours = [expected_hours(offer, Estimate(hours=1, gb_in=45, gb_out=0)) for offer in (narrow, wide)]
    assert hours == [1 + 4, 1 + 0.2]
    lots = [Lot(offer=narrow), Lot(offer=wide)]
    assert pick(lots, Estimate(hours=1, gb_in=45), Strategy.PREFERRED, dice=0.9)[0].offer.id == "o2"


def test_dice_choose_among_what_costs_nearly_the_same() -> None:
    """Five at most, and none that is more than a tenth dearer than the cheapest."""
    offers = [replace(CHEAP, id=f"o{n}", price_per_hour=Decimal("0.50") + n * Decimal("0.001")) for n in range(8)]
    offers.append(replace(CHEAP, id="dear", price_per_hour=Decimal("0.60")))
    assert {taken(offers, dice=dice / 100) for dice in range(101)} == {f"o{n}" for n in range(5)}
    assert taken(offers[-1:], dice=0.99) == "dear"
    assert pick([], RUN, Strategy.PREFERRED, dice=0.5) == []


def test_what_failed_comes_last() -> None:
    """An offer, or another one of the same machine, is taken only if there is nothing else."""
    dearer = replace(CHEAP, id="o2", machine="m2", price_per_hour=Decimal("0.90"))
    assert taken([CHEAP, dearer], frozenset({"o1"})) == "o2"
    assert taken([CHEAP, dearer], frozenset({"m1"})) == "o2"
    assert taken([CHEAP], frozenset({"o1"})) == "o1"


LOTS = [
    Lot(offer=replace(CHEAP, id="near", price_per_hour=Decimal("0.60")), place=0),
    Lot(offer=replace(CHEAP, id="far", machine="m2", price_per_hour=Decimal("0.40")), place=1),
    Lot(offer=replace(CHEAP, id="fast", machine="m3", price_per_hour=Decimal("9.00"), speed=4.0), place=2),
]


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [(Strategy.PREFERRED, "near"), (Strategy.QUEUE, "near"), (Strategy.CHEAPEST, "far"), (Strategy.FASTEST, "fast")],
)
def test_strategies_choose_among_places(strategy: Strategy, expected: str) -> None:
    """In the order given, or over all of them: the least cost, or the earliest end."""
    assert [lot.offer.id for lot in pick(LOTS, RUN, strategy, dice=0.9)] == [expected]
    failed = [replace(lot, avoided=lot.offer.id == expected) for lot in LOTS]
    assert [lot.offer.id for lot in pick(failed, RUN, strategy, dice=0.9)] != [expected]


def test_rivals_are_other_machines_of_the_same_place() -> None:
    """Two parts of one machine break together, and a label is known to one provider."""
    same = Lot(offer=replace(CHEAP, id="part", price_per_hour=Decimal("0.61")), place=0)
    other = Lot(offer=replace(CHEAP, id="other", machine="m9", price_per_hour=Decimal("0.90")), place=0)
    chosen = pick([*LOTS, same, other], RUN, Strategy.PREFERRED, dice=0.0, count=3)
    assert [lot.offer.id for lot in chosen] == ["near", "other"]


def test_spot_is_taken_only_where_it_is_cheaper_with_our_bid() -> None:
    """Of two that cost the same, the one that nobody takes away; and dice never mix the two kinds."""
    spot = replace(CHEAP, id="spot", machine="m2", spot=True, price_per_hour=Decimal("0.30"), disk_per_hour=Decimal("0.02"))
    bid = with_bid(spot, Decimal("1.25"), Limits())
    assert bid.price_per_hour == Decimal("0.37")
    assert {taken([CHEAP, bid], dice=dice / 10) for dice in range(11)} == {"spot"}
    assert {taken([CHEAP, with_bid(spot, Decimal(2), Limits())], dice=dice / 10) for dice in range(11)} == {"o1"}
    assert taken([CHEAP, replace(bid, id="a", price_per_hour=CHEAP.price_per_hour)]) == "o1"


def test_a_bid_keeps_within_every_cap() -> None:
    """The job's and the place's; one whose least does not fit stays as it is, and is refused."""
    spot = replace(CHEAP, spot=True, price_per_hour=Decimal("0.30"), disk_per_hour=Decimal("0.02"))
    assert with_bid(spot, Decimal(3), Limits(max_cost=Decimal("0.40"))).price_per_hour == Decimal("0.40")
    assert with_bid(replace(spot, most_per_hour=Decimal("0.35")), Decimal(3), Limits()).price_per_hour == Decimal("0.35")
    assert with_bid(replace(spot, most_per_hour=Decimal("0.25")), Decimal(3), Limits()).price_per_hour == Decimal("0.30")
    assert raised(replace(spot, most_per_hour=Decimal("0.35")), Decimal("0.34"), Decimal(2), Limits()) is None
    assert raised(CHEAP, Decimal("0.60"), Decimal(2), Limits()) is None


def test_what_a_job_is_expected_to_take() -> None:
    """Its plan's word, else an hour, and never more than it may take."""
    job = a_job()
    assert estimate(job).hours == 1.0
    assert estimate(replace(job, plan=replace(job.plan, expected_hours=7.5))).hours == 7.5
    assert estimate(replace(job, limits=replace(job.limits, max_hours=0.5))).hours == 0.5


# ----------------------------------------------------------------------------------------------------------------- market


def an_attempt(machine: str, reason: Reason, days_ago: float = 1.0) -> Attempt:
    offer = replace(CHEAP, id=f"offer of {machine}", machine=machine)
    ended = NOW - timedelta(days=days_ago)
    return Attempt(number=1, label="l", started_at=ended, ended_at=ended, offer=offer, reason=reason)


def lost(*attempts: Attempt) -> Job:
    return replace(a_job(), attempts=attempts)


def test_machines_that_failed_are_remembered_for_a_week() -> None:
    """Only for what was the machine's fault: a training that failed says nothing about it."""
    job = lost(
        an_attempt("bad boot", Reason.PROVISIONING_FAILED),
        an_attempt("no CUDA", Reason.HOST_UNSUITABLE),
        an_attempt("long ago", Reason.PROVISIONING_FAILED, days_ago=8),
        an_attempt("user's bug", Reason.STEP_FAILED),
    )
    assert failed_machines([job], NOW) == {"bad boot", "no CUDA"}


class Jobs:
    """A store, as far as the market asks it."""

    def __init__(self, *jobs: Job) -> None:
        self.jobs, self.asked = jobs, 0

    async def find(self, query: JobQuery) -> Page:
        self.asked += 1
        return Page(jobs=self.jobs, cursor=None)


class Now:
    """A clock that stands."""

    def now(self) -> Any:
        return NOW


async def test_two_jobs_of_a_worker_do_not_want_the_same_offer() -> None:
    """What one has chosen, the next one avoids; the store is asked once for what failed."""
    store = Jobs(lost(an_attempt("bad boot", Reason.PROVISIONING_FAILED)))
    market = Market(cast(Any, store), cast(Any, Now()))
    assert await market.avoid(a_job()) == {"bad boot"}
    market.take("o1")
    assert await market.avoid(a_job()) == {"bad boot", "o1"}
    assert store.asked == 1


async def test_a_job_does_not_go_back_to_where_it_was_lost() -> None:
    """Offers and machines of its earlier attempts are avoided, whatever ended them."""
    job = lost(an_attempt("m7", Reason.INSTANCE_GONE), an_attempt("m8", Reason.COMPLETED))
    assert await Market(cast(Any, Jobs()), cast(Any, Now())).avoid(job) == {"offer of m7", "m7"}
