"""What the jobs of one worker share about a host."""

import asyncio
from pathlib import Path
from typing import Any, cast

from remote_trainer.host.client import SupervisedHost
from remote_trainer.model import HostFacts
from remote_trainer.worker.shop import Shop


class AskedHost:
    """Counts how often it is asked what it is."""

    def __init__(self) -> None:
        self.asked = 0

    async def bootstrap(self, incarnation: str) -> HostFacts:
        self.asked += 1
        await asyncio.sleep(0)
        return HostFacts(incarnation=incarnation, boot="b")


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
