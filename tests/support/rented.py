"""A provider of machines for tests: each is a folder of an SSH server, and one append-only file is all that the provider knows.

Renting, ending and taking away are one line each, written at once: the file is the record of what was alive when, and nobody but this
module writes it. A machine boots for a while, and is listed for a while after its end was asked for. The reply to the first request to
rent is lost, and so was the request; what a machine must be bid may rise.

Rules for editing: a driver like any other (see docs/drivers.md), found by its entry point; what ends a machine ends what runs on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

from remote_trainer.drivers.ssh import SshDriver
from remote_trainer.errors import Ambiguous
from remote_trainer.model import Instance, InstanceState, Offer, Resources
from remote_trainer.ports import Abilities, DriverSettings, Spec, Transport

_BOOTS_S = 0.4
_GOES_S = 0.4
_REPLY_S = 0.02


@dataclass
class Machine:
    """What the record says of one machine; times are the wall clock's."""

    id: str
    label: str
    rented_at: float
    ending_at: float | None = None  # when its end was asked for
    taken_at: float | None = None  # when the provider took it away
    least: Decimal = Decimal(0)  # what others would bid for it now, US dollars an hour

    @property
    def gone_at(self) -> float | None:
        """When it stopped costing money, or will."""
        ends = [at for at in (self.taken_at, self.ending_at + _GOES_S if self.ending_at else None) if at is not None]
        return min(ends, default=None)

    def alive(self, at: float) -> bool:
        """Whether it cost money at that time."""
        return self.rented_at <= at and (self.gone_at is None or at < self.gone_at)


@dataclass(frozen=True, slots=True)
class Provider:
    """The provider's own side: its record, and a folder for each machine's disk."""

    folder: Path

    @property
    def record(self) -> Path:
        """One line for everything that happened."""
        return self.folder / "record"

    def machines(self) -> list[Machine]:
        """Every machine there ever was, oldest first."""
        found: dict[str, Machine] = {}
        for line in self.record.read_text().splitlines() if self.record.exists() else ():
            entry = json.loads(line)
            if entry["verb"] == "rent":
                found[entry["id"]] = Machine(entry["id"], entry["label"], entry["at"])
            elif entry["verb"] == "end" and found[entry["id"]].ending_at is None:
                found[entry["id"]].ending_at = entry["at"]
            elif entry["verb"] == "dear":
                found[entry["id"]].least = Decimal(entry["least"])
            elif entry["verb"] == "take":
                found[entry["id"]].taken_at = entry["at"]
        return list(found.values())

    def bids(self, number: str) -> list[Decimal]:
        """What was bid for a machine since it was rented."""
        entries = map(json.loads, self.record.read_text().splitlines())
        return [Decimal(entry["price"]) for entry in entries if entry["verb"] == "bid" and entry["id"] == number]

    def rent(self, label: str) -> str:
        """A new machine; of the very first request nobody hears again."""
        if not self.record.exists():
            self._write(verb="lose", label=label)
            raise Ambiguous("no answer", driver=RentedDriver.name, operation="create")
        number = secrets.token_hex(4)
        self._write(verb="rent", id=number, label=label)
        return number

    def end(self, number: str) -> None:
        """Power a machine off; idempotent, and fine for one that is not there."""
        if any(machine.id == number for machine in self.machines()):
            self.power_off(number)
            self._write(verb="end", id=number)

    def guard(self, number: str, until: float) -> None:
        """Note when a machine would be ended by itself; too late for any test."""
        self._write(verb="guard", id=number, until=until)

    def bid(self, number: str, price: Decimal) -> None:
        """Note what is bid for a machine."""
        self._write(verb="bid", id=number, price=str(price))

    def make_dear(self, number: str, least: Decimal) -> None:
        """Let others bid for a machine."""
        self._write(verb="dear", id=number, least=str(least))

    def take(self, number: str) -> None:
        """Take a machine away from whoever uses it, as a spot market does: it is off the list long before it is off."""
        self._write(verb="take", id=number)

    def disk(self, number: str) -> Path:
        """Where a machine's files are."""
        return self.folder / "disks" / number

    def _write(self, **entry: object) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"at": time.time(), **entry}) + "\n"
        handle = os.open(self.record, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)

    def power_off(self, number: str) -> None:
        """Kill what runs on a machine and throw its disk away."""
        mark = os.fsencode(self.disk(number))
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (process / "environ").read_bytes() + (process / "cmdline").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)
        shutil.rmtree(self.disk(number), ignore_errors=True)


class RentedDriver:
    """Rents from a ``Provider``; the machines are reached through the SSH server that the options name."""

    name = "rented"
    abilities = Abilities(scheduler=True, spot=True, records=True)
    option_schema: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "properties": {key: {"type": "string"} for key in ("host", "host_key", "identity", "root", "provider")},
    }

    def __init__(self, options: Mapping[str, Any], settings: DriverSettings) -> None:
        self._provider = Provider(Path(options["provider"]))
        self._ssh = SshDriver({key: value for key, value in options.items() if key in ("host", "host_key", "identity")}, settings)
        self._host_key: str = options["host_key"]

    async def offers(self, wanted: Resources, *, spot: bool = False) -> Sequence[Offer]:
        await asyncio.sleep(_REPLY_S)
        return [Offer(id="folder", driver=self.name, price_per_hour=Decimal("0.4") if spot else Decimal(1), spot=spot)]

    async def create(self, offer: Offer, spec: Spec, label: str) -> Instance:
        number = self._provider.rent(label)
        await asyncio.sleep(_REPLY_S)  # done, and nobody knows it yet
        return Instance(id=number, label=label, state=InstanceState.STARTING)

    async def instances(self, prefix: str) -> Sequence[Instance]:
        await asyncio.sleep(_REPLY_S)
        now = time.time()
        machines = [each for each in self._provider.machines() if each.label.startswith(prefix) and each.alive(now)]
        return [self._instance(machine, now) for machine in machines]

    async def destroy(self, instance: Instance) -> None:
        self._provider.end(instance.id)
        await asyncio.sleep(_REPLY_S)

    async def guard(self, instance: Instance, until: datetime) -> None:
        self._provider.guard(instance.id, until.timestamp())
        await asyncio.sleep(_REPLY_S)

    async def bid(self, instance: Instance, price: Decimal) -> None:
        self._provider.bid(instance.id, price)
        await asyncio.sleep(_REPLY_S)

    async def recorded(self, offer: Offer, label: str, since: datetime) -> Sequence[Instance]:
        return [one for one in await self.instances(label) if one.label == label]

    async def connect(self, instance: Instance) -> Transport:
        return await self._ssh.connect(instance)

    async def check(self) -> str:
        return "a folder"

    async def close(self) -> None:
        await self._ssh.close()

    def _instance(self, machine: Machine, now: float) -> Instance:
        ready = now >= machine.rented_at + _BOOTS_S
        return Instance(
            id=machine.id,
            label=machine.label,
            state=InstanceState.READY if ready else InstanceState.STARTING,
            address={"root": str(self._provider.disk(machine.id))} if ready else {},
            host_key=self._host_key,
            price_per_hour=Decimal(1),
            min_bid=machine.least,
        )


def install(folder: Path) -> Path:
    """Make the driver an installed one for whoever has the returned folder on its path."""
    about = folder / "rented_machines-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: rented-machines\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[remote_trainer.drivers]\nrented = tests.support.rented:RentedDriver\n")
    return folder
