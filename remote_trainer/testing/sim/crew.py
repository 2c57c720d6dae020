"""The worker processes of a simulated life: the whole worker as it is shipped, in a process that can be killed and frozen.

Everything of the worker is real: loop, runner, performer, collector, log copy, writer, reaper. Only what it talks to is simulated, and
where the spool folder lies: in memory, where the machine has such a place.

Rules for editing: a process never knows that it is simulated; nothing of ``remote_trainer.worker`` is replaced here.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remote_trainer.errors import StoreUnavailable
from remote_trainer.model import SCHEMA, Instance
from remote_trainer.policy import Policy
from remote_trainer.ports import Driver
from remote_trainer.testing.sim.host import SimHost
from remote_trainer.testing.sim.line import Line
from remote_trainer.testing.sim.ports import SimDriver, SimObjects, StoreLine
from remote_trainer.testing.sim.world import World
from remote_trainer.worker.loop import Worker
from remote_trainer.worker.reaper import Reaper
from remote_trainer.worker.shop import Shop
from remote_trainer.worker.writer import Writer

LEASE_S = 10.0
MOST_JOBS = 4
#: As the product's, but for patience: a life should not take hours.
POLICY = Policy(
    provision_timeout_s=200, transfer_timeout_s=200, fetch_timeout_s=300, fetch_partial_timeout_s=60, stop_timeout_s=60,
    fetch_overtime_s=120, instance_poll_s=15, lag_margin_s=6, release_grace_s=30, reap_every_s=15, reap_grace_s=30, retry_max_s=10,
)  # fmt: skip


@dataclass(kw_only=True)
class SimShop(Shop):
    """What all jobs of one worker share, with hosts of the simulated world."""

    line: Line
    _known: dict[str, SimHost] = field(default_factory=dict)

    async def host(self, driver: Any, instance: Instance) -> Any:
        """Return the host of an instance; the same object for the same machine."""
        if instance.id not in self._known:
            self._known[instance.id] = SimHost(self.line, instance)
        return self._known[instance.id]


class Process:
    """One worker process."""

    shop_kind: type[SimShop] = SimShop

    def __init__(self, world: World, name: str, spool: Path, *, older: bool) -> None:
        self.line, self.name, self.older = Line(world, name), name, older
        store: Any = StoreLine(self.line, SCHEMA - 1 if older else SCHEMA)
        driver: Driver = self._driver(spool)
        self.shop = self.shop_kind(
            line=self.line,
            store=store,
            writer=Writer(store, self.line.clock),
            objects=SimObjects(self.line),
            make_driver=lambda name, options: self._lab if name == "lab" else driver,
            find_secret=lambda name: None,
            clock=self.line.clock,
            policy=POLICY,
            deployment="sim",
            cache_dir=spool / "cache",
            spool_dir=spool / name,
        )
        reaper = Reaper(self.shop) if world.profile.nets else None
        self.worker = Worker(self.shop, lease_s=LEASE_S, max_jobs=MOST_JOBS, name=name, reaper=reaper)

    @property
    def _lab(self) -> Any:
        return SimDriver(self.line, "lab")

    def _driver(self, spool: Path) -> Any:
        return SimDriver(self.line)


class Crew:
    """All worker processes: whoever ends is followed by another one."""

    def __init__(self, world: World, spool: Path, kind: type[Process] = Process) -> None:
        self._world, self._spool, self._kind = world, spool, kind
        self._hired = 0
        self.alive: list[Process] = []

    def hire(self, older: bool = False) -> None:
        """Start a worker, of the previous version if told so."""
        world = self._world
        self._hired += 1
        if older:
            world.note("older-worker")
        process = self._kind(world, f"w{self._hired}", self._spool, older=older)
        process.line.die = lambda: self.kill(process)
        self.alive.append(process)
        world.say(f"{process.name} begins")
        main = world.loop.be(process.line.being, process.worker.run(), process.name)
        main.add_done_callback(lambda task: self._ended(process, task), context=world.loop.outside)

    def kill(self, process: Process) -> None:
        """End a process as `kill -9` does; another one comes soon."""
        if process in self.alive:
            self._world.note("worker-dies", process.name)
            self.alive.remove(process)
            process.line.being.die()
            self._follow(process)

    def drain(self, process: Process) -> None:
        """Tell a process to stop, as a redeploy does."""
        self._world.note("worker-drains", process.name)
        process.worker.stop()

    def leave(self) -> None:
        """All die, and nobody follows."""
        self._world.note("workers-gone")
        for process in self.alive:
            process.line.being.die()
        self.alive.clear()

    def _follow(self, process: Process) -> None:
        # Of the same version: somebody must be there who can go on with its documents.
        world = self._world
        world.loop.call_later(world.dice.uniform(0, 6), self.hire, process.older, context=world.loop.outside)

    def _ended(self, process: Process, task: asyncio.Task[Any]) -> None:
        if process not in self.alive:
            return
        self.alive.remove(process)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, StoreUnavailable):  # which a service manager starts again
            self._world.broken(f"{process.name} ended with {error!r}")
        self._follow(process)
