"""What a storm goes over: hosts, a store, a small disk for the workers, and workers with clocks of their own, restarted when they die.

Rules for editing: nothing has to be undone on this machine: mounts live in a mount namespace of this process, containers and processes end
with the block.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.storm import hosts, schedule
from tests.storm.hosts import StormHost
from tests.support import containers, mongo
from tests.support.mongo import MongoServer
from tests.support.rig import Rig, WorkerProcess, installation

_TOOLS = Path(__file__).parent / "tools"
_CLONE_NEWNS = 0x20000
_DISK_MB = 512
_DRAINED_S = 60


@dataclass
class Slot:
    """The place of one worker, as a service manager sees it: what dies there by itself is started again."""

    number: int
    clock: Path  # holds the seconds that its clock is off by
    worker: WorkerProcess | None = None
    frozen: bool = False
    deaths: int = 0  # those nobody dealt

    @property
    def working(self) -> bool:
        """Whether a worker is there that has come as far as to say something: on a busy machine others would never get to anything."""
        return self.worker is not None and self.worker.log_path.stat().st_size > 0


@dataclass
class Ground:
    """Everything that can be hit."""

    rig: Rig
    hosts: Sequence[StormHost]
    slots: Sequence[Slot]
    disk: Path  # the workers' small disk: store, object store, spool
    database: MongoServer | None
    dataset: Path
    started: dict[int, float] = field(default_factory=dict)  # process id → when, monotonic

    @property
    def jobs_file(self) -> str:
        """The embedded store's file."""
        return self.rig.app.settings.store_url.removeprefix("sqlite:///")

    def start(self, slot: Slot) -> None:
        """Start the worker of a slot."""
        path = self.rig.folder / f"worker{len(self.rig.workers)}.log"
        with path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.storm.worker", str(slot.clock)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONFAULTHANDLER": "1"},
                start_new_session=True,
            )
        slot.worker, slot.frozen = WorkerProcess(process, path, self.rig.app.settings.store_url), False
        self.rig.workers.append(slot.worker)
        self.started[slot.worker.process.pid] = time.monotonic()

    async def begin(self) -> float:
        """Start all workers; returns how many seconds it took until each had come as far as to say so."""
        began = time.monotonic()
        for slot in self.slots:
            self.start(slot)
        while not all(slot.working for slot in self.slots):
            await asyncio.sleep(0.05)
        return time.monotonic() - began

    def kill(self, slot: Slot) -> None:
        """`kill -9`; the slot stays empty until somebody starts a worker again."""
        worker, slot.worker, slot.frozen = slot.worker, None, False
        assert worker is not None
        worker.kill()

    async def keep_alive(self) -> None:
        """Restart what ends by itself, as a service manager would."""
        while True:
            await asyncio.sleep(0.5)
            for slot in self.slots:
                if slot.worker is not None and slot.worker.process.poll() is not None:
                    slot.deaths += 1
                    self.start(slot)

    def drain(self) -> list[int]:
        """Ask all workers to end, wait until they have, and return how they did."""
        there = [slot.worker.process for slot in self.slots if slot.worker is not None]
        for slot in self.slots:
            slot.worker = None
        for process in there:
            process.terminate()
        return [process.wait(_DRAINED_S) for process in there]


def missing(store: schedule.Store) -> str | None:
    """Why there can be no storm here, or None."""
    return containers.missing() or (mongo.missing() if store == "mongo" else None)


@contextlib.asynccontextmanager
async def prepared(folder: Path, *, store: schedule.Store, workers: int, host_count: int) -> AsyncIterator[Ground]:
    """Hosts, store, disk and workers, for as long as the block lasts."""
    async with AsyncExitStack() as stack:
        fleet = stack.enter_context(containers.fleet(folder / "fleet"))
        disk = stack.enter_context(_small_disk(folder / "disk"))
        database = _database(stack, folder / "mongo") if store == "mongo" else None
        ours = [hosts.launch(fleet, folder / "record" / f"host{number}") for number in range(host_count)]
        settings = {
            "tools_path": _TOOLS,
            "data_dir": disk / "data",
            "state_dir": disk / "state",
            "collect_interval_s": 2,
            "connect_timeout_s": 10,  # two cores log in slowly where forty connections come at once
            **({"store": database.uri.replace("/?", "/storm?")} if database else {}),
        }
        rig = await stack.enter_async_context(installation(folder / "rig", ours[0].box, lease_s=schedule.LEASE_S, **settings))
        slots = [Slot(number, folder / f"clock{number}") for number in range(workers)]
        for slot in slots:
            slot.clock.write_text("0")
        ground = Ground(rig, ours, slots, disk, database, _dataset(folder / "dataset"))
        keeping = asyncio.create_task(ground.keep_alive())
        try:
            yield ground
        finally:
            keeping.cancel()


def _database(stack: AsyncExitStack, folder: Path) -> MongoServer:
    folder.mkdir()
    return stack.enter_context(mongo.running(folder))


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    """Mount a small disk that nobody else sees, and that goes with this process at the latest."""
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "no mount namespace of our own")
    _run("mount", "--make-rprivate", "/")
    _run("mount", "-t", "tmpfs", "-o", f"size={_DISK_MB}m,mode=700", "storm", str(folder))
    yield folder
    _run("umount", "--lazy", str(folder))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=20)


def _dataset(folder: Path) -> Path:
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.bin").write_bytes(os.urandom(250_000))
    return folder
