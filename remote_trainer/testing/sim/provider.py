"""A provider as its customers know it: instances appear late, listings are old, what is destroyed stays a while or comes back.

Rules for editing: what was true when is kept, so that a listing can show any time; the network is dealt with in ports.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from remote_trainer.model import Instance, InstanceState, Offer
from remote_trainer.testing.sim.machine import Machine

if TYPE_CHECKING:
    from remote_trainer.testing.sim.world import World

_NEVER = float("inf")


@dataclass
class Rented:
    """An instance as the provider keeps it; times are when each thing came true."""

    instance: Instance
    machine: Machine
    created_at: float
    ready_at: float
    offer: Offer
    broken: bool = False
    bid: Decimal = Decimal(0)  # of a spot machine; others' least is what would win against it
    least: Decimal = Decimal(0)
    listed: bool = True
    stopped_at: float = _NEVER
    destroyed_at: float = _NEVER

    def alive(self, at: float) -> bool:
        """Did it cost money then?"""
        return self.created_at <= at < self.destroyed_at

    def shown(self, at: float) -> Instance:
        """Return it as a listing of that time shows it."""
        states = (
            (at >= self.stopped_at, InstanceState.STOPPED),
            (self.broken and at >= self.ready_at, InstanceState.BROKEN),
            (at >= self.ready_at, InstanceState.READY),
        )
        state = next((state for holds, state in states if holds), InstanceState.STARTING)
        return Instance(id=self.instance.id, label=self.instance.label, state=state, min_bid=self.least)

    @property
    def ready(self) -> bool:
        """Does it have an address to connect to?"""
        return not self.broken and self.machine.world.now >= self.ready_at


class Provider:
    """All instances there ever were."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.rented: dict[str, Rented] = {}
        self.busy_until = 0.0  # something that was set in motion happens by then

    def create(self, label: str, offer: Offer) -> Instance:
        """Rent out an instance."""
        world = self._world
        world.promises.rented(label, offer.id)
        number = len(self.rented) + 1
        instance = Instance(id=f"i{number}", label=label, state=InstanceState.STARTING)
        ready_at, broken = (
            world.now + world.dice.choice((3, 3, 20)) * world.dice.uniform(0.5, 1),
            world.deal("boot-breaks", world.faults.broken_boots),
        )
        one = Rented(instance, Machine(world, f"disk{number}"), world.now, ready_at, offer, broken)
        one.bid = offer.price_per_hour - offer.disk_per_hour
        one.listed = not world.deal("unlisted", world.faults.unlisted)
        self.rented[instance.id] = one
        world.say(f"provider: {instance.id} is rented as {label}")
        world.promises.check_money()
        return instance

    def alive(self) -> list[Rented]:
        """Return what costs money."""
        return [one for one in self.rented.values() if one.alive(self._world.now)]

    def listing(self, prefix: str) -> list[Instance]:
        """Return what the provider shows: at times how it was a little ago."""
        world = self._world
        at = world.now
        if world.deal("listing-stale", world.faults.stale_listing):
            at -= world.dice.uniform(0, world.faults.lag_s)
        return [
            one.shown(at)
            for one in self.rented.values()
            if one.alive(at) and one.listed and one.instance.label.startswith(prefix)
        ]

    def recorded(self, label: str) -> list[Instance]:
        """Return what the records know of a label: also what no listing shows, at times how it was a little ago."""
        world = self._world
        at = world.now
        if world.deal("records-stale", world.faults.stale_listing):
            at -= world.dice.uniform(0, world.faults.lag_s)
        return [one.shown(at) for one in self.rented.values() if one.alive(at) and one.instance.label == label]

    def take_bid(self, instance_id: str, price: Decimal) -> None:
        """Take a higher bid for a spot machine."""
        one = self.rented[instance_id]
        self._world.promises.bid(one, price)
        one.bid = price

    def compete(self, one: Rented) -> None:
        """Let somebody want a spot machine: it is theirs soon, unless we bid more."""
        one.least = (one.bid * Decimal("1.1")).quantize(Decimal("0.0001"))
        delay = self._world.dice.uniform(10, 60)
        self._world.loop.call_later(delay, self._outbid, one, context=self._world.loop.outside)

    def _outbid(self, one: Rented) -> None:
        if one.alive(self._world.now) and one.bid <= one.least:
            self._world.say(f"provider: {one.instance.id} goes to a higher bid")
            self.preempt(one)

    def destroy(self, instance_id: str) -> None:
        """Begin to end an instance."""
        one, world = self.rented.get(instance_id), self._world
        if one is None or not one.alive(world.now) or world.deal("destroy-forgotten", world.faults.stubborn):
            return
        world.promises.destroyed(one)
        wait_s = 0.0
        if one.destroyed_at == _NEVER:
            wait_s = (
                world.dice.uniform(5, 40) if world.deal("destroy-slow", world.faults.slow_destroy) else world.dice.uniform(0, 1)
            )
        world.say(f"provider: {instance_id} ends in {wait_s:.0f} s")
        self._end(one, min(one.destroyed_at, world.now + wait_s))

    def preempt(self, one: Rented) -> None:
        """Stop an instance: it runs nothing and costs its storage."""
        one.stopped_at = self._world.now
        one.machine.vanish()

    def lose(self, one: Rented) -> None:
        """Lose an instance without a word."""
        self._end(one, self._world.now)

    def _end(self, one: Rented, at: float) -> None:
        one.destroyed_at = at
        one.machine.vanish()
        if self._world.deal("resurrected", self._world.faults.resurrections):
            delay = self._world.dice.uniform(30, 200)
            self.busy_until = max(self.busy_until, at + delay)
            self._world.loop.call_at(at + delay, self._resurrect, one, context=self._world.loop.outside)

    def _resurrect(self, one: Rented) -> None:
        """It was not gone after all: it is listed again, stopped, and costs money."""
        if not one.alive(self._world.now):
            self._world.say(f"provider: {one.instance.id} ({one.instance.label}) is there again")
            one.created_at, one.stopped_at, one.destroyed_at = self._world.now, self._world.now, _NEVER
