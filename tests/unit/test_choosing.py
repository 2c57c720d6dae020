"""Asking the drivers of a job's places: who is asked, who is passed over, and what is told when nobody has a machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, cast

import pytest

from remote_trainer.effects import ChooseOffer, Seen, Severity, Trouble
from remote_trainer.errors import ConfigError, NoCapacity, Permanent, Transient
from remote_trainer.model import Attempt, Job, Offer, Place, Provision, Reason, Resources, Strategy
from remote_trainer.ports import Abilities
from remote_trainer.worker.choosing import Choice, choose
from tests.unit.life import NOW, a_job

SEEN, RENTS_SPOT = Seen(since=NOW), Abilities(spot=True)


def offer(name: str, price: str, **more: Any) -> Offer:
    return Offer(id=name, driver=name, machine=f"machine of {name}", price_per_hour=Decimal(price), **more)


class Seller:
    """A driver that has these offers, or fails."""

    def __init__(
        self,
        *offers: Offer,
        spot: Sequence[Offer] = (),
        fails: Exception | None = None,
        abilities: Abilities = RENTS_SPOT,
    ) -> None:
        self.has, self.spot, self.fails, self.abilities = offers, spot, fails, abilities
        self.asked: list[tuple[Resources, bool]] = []

    async def offers(self, wanted: Resources, *, spot: bool = False) -> Sequence[Offer]:
        self.asked.append((wanted, spot))
        if self.fails is not None:
            raise self.fails
        return self.spot if spot else self.has


class Market:
    """Nothing has failed but what it is told."""

    def __init__(self) -> None:
        self.bad: frozenset[str] = frozenset()
        self.taken: list[str] = []

    async def avoid(self, job: Job) -> frozenset[str]:
        return self.bad

    def take(self, offer_id: str) -> None:
        self.taken.append(offer_id)


class OpenGates:
    """There is money for everything."""

    def refusal(self, job: Job, offer: Offer) -> str:
        return ""

    async def check(self, job: Job, offers: Sequence[Offer], driver: object) -> None:
        pass


MARKET = Market()


async def chosen(*sellers: Seller, seen: Seen = SEEN, market: Market = MARKET, job: Job | None = None, **terms: Any) -> Choice:
    """Let a job choose that may run at these sellers, in that order."""
    places = [Place(driver=str(number), provision=Provision(**terms)) for number in range(len(sellers))]
    job = replace(job or a_job(), provision=Provision(**terms), driver="0", fallbacks=tuple(places[1:]))
    job = replace(job, attempts=(*job.attempts, Attempt(number=len(job.attempts) + 1, label="l", started_at=NOW)))
    shop = SimpleNamespace(driver=lambda name, options: sellers[int(name)], market=market, gates=OpenGates())
    return await choose(cast(Any, shop), job, seen)


def disturbed(count: int) -> Seen:
    """Return that the choice has failed so often."""
    known = Trouble(severity=Severity.RETRY, reason=Reason.INTERNAL, message="x", at=NOW, retry_at=NOW, count=count)
    return SEEN.with_trouble(ChooseOffer, known)


async def test_the_first_place_that_has_a_machine_is_taken_and_later_ones_are_not_asked() -> None:
    """A dearer first choice is the first choice."""
    empty, first, second = Seller(), Seller(offer("a", "0.90")), Seller(offer("b", "0.10"))
    found = await chosen(empty, first, second)
    assert (found.place, found.offer.id) == (1, "a")
    assert second.asked == []


async def test_the_cheapest_is_found_over_all_places() -> None:
    """All are asked, and the place is the offer's."""
    found = await chosen(Seller(offer("a", "0.90")), Seller(offer("b", "0.10")), strategy=Strategy.CHEAPEST)
    assert (found.place, found.offer.id) == (1, "b")


async def test_what_failed_lately_is_passed_over_for_a_later_place() -> None:
    """And taken if there is nothing else."""
    market = Market()
    market.bad = frozenset({"a"})
    assert (await chosen(Seller(offer("a", "0.10")), Seller(offer("b", "0.90")), market=market)).offer.id == "b"
    assert (await chosen(Seller(offer("a", "0.10")), Seller(), market=market)).offer.id == "a"


async def test_a_place_that_is_only_disturbed_has_three_chances() -> None:
    """A moment's trouble at the first choice does not send a job to a dearer one."""
    sellers = Seller(fails=Transient("down")), Seller(offer("b", "0.90"))
    for count in (1, 2):
        with pytest.raises(Transient, match="down"):
            await chosen(*sellers, seen=disturbed(count))
    assert (await chosen(*sellers, seen=disturbed(3))).place == 1


@pytest.mark.parametrize("error", [ConfigError("no key"), Permanent("refused")])
async def test_a_place_that_cannot_be_asked_is_passed_over_at_once(error: Exception) -> None:
    """Alone it is the job's error, among others it is one place less."""
    assert (await chosen(Seller(fails=error), Seller(offer("b", "0.90")))).place == 1
    with pytest.raises(type(error)):
        await chosen(Seller(fails=error))


async def test_no_machine_anywhere_is_told_place_by_place() -> None:
    """With what each has; where one may only be disturbed, that is not said yet."""
    dear = Seller(offer("a", "0.90", resources=Resources(vram_gb=8)))
    job = replace(a_job(), plan=replace(a_job().plan, resources=Resources(vram_gb=24)))
    with pytest.raises(NoCapacity, match=r"driver 0 has no machine .* among 1 offers; driver 1 cannot say what it has: no key"):
        await chosen(dear, Seller(fails=ConfigError("no key")), job=job)
    with pytest.raises(Transient):
        await chosen(dear, Seller(fails=Transient("down")), job=job, seen=disturbed(9))


async def test_spot_machines_are_asked_for_with_our_bid() -> None:
    """Where they are wished for and the driver has such."""
    seller = Seller(offer("a", "0.90"), spot=[offer("s", "0.20", spot=True)])
    assert (await chosen(seller)).offer.id == "a"
    assert (await chosen(seller, spot=True)).offer.price_per_hour == Decimal("0.25")
    plain = Seller(offer("a", "0.90"), spot=[offer("s", "0.20", spot=True)], abilities=Abilities())
    assert (await chosen(plain, spot=True)).offer.id == "a"


async def test_after_so_many_evictions_a_job_rents_on_demand() -> None:
    """What is taken away again and again is not cheap."""
    evicted = replace(Attempt(number=1, label="l", started_at=NOW), reason=Reason.EVICTED)
    seller = Seller(offer("a", "0.90"), spot=[offer("s", "0.20", spot=True)])
    for number, expected in ((1, "s"), (2, "a")):
        job = replace(a_job(), attempts=(evicted,) * number)
        assert (await chosen(seller, job=job, spot=True)).offer.id == expected


async def test_a_race_takes_as_many_as_the_place_wants() -> None:
    """Those that cost least; they are nobody else's only once it is the job's turn to rent."""
    market = Market()
    found = await chosen(Seller(offer("a", "0.10"), offer("b", "0.50"), offer("c", "0.90")), market=market, race=2)
    assert [found.offer.id, *(rival.id for rival in found.rivals)] == ["a", "b"] and market.taken == []


async def test_a_machine_that_is_lent_is_tried_again_unless_there_is_another_place() -> None:
    """It cannot be changed for another one; where there is one, that comes first."""
    own = offer("own", "0")
    failed = Attempt(number=1, label="l", started_at=NOW, offer=own, ended_at=NOW)
    job = replace(a_job(), attempts=(failed,))
    lent = Seller(own, abilities=Abilities(borrowed=True))
    assert (await chosen(lent, job=job)).offer.id == "own"
    assert (await chosen(lent, Seller(offer("b", "0.90")), job=job)).offer.id == "b"
