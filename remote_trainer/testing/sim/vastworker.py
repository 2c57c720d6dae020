"""A worker process that rents at the simulated Vast.ai: the driver as it is shipped, its requests over the process's line.

Rules for editing: nothing of the driver is replaced but the clock and the wire below its HTTP client.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import httpx

from remote_trainer.drivers.vastai.api import VastApi
from remote_trainer.drivers.vastai.driver import VastDriver
from remote_trainer.drivers.vastai.pace import Pace
from remote_trainer.errors import LoginRefused
from remote_trainer.model import Instance
from remote_trainer.ports import DriverSettings
from remote_trainer.testing.sim.crew import Process, SimShop
from remote_trainer.testing.sim.host import SimHost
from remote_trainer.testing.sim.line import Line
from remote_trainer.testing.sim.vastservice import URL, Rental
from remote_trainer.testing.sim.vastworld import VastWorld
from remote_trainer.testing.vast.reply import Reply
from remote_trainer.testing.vast.routes import Request

T = TypeVar("T")

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJsimulatedsimulatedsimulatedsimulated sim"
#: As visibility_lag_s: what the service's lag may be here.
LAG_S = 6.0
#: How long requests take to arrive, at most: on a good line they keep their distance, and the service's limits never refuse one.
_STEADY_S, _SWINGS_S = 0.15, 0.5
#: A request to rent that comes later than that was held up by a process that stood still.
PROMPT_S = 3.0


class Wire(httpx.AsyncBaseTransport):
    """Takes requests to the service and brings replies, unless they are lost, late, or the process dies."""

    def __init__(self, line: Line, world: VastWorld) -> None:
        self._line, self._world = line, world

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        world, sent_at = self._world, self._world.now
        asked = _asked(request)
        rents = request.method == "PUT" and "/asks/" in asked.path
        heavy = request.method != "GET" and "bundles" not in asked.path

        def answer() -> Reply:
            late = rents and world.now > sent_at + PROMPT_S
            if late:
                world.note("create-held-up", str(asked.fields.get("label")))
            world.meet(asked)
            return world.service.ask(asked, late=late)

        most_s = _SWINGS_S if world.faults.loss else _STEADY_S
        reply = await self._line.send(answer, self._lost, httpx.ReadTimeout, most_s=most_s, heavy=heavy)
        return await _brought(reply, float(request.extensions["timeout"]["read"]))

    def _lost(self, why: str) -> Exception:
        """A request that never arrives: known at once, or never."""
        return httpx.ConnectError(why) if self._world.dice.random() < 0.5 else httpx.ReadTimeout(why)


async def _brought(reply: Reply, patience_s: float) -> httpx.Response:
    if reply.delay_s:
        await asyncio.sleep(min(reply.delay_s, patience_s))
    if reply.dropped:
        raise httpx.RemoteProtocolError("the connection was closed")
    if reply.delay_s >= patience_s:
        raise httpx.ReadTimeout("no reply")
    headers = {"Content-Type": reply.content_type, **reply.headers}
    return httpx.Response(reply.status, headers=headers, content=reply.encoded())


def _asked(request: httpx.Request) -> Request:
    body = json.loads(request.content) if request.content else None
    query = dict(parse_qsl(request.url.query.decode(), keep_blank_values=True))
    return Request(
        method=request.method,
        path=request.url.path,
        base=URL,
        query=query,
        body=body,
        authorization=request.headers.get("Authorization"),
    )


class Driver(VastDriver):
    """The driver with the clock and the wire of one process."""

    def __init__(self, line: Line, world: VastWorld, folder: Path) -> None:
        settings = DriverSettings(state_dir=folder, ssh_key=folder / "key")
        super().__init__({"url": URL, "visibility_lag_s": LAG_S}, settings)
        key = world.service.account.key.value
        self._opened = VastApi(URL, key, pace=Pace(), now=line.wall, transport=Wire(line, world))

    def refused(self, instance_id: str) -> None:
        """A machine did not let us in, as its SSH transport would tell."""
        self._contacts.of(instance_id).refused = True


class Host(SimHost):
    """A rented machine, which lets in nobody but who has a key that the provider has put there."""

    def __init__(self, line: Line, instance: Instance, driver: Driver) -> None:
        super().__init__(line, instance)
        self._id, self._driver = instance.id, driver

    async def send(self, act: Callable[[], T], *, heavy: bool = True, installing: bool = False) -> T:
        def let_in() -> T:
            assert isinstance(self._rented, Rental)
            if KEY not in self._rented.keys:
                self._driver.refused(self._id)
                raise LoginRefused("Permission denied (publickey)")
            self._rented.machine.spoken = self._world.now
            return act()

        return await super().send(let_in, heavy=heavy, installing=installing)

    async def keep_watch(self, key: str, orders: Any) -> None:
        """Have the machine end itself should all of us be gone; in a world without nets nobody does."""
        assert isinstance(self._rented, Rental)
        machine = self._rented.machine
        await self.send(lambda: machine.keep_watch(key, orders) if self._world.profile.nets else None, heavy=False)


class VastShop(SimShop):
    """Hosts of instances: they are reached once the provider has let our key in."""

    async def host(self, driver: Any, instance: Instance) -> Any:
        await driver.connect(instance)
        if instance.id not in self._known:
            self._known[instance.id] = Host(self.line, instance, driver)
        return self._known[instance.id]


class VastProcess(Process):
    """One worker process."""

    shop_kind = VastShop

    def _driver(self, spool: Path) -> Any:
        assert isinstance(self.line.world, VastWorld)
        (spool / "key.pub").write_text(f"{KEY}\n")
        return Driver(self.line, self.line.world, spool)
