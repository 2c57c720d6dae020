"""What the jobs of one worker share about a host."""

import asyncio
import gc
from pathlib import Path
from typing import Any, cast
from weakref import WeakSet

from remote_trainer.host.client import SupervisedHost
from remote_trainer.model import HostFacts, Instance
from remote_trainer.ports import Abilities
from remote_trainer.worker.shop import Shop


class AskedHost:
    """Counts how often it is asked what it is."""

    def __init__(self) -> None:
        self.asked = 0

    async def bootstrap(self, incarnation: str) -> HostFacts:
        self.asked += 1
        await asyncio.sleep(0)
        return HostFacts(incarnation=incarnation, boot="b")


class OneTransportEach:
    """A driver that rents: each machine has a way of its own."""

    abilities = Abilities()

    def __init__(self) -> None:
        self.ways: dict[str, Any] = {}

    async def connect(self, instance: Instance) -> Any:
        return self.ways.setdefault(instance.id, type("Way", (), {})())


class OneTransportForAll(OneTransportEach):
    """A driver whose machines are folders behind one login."""

    async def connect(self, instance: Instance) -> Any:
        return self.ways.setdefault("", type("Way", (), {})())


def make_shop() -> Shop:
    nothing = cast(Any, None)
    parts = dict.fromkeys(("store", "writer", "objects", "make_driver", "find_secret", "clock", "policy"), nothing)
    return Shop(**parts, deployment="d", cache_dir=Path("c"), spool_dir=Path("s"))


async def test_jobs_that_come_together_ask_a_host_once() -> None:
    """One answer serves all that wait for it, and those that come soon after; another host is asked for itself."""
    shop, one, other = make_shop(), AskedHost(), AskedHost()
    facts = await asyncio.gather(*(shop.facts(cast(SupervisedHost, one)) for _ in range(10)))
    await shop.facts(cast(SupervisedHost, other))
    assert (one.asked, other.asked, len(set(facts))) == (1, 1, 1)


async def test_a_host_that_changed_is_asked_again() -> None:
    """After a start that was refused, and when somebody doubts the answer."""
    shop, one = make_shop(), AskedHost()
    host = cast(SupervisedHost, one)
    first = await shop.facts(host)
    shop.forget_facts(host)
    second = await shop.facts(host)
    third = await shop.facts(host, anew=True)
    assert (one.asked, len({first, second, third})) == (3, 3)


async def test_machines_that_are_gone_are_forgotten() -> None:
    """A thousand rented machines, one after the other, leave nothing behind; the jobs of one share what is known of it meanwhile."""
    shop, driver, kept = make_shop(), OneTransportEach(), WeakSet[object]()
    for number in range(1000):
        instance = Instance(id=str(number), label=f"rt-{number}")
        host = await shop.host(cast(Any, driver), instance)
        assert await shop.host(cast(Any, driver), instance) is host
        cast(Any, host).bootstrap = AskedHost().bootstrap
        assert await shop.facts(host) is await shop.facts(host)
        kept.add(host)
        driver.ways.clear()
    del host
    gc.collect()
    assert not kept
    assert not (shop._rented or shop._hosts or len(shop._facts) or len(shop._asking))


async def test_machines_behind_one_login_are_told_apart() -> None:
    """The next machine of a job has its own folder and its own facts, though the last one's host is still held on to."""
    shop, driver = make_shop(), OneTransportForAll()

    async def host(number: str, root: str) -> Any:
        found: Any = await shop.host(cast(Any, driver), Instance(id=number, label=f"rt-{number}", address={"root": root}))
        found.bootstrap = AskedHost().bootstrap
        return found

    first, second, anew = await host("1", "/disks/1"), await host("2", "/disks/2"), await host("3", "/disks/2")
    assert (first.root, second.root, anew.root) == ("/disks/1", "/disks/2", "/disks/2")
    assert len({await shop.facts(each) for each in (first, second, anew)}) == 3
    assert await host("1", "/disks/1") is first
