"""Requests of a kind are let through one by one, each at its time; in virtual time."""

from __future__ import annotations

import asyncio

import pytest

from remote_trainer.drivers.vastai.pace import Pace
from remote_trainer.errors import Transient
from tests.support.virtual import lived


def test_who_waits_no_longer_leaves_its_place() -> None:
    """The next one comes as if it had never been there."""

    async def life() -> None:
        pace, loop = Pace({"list": 0.2}), asyncio.get_running_loop()
        began = loop.time()
        await pace.turn("list")
        waiting = [asyncio.create_task(pace.turn("list")) for _ in range(20)]
        last = asyncio.create_task(pace.turn("list"))
        await asyncio.sleep(0)
        for one in waiting:
            one.cancel()
        await last
        assert loop.time() - began == pytest.approx(0.2)

    lived(life())


def test_first_come_first_served() -> None:
    """And nothing else waits for it."""

    async def life() -> None:
        pace, loop, order = Pace({"list": 0.01, "search": 60.0}), asyncio.get_running_loop(), list[int]()

        async def come(number: int) -> None:
            await pace.turn("list")
            order.append(number)

        await pace.turn("search")
        began = loop.time()
        await asyncio.gather(*(come(number) for number in range(5)))
        assert order == [0, 1, 2, 3, 4]
        assert loop.time() - began == pytest.approx(0.04)

    lived(life())


def test_a_hold_counts_for_those_who_wait_already() -> None:
    """The provider's word comes while others are in the line."""

    async def life() -> None:
        pace, loop = Pace({"create": 0.05}), asyncio.get_running_loop()
        await pace.turn("create")
        waiting = asyncio.create_task(pace.turn("create"))
        await asyncio.sleep(0)
        began = loop.time()
        pace.hold("create", 15.0)
        await waiting
        assert loop.time() - began == pytest.approx(15.0)

    lived(life())


def test_a_limit_that_lasts_is_told_not_waited_for() -> None:
    """A quota that is spent until midnight must not look like a request that takes its time; other kinds go on."""

    async def life() -> None:
        pace, loop = Pace({"search": 0.05, "list": 0.0}), asyncio.get_running_loop()
        await pace.turn("search")
        waiting = asyncio.create_task(pace.turn("search"))
        await asyncio.sleep(0)
        began = loop.time()
        pace.hold("search", 3600.0)
        for each in (waiting, pace.turn("search")):
            with pytest.raises(Transient) as told:
                await each
            assert told.value.retry_after_s == pytest.approx(3600, abs=1)
        assert loop.time() - began < 1
        await pace.turn("list")

    lived(life())
