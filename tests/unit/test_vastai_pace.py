"""Requests of a kind are let through one by one, each at its time."""

from __future__ import annotations

import asyncio

import pytest

from remote_trainer.drivers.vastai.pace import Pace
from remote_trainer.errors import Transient


async def test_who_waits_no_longer_leaves_its_place() -> None:
    """The next one comes as if it had never been there."""
    pace = Pace({"list": 0.2})
    loop = asyncio.get_running_loop()
    began = loop.time()
    await pace.turn("list")
    waiting = [asyncio.create_task(pace.turn("list")) for _ in range(20)]
    last = asyncio.create_task(pace.turn("list"))
    await asyncio.sleep(0)
    for one in waiting:
        one.cancel()
    await last
    assert 0.2 <= loop.time() - began < 2.0, "twenty turns would have taken four seconds"


async def test_first_come_first_served() -> None:
    """And nothing else waits for it."""
    pace, order = Pace({"list": 0.01, "search": 60.0}), list[int]()

    async def come(number: int) -> None:
        await pace.turn("list")
        order.append(number)

    await pace.turn("search")
    await asyncio.gather(*(come(number) for number in range(5)))
    assert order == [0, 1, 2, 3, 4]


async def test_a_hold_counts_for_those_who_wait_already() -> None:
    """The provider's word comes while others are in the line."""
    pace = Pace({"create": 0.05})
    await pace.turn("create")
    waiting = asyncio.create_task(pace.turn("create"))
    await asyncio.sleep(0)
    pace.hold("create", 15.0)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(waiting, 0.2)


async def test_a_limit_that_lasts_is_told_not_waited_for() -> None:
    """A quota that is spent until midnight must not look like a request that takes its time; other kinds go on."""
    pace = Pace({"search": 0.05, "list": 0.0})
    await pace.turn("search")
    waiting = asyncio.create_task(pace.turn("search"))
    await asyncio.sleep(0)
    pace.hold("search", 3600.0)
    for each in (waiting, pace.turn("search")):
        with pytest.raises(Transient) as told:
            await asyncio.wait_for(each, 10)
        assert 3500 < (told.value.retry_after_s or 0) <= 3600
    await pace.turn("list")
