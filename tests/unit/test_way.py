"""What goes to and from machines: counted, and fast enough or not; in virtual time."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from remote_trainer.errors import HostLacks
from remote_trainer.model import Attempt
from remote_trainer.worker.way import Traffic, Uplink, Way
from tests.support.virtual import lived
from tests.unit.life import NOW, a_job

_MBIT = 125_000  # bytes a second


def a_way(uplink: Uplink, machine: str, min_mbit: float = 4.0) -> Way:
    return Way(Traffic(), f"rt-{machine}", uplink, machine, min_mbit)


async def transfer(way: Way, mbit: float, size: float = 1e12) -> None:
    """Send for a minute, or until it is all sent, at a rate; raises what the judge says."""

    async def send() -> None:
        left = size
        for _ in range(600):
            piece = min(left, mbit * _MBIT / 10)
            way.count(int(piece))
            left -= piece
            await asyncio.sleep(0.1)

    with way.used():
        sending = asyncio.create_task(send())
        try:
            await way.judge("box", int(size))
        finally:
            sending.cancel()


def test_a_machine_that_takes_too_little_is_told() -> None:
    """By the first seconds of the inputs themselves, after what lies on the way has settled."""

    async def life() -> None:
        uplink = Uplink()
        await transfer(a_way(uplink, "m1"), 4.1)
        with pytest.raises(HostLacks, match=r"box takes 3\.\d\d Mbit/s from here, at least 4\.00 are wanted"):
            await transfer(a_way(uplink, "m2"), 3.9)
        await transfer(a_way(uplink, "m3", min_mbit=0.0), 0.1)  # nobody cares
        await Way(Traffic(), "rt-own").judge("own", 10**12)  # a borrowed one is as it is

    lived(life())


def test_inputs_that_are_on_their_way_are_not_judged() -> None:
    """Small ones are over before anybody could tell, and while the machine checks what it has got nothing is sent."""

    async def life() -> None:
        way = a_way(Uplink(), "m1")
        await transfer(way, 100, size=10 * _MBIT)
        with pytest.raises(HostLacks):
            await transfer(way, 1)  # the next input is

    lived(life())


def test_transfers_at_once_share_our_own_line() -> None:
    """Four that get a quarter each are no slow machines."""

    async def life() -> None:
        uplink = Uplink()
        await asyncio.gather(*(transfer(a_way(uplink, f"m{number}"), 1.1) for number in range(4)))
        assert uplink.under_way == 0
        with a_way(uplink, "m9").used():  # one that was judged long ago, and goes on
            await transfer(a_way(uplink, "m8"), 2.2)
        with pytest.raises(HostLacks):
            await transfer(a_way(uplink, "m5"), 1.1)

    lived(life())


def test_machines_that_are_slow_one_after_the_other_are_not_to_blame() -> None:
    """The third is kept: the line is ours. One that is fast, or an hour, ends the row; one machine counts once."""

    async def life() -> None:
        uplink = Uplink()
        for machine in ("m1", "m1", "m2"):
            with pytest.raises(HostLacks):
                await transfer(a_way(uplink, machine), 1)
        await transfer(a_way(uplink, "m3"), 1)
        await transfer(a_way(uplink, "m4"), 50)
        with pytest.raises(HostLacks):
            await transfer(a_way(uplink, "m3"), 1)
        with pytest.raises(HostLacks):
            await transfer(a_way(uplink, "m1"), 1)
        await asyncio.sleep(4000)
        with pytest.raises(HostLacks):
            await transfer(a_way(uplink, "m5"), 1)

    lived(life())


def test_what_went_is_written_with_its_attempt_and_once() -> None:
    """Late bytes of an attempt that is over still belong to it."""
    attempts = tuple(Attempt(number=n, label=f"a{n}", started_at=NOW, bytes_in=100) for n in (1, 2))
    job, traffic = replace(a_job(), attempts=attempts), Traffic()
    assert traffic.onto(job) is job
    way = Way(traffic, "a2")
    way.count(5)
    advance = way.counting()
    for done in (10, 30, 30):
        advance(done, 30)
    traffic.fetched["a1"] += 7
    saved = traffic.onto(job)
    assert [(each.bytes_in, each.bytes_out) for each in saved.attempts] == [(100, 7), (135, 0)]
    assert traffic.onto(saved) is saved
