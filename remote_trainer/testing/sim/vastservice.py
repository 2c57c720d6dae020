"""Vast.ai in a simulated world: the simulated service in virtual time, with the world's machines behind its instances.

Rules for editing: what the service does is in ``remote_trainer.testing.vast``; here it meets the world's clock, machines and promises.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from remote_trainer.model import Instance as Shown
from remote_trainer.testing.sim.loop import EPOCH
from remote_trainer.testing.sim.vastmachine import Watched
from remote_trainer.testing.vast import demo, life
from remote_trainer.testing.vast.doors import Door
from remote_trainer.testing.vast.instances import Instance, Timings
from remote_trainer.testing.vast.machines import Address, Harm, Order
from remote_trainer.testing.vast.provider import Provider
from remote_trainer.testing.vast.reply import Reply
from remote_trainer.testing.vast.routes import Request
from remote_trainer.testing.vast.schedule import Job
from remote_trainer.testing.vast.server import ROUTES

if TYPE_CHECKING:
    from remote_trainer.testing.sim.world import World

URL = "http://vast.sim"
OURS = "rt-sim-"
#: Somebody else's, with the same account: another installation whose name begins like ours, a person's, and one without a label.
STRANGERS = ("rt-sim2-j1-a1", "somebody/else", "")
_TIMINGS = Timings(scheduled_s=1, created_s=1, loading_s=8, reboot_s=5, destroy_s=3)
_OFFERS, _CHEAPEST, _DEARER = 24, 0.04, 0.002
_FOREVER_S = 1e9
_SLEEP = re.compile(r"^sleep (\d+)$", re.MULTILINE)  # of the script at a machine's start that ends it at last


class ShutDoor(Door):
    """A way in that does not open yet, without sockets."""

    def __init__(self, address: Address) -> None:
        self._address, self.port, self.shut = address, 1, True

    def open(self) -> Address:
        self.shut = False
        return self._address

    def close(self) -> None:
        """Nothing is open."""


@dataclass
class Rental:
    """One of our instances, as the rest of the world knows it."""

    instance: Shown
    contract: Instance
    machine: Watched
    #: Whoever asked for it stood still between its last look at the clock and the request: only a reaper can put that right.
    late: bool = False
    keys: frozenset[str] = frozenset()

    @property
    def ready(self) -> bool:
        """Is there somebody to log in to?"""
        door = self.contract.door
        up = self.contract.actual in ("running", "unknown") and self.contract.ended_at is None
        return up and not (isinstance(door, ShutDoor) and door.shut)

    @property
    def alive(self) -> bool:
        """Does it cost money?"""
        return self.contract.ended_at is None


class _Clock:
    """The world's time."""

    def __init__(self, world: World) -> None:
        self._world = world

    def now(self) -> float:
        return EPOCH.timestamp() + self._world.now


class Behind:
    """The world's machines behind our instances: ``vast.machines.Machines``. Behind strangers' there is nothing."""

    instant = True

    def __init__(self, world: World, service: Service) -> None:
        self._world, self._service = world, service

    def start(self, order: Order) -> Address:
        self.let_in(order.instance, order.keys)
        if (one := self._service.rental(order.instance)) and (last := _SLEEP.search(order.onstart)):
            one.machine.last_s = float(last[1])
            one.machine.started()
        return _address(order.instance)

    def halt(self, instance: int) -> None:
        self._silence(instance, _FOREVER_S, reboot=True)

    def boot(self, instance: int, *, moved: bool = False) -> Address:
        if one := self._service.rental(instance):
            one.machine.silent_until = self._world.now
        return _address(instance + (1 if moved else 0))

    def remove(self, instance: int) -> None:
        if one := self._service.rental(instance):
            one.machine.vanish()

    def let_in(self, instance: int, keys: Sequence[str]) -> None:
        if one := self._service.rental(instance):
            one.keys = frozenset(key.strip() for key in keys)

    def harm(self, instance: int, how: Harm) -> None:
        match how:
            case Harm.CUT:
                self._silence(instance, _FOREVER_S)
            case Harm.HEAL:
                self.boot(instance)
            case Harm.DROP:
                self._silence(instance, self._world.now + 1)
            case _:
                raise NotImplementedError(f"machines of this world cannot be broken so: {how.value}")

    def _silence(self, instance: int, until: float, *, reboot: bool = False) -> None:
        if one := self._service.rental(instance):
            if reboot:
                one.machine.reboot(0)
            one.machine.silent_until = max(one.machine.silent_until, until)


class Service(Provider):
    """The simulated service, whose time and machines are the world's; to the world it is its provider."""

    def __init__(self, world: World, offers: int = _OFFERS) -> None:
        self._world, self._wake_at = world, float("inf")
        self.rented: dict[str, Rental] = {}
        self.busy_until = 0.0
        self.late = False  # the request that is answered now was held up by whoever sent it
        self._by_itself = False
        rows = [demo.offer(1000 + number, dph_base=round(_CHEAPEST + number * _DEARER, 3)) for number in range(offers)]
        theirs = [demo.offer(number, rentable=True) for number in range(1, len(STRANGERS) + 1)]
        super().__init__([*rows, *theirs], machines=Behind(world, self), clock=_Clock(world), timings=_TIMINGS)
        self.account.limits.on, self.account.limits.now = True, world.loop.time
        self.strangers = [self.create(number, {"label": label}).id for number, label in enumerate(STRANGERS, start=1)]

    # -- as the rest of the world has it

    def rental(self, instance: int) -> Rental | None:
        """Return one of ours, None for a stranger's."""
        contract = self.live.get(instance)
        if contract is None or not contract.label.startswith(OURS):
            return self.rented.get(str(instance))
        if str(instance) not in self.rented:
            shown = Shown(id=str(instance), label=contract.label)
            machine = Watched(self._world, f"disk{instance}", leave=partial(self._farewell, contract))
            self.rented[shown.id] = Rental(shown, contract, machine, late=self.late)
        return self.rented[str(instance)]

    def alive(self) -> list[Rental]:
        """Return what costs us money; without a reaper, what it alone could return is left out."""
        nets = self._world.profile.nets
        return [one for one in self.rented.values() if one.alive and (nets or not one.late)]

    def lose(self, one: Rental) -> None:
        """Take an instance away without a word."""
        super().destroy(one.contract)

    def preempt(self, one: Rental) -> None:
        """Stop an instance for good: it runs nothing and costs its storage."""
        if one.alive:
            life.stop(self, one.contract, "preempted")

    # -- what is promised

    def create(self, offer_id: int, body: Mapping[str, Any], *, parked: bool = False) -> Instance:
        label = str(body.get("label") or "")
        if label.startswith(OURS):
            if not self.late:
                self._world.promises.rented(label, str(offer_id))
            self._world.say(f"vastai: offer {offer_id} is rented as {label}{', late' if self.late else ''}")
        made = super().create(offer_id, body, parked=parked)
        self.rental(made.id)
        return made

    def destroy(self, instance: Instance, *, lingers_s: float = 0.0) -> None:
        one = self.rental(instance.id)
        if one is None:
            raise self._world.broken(f"instance {instance.id}, a stranger's, is destroyed")
        if one.alive and not self._by_itself:
            self._world.promises.destroyed(one)
        self._world.say(f"vastai: {instance.id} ends{' by itself' if self._by_itself else ''}")
        super().destroy(instance, lingers_s=lingers_s)

    def _farewell(self, contract: Instance) -> bool:
        """A machine ends itself, with the key that it has for that."""
        one = self.rented[str(contract.id)]
        if not one.ready or not one.machine.answers():  # nothing runs there, or it is cut off, in both directions
            return False
        path, bearer = f"/api/v0/instances/{contract.id}/", f"Bearer {contract.api_key}"
        self._by_itself = True
        reply = self.ask(Request(method="DELETE", path=path, base=URL, body={}, authorization=bearer), late=False)
        self._by_itself = False
        return reply.status == 200

    def _fire(self, job: Job) -> None:
        self._by_itself = True
        super()._fire(job)
        self._by_itself = False

    def door(self, how: str, address: Address) -> Door:
        return ShutDoor(address)

    # -- time

    def ask(self, request: Request, *, late: bool) -> Reply:
        """Answer a request now."""
        self.late = late
        reply = ROUTES.answer(self, request)
        self.late = False
        self.go_on()
        return reply

    def go_on(self) -> None:
        """Do what is due by now, and see to it that what is due later is done then."""
        loop = self._world.loop
        self.tick()
        due = self._next_due()
        at = float("inf") if due is None else max(due - EPOCH.timestamp(), loop.now + 0.001)
        if at < self._wake_at:
            self._wake_at = at
            loop.call_at(at, self._wake, context=loop.outside)

    def _wake(self) -> None:
        if self._wake_at <= self._world.loop.now:
            self._wake_at = float("inf")
            self.go_on()


def _address(instance: int) -> Address:
    return f"10.9.{instance // 250 % 250}.{instance % 250 + 1}", 40_000 + instance % 20_000
