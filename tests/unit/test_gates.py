"""What must be open before a machine is rented: caps, budgets, credit."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import pytest

from remote_trainer.effects import ChooseOffer, Seen
from remote_trainer.errors import NoCapacity, SpendingHeld, Transient
from remote_trainer.model import Attempt, Instance, Job, JobId, Limits, Offer, Phase, Place, Resources
from remote_trainer.policy import Budget, Policy, Spending, committed, too_dear
from remote_trainer.policy.choice import Estimate
from remote_trainer.ports import Abilities, JobQuery, Page
from remote_trainer.worker import gates
from remote_trainer.worker.choosing import choose
from remote_trainer.worker.shop import Shop
from remote_trainer.worker.trouble import Circumstances, judge
from tests.unit.life import RENTED, Life, a_job
from tests.unit.test_listing import START, Ticking

D = Decimal
HOUR = timedelta(hours=1)
#: Half a dollar an hour, all of it from the request on: a run of an hour needs 0.541667 with the tail, 0.583333 if it is longer.
OFFER = Offer(id="o1", driver="market", price_per_hour=D("0.50"), disk_per_hour=D("0.50"))


class Jobs:
    """A store that only finds."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.asked: list[JobQuery] = []

    async def find(self, query: JobQuery) -> Page:
        self.asked.append(query)
        await asyncio.sleep(0)  # others have their turn
        found = [job for job in self.jobs if query.phases is None or job.phase in query.phases]
        found = [job for job in found if query.tenant in (None, job.tenant)]
        at = int(query.after or 0)
        page = found[at : at + 1]  # so that there is always another page
        return Page(jobs=tuple(page), cursor=str(at + 1) if at + 1 < len(found) else None)


class Market:
    """A driver with offers, instances and credit."""

    name = "market"

    def __init__(self, *, borrowed: bool = False) -> None:
        self.abilities = Abilities(borrowed=borrowed)
        self.there: list[Instance] = []
        self.left = D(100)
        self.asked = 0
        self.down = False

    async def offers(self, wanted: Resources, *, spot: bool = False) -> Sequence[Offer]:
        return [OFFER, replace(OFFER, id="o2", price_per_hour=D("0.80"))]

    async def instances(self, prefix: str) -> Sequence[Instance]:
        return [one for one in self.there if one.label.startswith(prefix)]

    async def credit(self) -> Decimal:
        self.asked += 1
        await asyncio.sleep(0)
        if self.down:
            raise Transient("the provider is down")
        return self.left

    async def charges(self, since: datetime, until: datetime) -> Sequence[Any]:
        return []


class Ground:
    """A worker's shop over these."""

    def __init__(self, spending: Spending | None = None, *, borrowed: bool = False) -> None:
        self.store, self.market, self.clock = Jobs(), Market(borrowed=borrowed), Ticking()
        self.free = Market(borrowed=True)
        nothing = cast(Any, None)
        parts: Mapping[str, Any] = {
            **dict.fromkeys(("writer", "objects", "find_secret"), nothing),
            "store": self.store,
            "clock": self.clock,
            "policy": Policy(),
            "make_driver": lambda name, options: self.free if name == "lab" else self.market,
        }
        self.shop = Shop(**parts, deployment="dep", cache_dir=Path("c"), spool_dir=Path("s"), spending=spending or Spending())
        self.shop.driver("market", {})

    async def check(self, job: Job, *offers: Offer) -> None:
        await self.shop.gates.check(job, offers or (OFFER,), cast(Any, self.market))


def job(number: int = 1, *, tenant: str = "ada", limits: Limits = Limits(), **attempt: object) -> Job:
    """Return a job that is about to rent; with ``requested_at``, one that has."""
    first = Attempt(number=1, label=f"rt-dep-j{number}-a1", started_at=START)
    phase = Phase.EXECUTING if attempt else Phase.PROVISIONING
    made = replace(a_job(limits=limits), id=JobId(f"j{number}"), tenant=tenant, phase=phase, created_at=START)
    return replace(made, driver="market", attempts=(replace(first, **attempt),))  # type: ignore[arg-type]


def renting(number: int, since: datetime = START, **fields: object) -> Job:
    return job(number, offer=OFFER, requested_at=since, **fields)


# ------------------------------------------------------------------------------------------------------- offers for nobody


RUN = Estimate(hours=1.0, gb_out=0.0)
TOO_DEAR: dict[str, tuple[Spending, Decimal | None, str]] = {
    "no caps": (Spending(), None, ""),
    "an hour of it": (Spending(max_instance_price=D("0.49")), None, "max_instance_price is 0.49"),
    "just that": (Spending(max_instance_price=D("0.50")), None, ""),
    "more than all together may cost": (Spending(max_hourly_spend=D("0.49")), None, "max_hourly_spend is 0.49"),
    "more than the job has left": (Spending(), D("0.54"), "0.54 $ are left of what the job may cost"),
    "just what the job has left": (Spending(), D("0.541667"), ""),
    "nothing left": (Spending(), D(-1), "0.00 $ are left"),
    "more than a day may cost": (Spending(budgets={"ada": Budget(per_day=D("0.50"))}), None, "ada may spend 0.50 $ a day"),
    "more than a month may cost": (Spending(budgets={"default": Budget(per_month=D("0.50"))}), None, "0.50 $ a month"),
    "somebody else's budget": (Spending(budgets={"bob": Budget(per_day=D("0.50"))}), None, ""),
    "a budget of one's own": (Spending(budgets={"ada": Budget(per_day=D(9)), "default": Budget(per_day=D("0.1"))}), None, ""),
}


@pytest.mark.parametrize("case", TOO_DEAR)
def test_what_no_time_makes_affordable_is_refused(case: str) -> None:
    """A machine over a cap that stands, or over what is left of the job's own, is no offer."""
    spending, left, why = TOO_DEAR[case]
    said = too_dear(OFFER, RUN, spending, tenant="ada", left=left)
    assert (why in said) if why else said == ""
    assert too_dear(replace(OFFER, price_per_hour=D(0)), RUN, spending, tenant="ada", left=left) == ""


async def test_a_job_is_told_why_nothing_is_cheap_enough() -> None:
    """Dear offers are passed over; when all are, the message names the cap."""
    ground = Ground(Spending(max_instance_price=D("0.60")))
    assert (await choose(ground.shop, job(), Seen(since=START))).offer.id == "o1"
    poor = Ground(Spending(max_instance_price=D("0.10")))
    with pytest.raises(NoCapacity, match=r"2 of them, and all are too dear: .*max_instance_price is 0\.10"):
        await choose(poor.shop, job(), Seen(since=START))
    with pytest.raises(NoCapacity, match=r"all are too dear: one hour costs 0\.50 of the 0\.40"):
        await choose(ground.shop, job(limits=Limits(max_cost=D("0.40"))), Seen(since=START))


async def test_a_machine_that_costs_nothing_is_taken_rather_than_waited_for_money() -> None:
    """Of several places the first may have no money now; when none has, it is waited for."""
    ground = Ground()
    ground.market.left = D("0.10")
    lab = Place(driver="lab")
    waits = replace(job(), fallbacks=(Place(driver="market", options={"other": "account"}),))
    with pytest.raises(SpendingHeld):
        await choose(ground.shop, waits, Seen(since=START))
    found = await choose(ground.shop, replace(waits, fallbacks=(*waits.fallbacks, lab)), Seen(since=START))
    assert found.place == 2


# ------------------------------------------------------------------------------------------------------------- an hour


async def test_all_that_is_rented_counts_for_an_hour() -> None:
    """What is listed, what jobs of any worker have asked for, and what was let through a moment ago; each once."""
    ground = Ground(Spending(max_hourly_spend=D("2.0")))
    ground.market.there = [Instance(id="i1", label="rt-dep-j7-a1", price_per_hour=D("0.70"))]
    ground.store.jobs = [renting(7), renting(8), replace(renting(9), phase=Phase.DONE)]
    await ground.check(job(1))  # 0.70 + 0.50 + 0.50
    with pytest.raises(SpendingHeld, match=r"machines for 1\.700 \$ an hour .* max_hourly_spend is 2\.0") as held:
        await ground.check(job(2))
    assert held.value.retry_after_s == 15
    await ground.check(job(1))  # its own place is not counted against it
    ground.market.there = []
    ground.store.jobs = []
    ground.clock.time += timedelta(seconds=31)
    await ground.check(job(2))


async def test_of_jobs_that_come_together_only_so_many_pass() -> None:
    """Ten ask in the same moment, and there is room for three."""
    ground = Ground(Spending(max_hourly_spend=D("1.5")))
    said = await asyncio.gather(*(ground.check(job(number)) for number in range(10)), return_exceptions=True)
    assert [type(each) for each in said].count(SpendingHeld) == 7


async def test_a_race_counts_with_all_its_machines() -> None:
    """Two machines for one job cost twice."""
    ground = Ground(Spending(max_hourly_spend=D("0.9")))
    with pytest.raises(SpendingHeld):
        await ground.check(job(), OFFER, replace(OFFER, id="o2"))


# ------------------------------------------------------------------------------------------------------------- budgets


@pytest.mark.parametrize(("budget", "period"), [(Budget(per_day=D("1.1")), "day"), (Budget(per_month=D("1.1")), "month")])
async def test_a_budget_counts_what_was_spent_and_what_is_running(budget: Budget, period: str) -> None:
    """Another job of the tenant that ran for an hour leaves no room; one of another tenant does."""
    ground = Ground(Spending(budgets={"ada": budget, "bob": budget}))
    ended = replace(renting(7, START - HOUR, ended_at=START), phase=Phase.DONE)
    ground.clock.time = START + timedelta(hours=2)
    ground.store.jobs = [replace(ended, attempts=(replace(ended.attempts[0], requested_at=START, ended_at=START + HOUR),))]
    await ground.check(job(1))
    with pytest.raises(SpendingHeld, match=rf"ada may spend 1\.1 \$ a {period}, 1\.04 \$ of it are used"):
        await ground.check(job(2))  # the first one was let through a moment ago
    await ground.check(job(3, tenant="bob"))


async def test_a_budget_begins_anew_with_the_day() -> None:
    """What was spent before midnight is another day's."""
    ground = Ground(Spending(budgets={"default": Budget(per_day=D("1"))}))
    ground.store.jobs = [replace(renting(7, START - 2 * HOUR, ended_at=START - HOUR / 60), phase=Phase.DONE)]
    ground.clock.time = START - HOUR / 60
    with pytest.raises(SpendingHeld):
        await ground.check(job(1))
    ground.clock.time = START
    await ground.check(job(1))


async def test_jobs_of_long_ago_are_not_read() -> None:
    """Pages end where nothing can count any more, and nobody without a budget is looked up."""
    ground = Ground(Spending(budgets={"ada": Budget(per_day=D(9))}))
    ground.store.jobs = [renting(7), replace(renting(8), created_at=START - timedelta(days=90)), renting(9)]
    await ground.check(job(1))
    assert len(ground.store.asked) == 2
    await ground.check(job(2, tenant="bob"))
    assert len(ground.store.asked) == 2


def test_a_running_job_uses_what_it_is_expected_to_cost() -> None:
    """Until it costs more than that."""
    live = renting(1)
    expected = committed(live, START, START)
    assert expected == D("0.541667")
    assert committed(live, START, START + HOUR / 2) == expected
    assert committed(live, START, START + 3 * HOUR) == D("1.5")


# -------------------------------------------------------------------------------------------------------------- credit


async def test_the_providers_credit_must_cover_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked once a minute; too little rings the alarm and waits; what it does not say closes nothing."""
    ground = Ground()
    ground.market.left = D("0.54")
    for _ in range(2):
        with pytest.raises(SpendingHeld, match=r"market has 0\.54 \$ of credit left"):
            await ground.check(job())
    assert ground.market.asked == 1
    assert ("credit", "market") in ground.shop.alarm._rung
    monkeypatch.setattr(gates, "_CREDIT_S", -1.0)
    ground.market.left = D("0.55")
    await ground.check(job())
    ground.market.down = True
    await ground.check(job())


async def test_what_is_borrowed_or_free_passes_every_gate() -> None:
    """Nobody is asked anything for it."""
    ground = Ground(Spending(max_hourly_spend=D("0.01"), budgets={"default": Budget(per_day=D("0.01"))}), borrowed=True)
    await ground.check(job())
    assert not ground.market.asked and not ground.store.asked


# ------------------------------------------------------------------------------------------------------------- waiting


def test_a_held_job_waits_and_says_so() -> None:
    """A closed gate is asked again, keeps the attempt from giving up, and only the job's own limits end the wait."""
    life = Life(a_job(limits=Limits(max_hours=20)), RENTED)
    life.tick()
    error = SpendingHeld("ada may spend 1 $ a day", retry_after_s=120)
    for _ in range(60):
        given = Circumstances(
            before=life.seen.troubles.get(ChooseOffer), now=life.now, policy=Policy(), borrowed=False, jitter=0.5
        )
        life.seen = life.seen.with_trouble(ChooseOffer, judge(ChooseOffer(), error, given))
        assert not life.tick().effects
        life.later(119)
        assert life.job.note == str(error) or life.now - life.job.created_at < timedelta(minutes=3)
        assert [type(effect) for effect in life.later(1).effects] == [ChooseOffer]
    assert life.job.phase is Phase.PROVISIONING and len(life.job.attempts) == 1
    life.later(20 * 3600)
    assert life.job.phase is Phase.FAILED


def test_time_zones_do_not_matter() -> None:
    """A day of a budget is one of UTC."""
    assert Budget(per_day=D(1)).periods(datetime(2026, 3, 4, 23, 59, tzinfo=UTC))["day"][1] == datetime(2026, 3, 4, tzinfo=UTC)
