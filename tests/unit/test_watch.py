"""What a worker tells the watchman of a rented machine, and when."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from remote_trainer import effects as fx
from remote_trainer.errors import HostUnreachable
from remote_trainer.host.watchman import Orders
from remote_trainer.model import Attempt, Limits
from remote_trainer.policy import Policy
from remote_trainer.ports import Change, StoredObject
from remote_trainer.worker.watch import Watch
from tests.support.patience import PATIENCE_S
from tests.unit.life import NOW, a_job

POLICY = Policy(orphan_after_s=0.6)  # so orders are given each tenth of a second
FOLLOW = fx.FollowStep("l", "s.1")


class Machine:
    """A machine that keeps the orders it got; it cannot be reached the first few times."""

    def __init__(self, *, away: int = 0, farewell: str = "bye") -> None:
        self.orders: list[Orders] = []
        self.asked = asyncio.Event()
        self.away = away
        started = NOW - timedelta(hours=1)
        self.attempt = Attempt(number=2, label="l", started_at=started)
        self.told: list[str] = []
        earlier = Attempt(number=1, label="k", started_at=started)
        job = replace(a_job(), attempts=(earlier, self.attempt), limits=Limits(max_hours=3))
        driver = SimpleNamespace(farewell=farewell) if farewell else SimpleNamespace()
        patient = SimpleNamespace(job=job, driver=driver, token=1)
        clock = SimpleNamespace(now=lambda: NOW, sleep=asyncio.sleep)
        shop = SimpleNamespace(policy=POLICY, clock=clock, objects=self, facts=self.facts, writer=self)
        self.watch = Watch(cast(Any, shop), cast(Any, patient), cast(Any, self))

    async def host(self) -> Machine:
        return self

    async def facts(self, host: object) -> None:
        """It is set up."""

    async def head(self, key: str) -> StoredObject | None:
        return StoredObject(key=key, size=77, sha256="") if key.endswith("/a1/farewell.tar") else None

    async def save(self, change: Change) -> None:
        self.told += [event.message for event in change.events]

    async def presign_put(self, key: str, *, expires_s: int) -> str:
        return f"https://bucket/{key}?{expires_s}"

    async def keep_watch(self, key: str, orders: Orders) -> None:
        assert key == "l"
        self.away -= 1
        if self.away >= 0:
            raise HostUnreachable("no way")
        self.orders.append(orders)
        if len(self.orders) == 3:
            self.asked.set()


async def test_the_first_orders_must_arrive() -> None:
    """They hold the limit with the overtime, counted from now, and a link of the attempt's own; who cannot be reached is an error."""
    machine = Machine(away=1)
    with pytest.raises(HostUnreachable):
        await machine.watch.begin()
    await machine.watch.begin()
    (orders,) = machine.orders
    assert orders.limit_s == 2 * 3600 + POLICY.reap_overtime_s
    assert (orders.farewell, orders.silence_s, orders.hold_s) == ("bye", POLICY.orphan_after_s, POLICY.orphan_hold_s)
    assert orders.outbox.split("?")[0].endswith("/a2/farewell.tar")
    assert orders.outbox.encode() not in orders.text
    assert "bucket" not in repr(orders)


async def test_orders_are_given_again_while_something_takes_long() -> None:
    """Also where the machine cannot be reached for a while; two effects at once give them once; then nobody speaks any more."""
    machine = Machine(away=2)
    async with machine.watch.during(FOLLOW), machine.watch.during(fx.CollectOutputs("l", final=False)):
        await asyncio.wait_for(machine.asked.wait(), PATIENCE_S)
    assert len({orders.text for orders in machine.orders}) == 1
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("watchman")]


async def test_what_an_earlier_machine_left_is_told_once() -> None:
    """Where it is, and that nobody has verified it."""
    machine = Machine()
    for _ in range(2):
        await machine.watch.tell_leftovers()
    (message,) = machine.told
    assert "77 bytes, unverified" in message and message.endswith("/a1/farewell.tar")


async def test_an_error_of_the_effect_is_its_own() -> None:
    """The watchman is no reason to change what went wrong."""
    machine = Machine()
    with pytest.raises(HostUnreachable, match="the step"):
        async with machine.watch.during(FOLLOW):
            raise HostUnreachable("the step")


async def test_a_machine_that_cannot_end_itself_has_no_watchman(tmp_path: Path) -> None:
    """Nothing is asked of it, and short effects ask nothing of the others."""
    borrowed, rented = Machine(farewell=""), Machine()
    await borrowed.watch.begin()
    async with borrowed.watch.during(FOLLOW), rented.watch.during(fx.StartStep("l", "s.1")):
        await asyncio.sleep(0)
    assert borrowed.orders == rented.orders == []
