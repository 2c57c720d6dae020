"""One listing for all jobs of a worker: shared as far as it answers everybody's question, and no further."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from remote_trainer.effects import Seen
from remote_trainer.errors import Transient
from remote_trainer.model import Instance
from remote_trainer.worker.listing import Listing, new_enough
from remote_trainer.worker.machine import Machine
from remote_trainer.worker.shop import Shop

START = datetime(2026, 1, 1, tzinfo=UTC)


class Ticking:
    """A clock that stands until somebody sleeps."""

    def __init__(self) -> None:
        self.time = START

    def now(self) -> datetime:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)
        await asyncio.sleep(0)


class Lister:
    """Answers when it is told to; counts."""

    def __init__(self, clock: Ticking) -> None:
        self.asked: list[datetime] = []
        self.answer = asyncio.Event()
        self.answer.set()
        self.fails = 0
        self._clock = clock

    async def instances(self, prefix: str) -> Sequence[Instance]:
        self.asked.append(self._clock.now())
        await self.answer.wait()
        if self.fails:
            self.fails -= 1
            raise Transient("the provider is down")
        return [Instance(id=str(number), label=f"{prefix}{number % 2}") for number in range(3)]


@pytest.fixture
def clock() -> Ticking:
    return Ticking()


@pytest.fixture
def driver(clock: Ticking) -> Lister:
    return Lister(clock)


@pytest.fixture
def listing(driver: Lister, clock: Ticking) -> Listing:
    return Listing(cast(Any, driver), "rt-", clock)


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


async def test_a_hundred_who_come_together_cost_one_request(listing: Listing, driver: Lister) -> None:
    """All are given the same listing, which knows what carries each label."""
    looks = await asyncio.gather(*(listing.since(START) for _ in range(100)))
    assert len(driver.asked) == 1
    assert all(look is looks[0] for look in looks)
    assert [one.id for one in looks[0].by_label["rt-0"]] == ["0", "2"]
    assert looks[0].asked_at == START


async def test_what_was_asked_before_it_is_needed_is_no_answer(listing: Listing, driver: Lister, clock: Ticking) -> None:
    """Who needs a later listing than the one under way waits for it to end, and gets the next; its time is that of the request."""
    driver.answer.clear()
    early = asyncio.create_task(listing.since(START))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    clock.time = after(5)
    late = [asyncio.create_task(listing.since(after(5))) for _ in range(3)]
    await asyncio.sleep(0)
    assert driver.asked == [START]
    driver.answer.set()
    assert (await early).asked_at == START
    assert {(await each).asked_at for each in late} == {after(5)}
    assert driver.asked == [START, after(5)]


async def test_who_gives_up_takes_it_from_nobody(listing: Listing, driver: Lister) -> None:
    """The request goes on when the job that came first is cancelled."""
    driver.answer.clear()
    first, second = (asyncio.create_task(listing.since(START)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait({first})
    driver.answer.set()
    assert (await second).asked_at == START
    assert len(driver.asked) == 1


async def test_a_failure_is_shared_and_not_repeated_at_once(listing: Listing, driver: Lister, clock: Ticking) -> None:
    """All who waited hear of it; the next request goes out after a pause, whoever asks."""
    driver.fails = 1
    failed = await asyncio.gather(*(listing.since(START) for _ in range(10)), return_exceptions=True)
    assert {type(each) for each in failed} == {Transient}
    assert (await listing.since(START)).asked_at == after(2)
    assert driver.asked == [START, after(2)]


async def test_a_moment_to_come_is_now(listing: Listing, clock: Ticking) -> None:
    """Another worker's clock may be ahead: that is no reason to ask for ever."""
    assert (await listing.since(after(1000))).asked_at == START


async def test_jobs_that_poll_get_into_step(listing: Listing, driver: Lister, clock: Ticking) -> None:
    """A hundred jobs that began at different times and look every half minute cost one request each half minute before long."""
    last = {job: after(job * 0.29) for job in range(100)}
    clock.time = after(30)
    while clock.time < after(600):
        for job, seen_at in last.items():
            if (clock.now() - seen_at).total_seconds() >= 30:
                last[job] = (await listing.since(new_enough(seen_at, START, clock.now()))).asked_at
                assert (clock.now() - last[job]).total_seconds() <= 30 * 0.6
        clock.time += timedelta(seconds=0.1)
    assert len([at for at in driver.asked if at >= after(300)]) == 10


def test_a_phase_needs_a_listing_of_its_own() -> None:
    """What was asked for before the phase began does not answer it, whether or not a listing is known."""
    assert new_enough(None, after(50), after(60)) == after(50)
    assert new_enough(after(30), after(50), after(60)) == after(50)
    assert new_enough(after(0), START, after(60)) == after(60 - 36)


async def test_a_hundred_jobs_look_for_their_machines_with_one_request(driver: Lister, clock: Ticking) -> None:
    """Each is shown what carries its own label, and when that was asked for; a phase that has just begun is no older listing's."""
    unused = dict.fromkeys(("store", "writer", "objects", "make_driver", "find_secret", "policy"), cast(Any, None))
    shop = Shop(**unused, clock=clock, deployment="dep", cache_dir=Path("c"), spool_dir=Path("s"))
    patients = [Patient(driver, since=START) for _ in range(100)]
    await asyncio.gather(*(Machine(shop, cast(Any, patient)).find_instance("rt-dep-0") for patient in patients))
    assert len(driver.asked) == 1
    assert {(patient.seen.instances_at, len(patient.seen.instances or ())) for patient in patients} == {(START, 2)}
    clock.time = after(1)
    late = Patient(driver, since=after(1))
    await Machine(shop, cast(Any, late)).find_instance("rt-dep-1")
    assert (late.seen.instances_at, len(late.seen.instances or ())) == (after(1), 1)


class Patient:
    """A job in a phase since then, of which nothing is known."""

    def __init__(self, driver: Lister, since: datetime) -> None:
        self.driver, self.seen = driver, Seen(since=START)
        self.job = SimpleNamespace(attempt=None, since=since)

    def observe(self, change: Callable[[Seen], Seen]) -> None:
        self.seen = change(self.seen)
