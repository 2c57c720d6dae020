"""Whose turn it is to rent; in virtual time."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from remote_trainer.ports import Abilities
from remote_trainer.worker.desk import Desk
from tests.support.virtual import lived

EVERY_S = 3.0


def a_driver(name: str = "test", every_s: float = EVERY_S) -> Any:
    return SimpleNamespace(name=name, abilities=Abilities(rents_every_s=every_s))


def test_requests_to_rent_keep_their_distance_whoever_sends_them() -> None:
    """Jobs that come together are let through one after the other, a race leaves room for all its requests."""

    async def life() -> None:
        desk, loop, came = Desk(), asyncio.get_running_loop(), []

        async def rent(requests: int) -> None:
            await desk.turn(a_driver(), requests)
            came.append(loop.time())

        await asyncio.gather(rent(1), rent(2), rent(1))
        assert [at - came[0] for at in came] == [0.0, EVERY_S, 3 * EVERY_S]

    lived(life())


def test_another_provider_has_a_line_of_its_own() -> None:
    """And where requests need no distance nobody waits."""

    async def life() -> None:
        desk = Desk()
        for every_s in (3600.0, 0.0, 0.0):
            assert await desk.turn(a_driver(f"other {every_s}", every_s), 1) == 0.0
        assert await desk.turn(a_driver(), 1) == 0.0

    lived(life())


def test_who_goes_away_gives_up_its_place() -> None:
    """A job that is cancelled while it waits for its turn delays nobody."""

    async def life() -> None:
        desk = Desk()
        await desk.turn(a_driver(), 1)
        waiting = [asyncio.create_task(desk.turn(a_driver(), 1000)) for _ in range(3)]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert await desk.turn(a_driver(), 1) == EVERY_S

    lived(life())
