"""What all jobs of one worker share: store, writer, drivers, object store, settings, clock.

Rules for editing: built once in ``worker.loop``, handed down, never global. No policy here.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

from remote_trainer.host.client import DEFAULT_ROOT, SupervisedHost
from remote_trainer.lifecycle import prefix_of
from remote_trainer.model import HostFacts, Instance
from remote_trainer.policy import Policy, Spending
from remote_trainer.ports import Clock, Driver, Objects, Store, Transport
from remote_trainer.worker.alarm import Alarm
from remote_trainer.worker.desk import Desk
from remote_trainer.worker.gates import Gates
from remote_trainer.worker.listing import Listing
from remote_trainer.worker.market import Market
from remote_trainer.worker.models import Models
from remote_trainer.worker.way import Uplink
from remote_trainer.worker.writer import Writer

_FACTS_S = 20.0  # for so long a host is what it said it was: finding out costs it 40 ms


@dataclass(frozen=True, slots=True)
class _Door:
    """Where a machine is entered: nothing less tells it from every other one."""

    instance: str
    root: str
    transport: int  # its id(); each host holds on to its transport


@dataclass(kw_only=True)
class Shop:
    """Everything a job's effects may reach."""

    store: Store
    writer: Writer
    objects: Objects
    make_driver: Callable[[str, Mapping[str, Any]], Driver]
    find_secret: Callable[[str], str | None]
    clock: Clock
    policy: Policy
    deployment: str
    cache_dir: Path  # packed inputs
    spool_dir: Path  # artifacts on their way from a host to the object store
    collect_interval_s: float = 10.0
    alarm_command: Sequence[str] = ()
    spending: Spending = field(default_factory=Spending)
    market: Market = field(init=False)
    alarm: Alarm = field(init=False)
    gates: Gates = field(init=False)
    models: Models = field(init=False)
    desk: Desk = field(default_factory=Desk)
    uplink: Uplink = field(default_factory=Uplink)
    _drivers: dict[str, Driver] = field(default_factory=dict)
    _listings: dict[int, Listing] = field(default_factory=dict)  # by driver, each of which lives as long as this
    # By machine and way. A rented one is remembered as long as somebody holds it: its machine goes, others come.
    _hosts: dict[_Door, SupervisedHost] = field(default_factory=dict)
    _rented: WeakValueDictionary[_Door, SupervisedHost] = field(default_factory=WeakValueDictionary)
    _facts: WeakKeyDictionary[SupervisedHost, tuple[float, HostFacts]] = field(default_factory=WeakKeyDictionary)
    _asking: WeakKeyDictionary[SupervisedHost, asyncio.Lock] = field(default_factory=WeakKeyDictionary)

    def __post_init__(self) -> None:
        self.market = Market(self.store, self.clock)
        self.alarm = Alarm(self.clock, self.deployment, self.alarm_command)
        self.gates = Gates(self)
        self.models = Models(self.find_secret)

    def drivers(self) -> Sequence[Driver]:
        """Return every driver that was asked for so far."""
        return tuple(self._drivers.values())

    def driver(self, name: str, options: Mapping[str, Any]) -> Driver:
        """Return the one driver for a name and its options, so that all jobs of a host share its connection."""
        key = f"{name} {json.dumps(options, sort_keys=True, default=str)}"
        if key not in self._drivers:
            self._drivers[key] = self.make_driver(name, options)
        return self._drivers[key]

    def listing(self, driver: Driver) -> Listing:
        """Return what tells all jobs what a driver lists of this installation."""
        return self._listings.setdefault(id(driver), Listing(driver, prefix_of(self.deployment), self.clock))

    async def host(self, driver: Driver, instance: Instance) -> SupervisedHost:
        """Return the host of an instance; the same object for the same machine and transport, as long as anybody has it.

        One transport may lead to several machines: what is known of one says nothing of the next.
        """
        transport: Transport = await driver.connect(instance)
        hosts = self._hosts if driver.abilities.borrowed else self._rented
        door = _Door(instance.id, str(instance.address.get("root", DEFAULT_ROOT)), id(transport))
        known = hosts.get(door)
        if known is None or known.transport is not transport:  # another one may have been given the number of one that is gone
            known = hosts[door] = SupervisedHost(transport, root=door.root)
        return known

    async def facts(self, host: SupervisedHost, *, anew: bool = False) -> HostFacts:
        """Return what a host is. Jobs that come together share one answer; a start on a host that was wiped since then is refused."""
        async with self._asking.setdefault(host, asyncio.Lock()):
            asked_at, facts = self._facts.get(host, (0.0, None))
            now = asyncio.get_running_loop().time()
            if facts is None or anew or now - asked_at > _FACTS_S:
                facts = await host.bootstrap(secrets.token_hex(8))
                self._facts[host] = (now, facts)
            return facts

    def forget_facts(self, host: SupervisedHost) -> None:
        """Ask again next time: the host is not what it was."""
        self._facts.pop(host, None)

    async def close(self) -> None:
        """Close every driver; what an alarm tells is told first."""
        await self.alarm.close()
        for driver in self._drivers.values():
            await driver.close()
        self._drivers.clear()
        self._hosts.clear()
