"""Deals the blows of a schedule, and writes down what was really hit, when, and for how long.

Rules for editing: a blow that finds nothing to hit waits a little for something, then is counted as missed; whatever it breaks is whole
again when it is over.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from tests.storm import hosts
from tests.storm.ground import Ground, Slot
from tests.storm.hosts import StormHost
from tests.storm.schedule import Blow
from tests.support.rig import WorkerProcess

T = TypeVar("T")

_HOUR = 3600
_NOTHING_TO_HIT_S = 60.0

#: Keeps the file locked, now as a writer, now as a reader that never ends: the rollback journal lets nobody commit then.
_LOCKER = """\
import sqlite3, sys, time
base = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
base.execute(sys.argv[3])
rows = base.execute("SELECT count(*) FROM jobs").fetchall()
time.sleep(float(sys.argv[2]))
"""


@dataclass(kw_only=True)
class Struck:
    """One blow that hit; ``until`` is None while it lasts."""

    kind: str
    began: float  # monotonic
    until: float | None = None
    what: str = ""  # for people
    host: StormHost | None = None
    run: tuple[str, str] | None = None  # label and step
    worker: WorkerProcess | None = None

    def lasted_in(self, began: float, until: float) -> bool:
        """Whether it had any part in that time."""
        return self.began <= until and (self.until is None or self.until >= began)


@dataclass
class Dealer:
    """Deals blows to a ground; ``hurt`` is told of each worker that is killed or stopped, at that moment."""

    ground: Ground
    store: str
    hurt: Callable[[Struck], None]
    struck: list[Struck] = field(default_factory=list)
    missed: list[Blow] = field(default_factory=list)
    _clocks: int = 0  # how many have the clock wrong now
    _store: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def deal(self, blow: Blow) -> None:
        """Deal one blow and heal what it broke."""
        ways: dict[str, Callable[[Blow], Awaitable[None]]] = {
            "kill": self._kill,
            "freeze": self._freeze,
            "clock": self._clock,
            "disk": self._disk,
            "sessions": self._sessions,
            "cut": self._cut,
            "host-disk": self._host_disk,
            "supervisor": self._run,
            "step": self._run,
            "both": self._run,
            "store": self._lock_store if self.store == "sqlite" else self._kill_store,
        }
        await ways[blow.kind](blow)

    # -- workers

    async def _kill(self, blow: Blow) -> None:
        slot = await self._target(blow, lambda: [slot for slot in self.ground.slots if slot.working])
        if slot is None:
            return
        worker = slot.worker
        self.ground.kill(slot)
        struck = self._hit("kill", f"worker {slot.number}, back after {blow.lasts_s:.1f} s", worker=worker)
        self.hurt(struck)
        await asyncio.sleep(blow.lasts_s)
        self.ground.start(slot)
        self._over(struck)

    async def _freeze(self, blow: Blow) -> None:
        slot = await self._target(blow, lambda: [slot for slot in self.ground.slots if slot.working and not slot.frozen])
        if slot is None or slot.worker is None:
            return
        worker = slot.worker
        worker.freeze()
        slot.frozen = True
        struck = self._hit("freeze", f"worker {slot.number} for {blow.lasts_s:.1f} s", worker=worker)
        self.hurt(struck)
        await asyncio.sleep(blow.lasts_s)
        if slot.worker is worker:  # else it was killed in its sleep
            worker.thaw()
            slot.frozen = False
        self._over(struck)

    async def _clock(self, blow: Blow) -> None:
        """An hour forward or back. Processes that share an embedded store share a machine, hence its clock."""
        slots: Sequence[Slot] = self.ground.slots
        if self.store == "mongo":
            slots = [_pick(slots, blow.target)]
        off = _HOUR if blow.target < 0.5 else -_HOUR
        while self._clocks:  # one at a time, so that each is undone
            await asyncio.sleep(0.1)
        self._clocks += 1
        _set(slots, off)
        struck = self._hit("clock", f"{off:+d} s for {blow.lasts_s:.1f} s, workers {[slot.number for slot in slots]}")
        await asyncio.sleep(blow.lasts_s)
        _set(slots, 0)
        self._clocks -= 1
        self._over(struck)

    async def _disk(self, blow: Blow) -> None:
        struck = self._hit("disk", f"for {blow.lasts_s:.1f} s")
        path = self.ground.disk / "filler"
        await self._keep_full(blow, lambda: _fill(path))
        path.unlink(missing_ok=True)
        self._over(struck)

    # -- hosts

    async def _sessions(self, blow: Blow) -> None:
        host = _pick(self.ground.hosts, blow.target)
        count = await asyncio.to_thread(host.kill_sessions)
        self._over(self._hit("sessions", f"{count} of {host.box.host}", host=host))

    async def _cut(self, blow: Blow) -> None:
        host = _pick(self.ground.hosts, blow.target)
        struck = self._hit("cut", f"{host.box.host} for {blow.lasts_s:.1f} s", host=host)
        await asyncio.to_thread(host.box.cut)
        await asyncio.sleep(blow.lasts_s)
        await asyncio.to_thread(host.box.heal)
        self._over(struck)

    async def _host_disk(self, blow: Blow) -> None:
        host = _pick(self.ground.hosts, blow.target)
        struck = self._hit("host-disk", f"{host.box.host} for {blow.lasts_s:.1f} s", host=host)
        await self._keep_full(blow, host.fill)
        host.free()
        self._over(struck)

    async def _run(self, blow: Blow) -> None:
        """Kill a step, its supervisor, or both."""

        def running() -> list[tuple[StormHost, tuple[str, str]]]:
            return [(host, run) for host in self.ground.hosts for run in host.running_steps()]

        target = await self._target(blow, running)
        if target is None:
            return
        host, (label, step) = target
        # Written down first: the moment it is hit the step's end may be on its way to the store.
        struck = self._hit(blow.kind, f"{label} {step}", host=host, run=(label, step))
        await asyncio.to_thread(host.kill_run, label, step, supervisor=blow.kind != "step", processes=blow.kind != "supervisor")
        self._over(struck)

    # -- the store

    async def _lock_store(self, blow: Blow) -> None:
        how = "BEGIN EXCLUSIVE" if blow.target < 0.5 else "BEGIN"
        struck = self._hit("store", f"{how} for {blow.lasts_s:.1f} s")
        command = [sys.executable, "-c", _LOCKER, self.ground.jobs_file, str(blow.lasts_s), how]
        locker = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        await asyncio.to_thread(locker.wait, 60)
        self._over(struck)

    async def _kill_store(self, blow: Blow) -> None:
        database = self.ground.database
        assert database is not None
        async with self._store:
            struck = self._hit("store", f"down for {blow.lasts_s:.1f} s")
            await asyncio.to_thread(database.kill)
            await asyncio.sleep(blow.lasts_s)
            await asyncio.to_thread(database.start)
            self._over(struck)

    # -- helpers

    async def _keep_full(self, blow: Blow, fill: Callable[[], None]) -> None:
        """Whatever is freed meanwhile is taken too."""
        until = time.monotonic() + blow.lasts_s
        while time.monotonic() < until:
            fill()
            await asyncio.sleep(0.05)

    async def _target(self, blow: Blow, there: Callable[[], Sequence[T]]) -> T | None:
        """Return what is hit, as soon as there is something to hit."""
        until = time.monotonic() + _NOTHING_TO_HIT_S
        while time.monotonic() < until:
            if found := there():
                return _pick(found, blow.target)
            await asyncio.sleep(0.5)
        self.missed.append(blow)
        return None

    def _hit(
        self,
        kind: str,
        what: str,
        *,
        host: StormHost | None = None,
        run: tuple[str, str] | None = None,
        worker: WorkerProcess | None = None,
    ) -> Struck:
        self.struck.append(Struck(kind=kind, began=time.monotonic(), what=what, host=host, run=run, worker=worker))
        return self.struck[-1]

    def _over(self, struck: Struck) -> None:
        struck.until = time.monotonic()


def _pick(some: Sequence[T], target: float) -> T:
    return some[int(target * len(some))]


def _set(slots: Sequence[Slot], off: int) -> None:
    for slot in slots:
        slot.clock.with_suffix(".new").write_text(str(off))
        slot.clock.with_suffix(".new").replace(slot.clock)


def _fill(path: hosts.Path) -> None:
    with path.open("ab") as filler:
        hosts.fill(filler.fileno())
