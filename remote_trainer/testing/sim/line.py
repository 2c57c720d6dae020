"""A worker process's way out into the world: messages that are late or lost, and a process that may die or pause at any of them.

A message that changes something arrives by itself: who sent it may be dead, or may not wait for the reply any more.

Rules for editing: nothing here knows what a message is about.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from remote_trainer.testing.sim.loop import EPOCH, Being
from remote_trainer.testing.sim.world import World
from remote_trainer.worker.clock import SystemClock

T = TypeVar("T")
Raises = Callable[[str], Exception]

#: Of the answers to questions: most come as fast as that, since a life asks a thousand times.
_AT_ONCE = 0.75


class Line:
    """One process. ``die`` ends it and sees to what follows."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.being = Being()
        self.die: Callable[[], None] = self.being.die
        self.skew_s = world.dice.uniform(-3600, 3600) if world.deal("clock-skew", world.faults.wrong_clocks) else 0.0
        self.clock = SystemClock(wall=self.wall, elapsed=world.loop.time)

    def wall(self) -> float:
        """Return what the process takes for the time, seconds since the epoch."""
        return EPOCH.timestamp() + self.world.loop.now + self.skew_s

    def pause(self) -> None:
        """Stand still for a while."""
        world = self.world
        seconds = world.dice.choice((1, 10, 40)) * world.dice.uniform(0.5, 1)
        world.note("worker-pauses", f"{self.name} for {seconds:.0f} s")
        self.being.frozen = True
        world.loop.call_later(seconds, world.loop.thaw, self.being, context=world.loop.outside)

    async def send(
        self, act: Callable[[], T], lost: Raises, unsure: Raises | None = None, *, most_s: float = 0.4, heavy: bool = True
    ) -> T:
        """Send a request and wait for the reply. ``unsure`` is what a lost reply raises; ``heavy``: it changes something."""
        world, loop = self.world, self.world.loop
        quiet = loop.now >= world.quiet_s
        if not quiet:
            await self._strike(heavy)
            if world.deal("message-lost", world.faults.loss):
                await asyncio.sleep(world.dice.uniform(0, most_s))
                raise lost("the request was lost")
        if not heavy and (quiet or world.dice.random() < _AT_ONCE):
            return act()
        reply: asyncio.Future[T] = loop.create_future()
        loop.call_later(world.dice.random() * most_s, _arrive, act, reply, context=loop.outside)
        if not quiet:
            await self._strike(heavy)
        result = await reply
        if not quiet and world.deal("message-lost", world.faults.loss):
            await asyncio.sleep(world.dice.uniform(0, 3))
            raise (unsure or lost)("the reply was lost")
        return result

    async def _strike(self, heavy: bool) -> None:
        """Now and then, die or pause right here."""
        faults, fate = self.world.faults, self.world.dice.random() * (1 if heavy else 10)
        if fate < faults.deaths:
            self.die()
        elif fate < faults.deaths + faults.pauses:
            self.pause()
        else:
            return
        await asyncio.sleep(0)


def _arrive(act: Callable[[], T], reply: asyncio.Future[T]) -> None:
    try:
        result = act()
    except Exception as error:  # noqa: BLE001 - goes back to the sender, if it still waits
        if not reply.done():
            reply.set_exception(error)
    else:
        if not reply.done():
            reply.set_result(result)
