"""The blows dealt to a world from outside: to workers, store, object store, hosts, and the wishes of users.

Rules for editing: one method for each kind of blow that ``Faults.weights`` names; it notes what it has dealt.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from remote_trainer.model import JobId
from remote_trainer.testing.sim.crew import Crew
from remote_trainer.testing.sim.machine import Machine
from remote_trainer.testing.sim.world import World


class Blows:
    """Deals them until the world is quiet."""

    def __init__(self, world: World, crew: Crew) -> None:
        self._world, self._crew = world, crew
        self._deal: dict[str, Callable[[], None]] = {
            "worker-dies": lambda: crew.kill(world.dice.choice(crew.alive)),
            "worker-pauses": lambda: world.dice.choice(crew.alive).line.pause(),
            "worker-drains": lambda: crew.drain(world.dice.choice(crew.alive)),
            "clock-jump": self._jump,
            "store-outage": self._store_outage,
            "objects-outage": self._objects_outage,
            "object-rots": world.bucket.rot,
            "host-silent": self._silence,
            "host-reboots": self._reboot,
            "host-wiped": self._wipe,
            "vanished": self._vanish,
            "preempted": self._preempt,
            "prices-rise": self._compete,
        }

    def begin(self, jobs: list[JobId]) -> None:
        """Set everything in motion."""
        world, dice = self._world, self._world.dice
        if world.faults.weights:
            self._next()
        if world.exodus_s:
            self._after(dice.uniform(10, 60), self._exodus)
        for job_id in jobs:
            if dice.random() < world.faults.cancels:
                self._after(dice.uniform(0, 70), partial(world.store.request_cancel, job_id))

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        self._world.loop.call_later(seconds, act, context=self._world.loop.outside)

    def _next(self) -> None:
        self._after(self._world.dice.expovariate(1 / self._world.faults.every_s), self._blow)

    def _blow(self) -> None:
        if self._world.quiet:
            return
        kinds, weights = zip(*self._world.faults.weights, strict=True)
        kind = self._world.dice.choices(kinds, weights)[0]
        if self._crew.alive or not kind.startswith(("worker", "clock")):
            self._deal[kind]()
        self._next()

    # -- workers and their stores

    def _exodus(self) -> None:
        if self._world.over.is_set():
            return
        self._crew.leave()
        self._world.quiet_s = self._world.now  # nobody is there to be hit
        for _ in range(2):
            self._after(self._world.exodus_s, self._crew.hire)

    def _jump(self) -> None:
        line = self._world.dice.choice(self._crew.alive).line
        line.skew_s += self._world.dice.uniform(-3600, 3600)
        self._world.note("clock-jump", f"{line.name} is {line.skew_s:+.0f} s wrong")

    def _store_outage(self) -> None:
        seconds = self._world.dice.uniform(1, 20)
        self._world.note("store-outage", f"{seconds:.0f} s")
        self._world.store_down_until = self._world.now + seconds

    def _objects_outage(self) -> None:
        seconds = self._world.dice.uniform(1, 50)
        self._world.note("objects-outage", f"{seconds:.0f} s")
        self._world.bucket.down_until = self._world.now + seconds

    # -- hosts

    def _host(self) -> Machine | None:
        there = [machine for machine in self._world.machines if not machine.gone]
        return self._world.dice.choice(there) if there else None

    def _silence(self) -> None:
        if machine := self._host():
            world = self._world
            if world.doomed:
                world.doomed = False
                world.note("host-dead", machine.incarnation)
                machine.silent_until = 1e9
            elif world.deal("host-cut-off", world.faults.cut_off):
                machine.silent_until = world.now + world.dice.uniform(3600, 9000)
            else:
                seconds = world.dice.choice((4, 15, 45)) * world.dice.uniform(0.5, 1)
                world.note("host-silent", f"{machine.incarnation} for {seconds:.0f} s")
                machine.silent_until = max(machine.silent_until, world.now + seconds)

    def _reboot(self) -> None:
        if machine := self._host():
            self._world.note("host-reboots", machine.incarnation)
            machine.reboot(self._world.dice.uniform(1, 60))

    def _wipe(self) -> None:
        if machine := self._host():
            self._world.note("host-wiped", machine.incarnation)
            machine.wipe(self._world.dice.uniform(1, 60))

    def _vanish(self) -> None:
        if there := self._world.provider.alive():
            one = self._world.dice.choice(there)
            self._world.note("vanished", one.instance.id)
            self._world.provider.lose(one)

    def _preempt(self) -> None:
        if there := self._world.provider.alive():
            one = self._world.dice.choice(there)
            self._world.note("preempted", one.instance.id)
            self._world.provider.preempt(one)

    def _compete(self) -> None:
        if there := [one for one in self._world.provider.alive() if one.offer.spot]:
            one = self._world.dice.choice(there)
            self._world.note("prices-rise", one.instance.id)
            self._world.provider.compete(one)
