"""Which effects run for a job: equal wishes once, and a request to end a machine keeps its place."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from remote_trainer import effects as fx
from remote_trainer.errors import ConfigError, HostUnreachable, Permanent
from remote_trainer.model import Attempt, HostFacts, Instance, Lease, Token
from remote_trainer.policy import Policy
from remote_trainer.worker.machine import Machine
from remote_trainer.worker.runner import JobRunner
from tests.unit.life import NOW, RENTED, a_job

MACHINE = Instance(id="i1", label="l", address={"host": "old"}, host_key="pinned")
FACTS = HostFacts(incarnation="i", boot="b")


class Provider:
    """Answers a request to end a machine when it is told to, and leaves one that is given up when it may."""

    abilities = RENTED

    def __init__(self) -> None:
        self.asked, self.given_up = 0, 0
        self.answers, self.leaves = asyncio.Event(), asyncio.Event()
        self.leaves.set()

    async def destroy(self, instance: Instance) -> None:
        self.asked += 1
        try:
            await self.answers.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            await self.leaves.wait()
            raise


def a_runner(provider: Provider) -> JobRunner:
    job = replace(a_job(), attempts=(Attempt(number=1, label="l", started_at=NOW, instance=MACHINE),))
    shop = SimpleNamespace(clock=SimpleNamespace(now=lambda: NOW), policy=Policy(), driver=lambda name, options: provider)
    return JobRunner(Lease(job=job, token=Token(1), holder="w"), cast(Any, shop))


async def ask(runner: JobRunner, rounds: Sequence[int]) -> None:
    """Wish for the machine's end, round after round."""
    for number in rounds:
        runner._reconcile((fx.Destroy("l", "i1", round=number),))
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_a_request_to_end_a_machine_keeps_its_place() -> None:
    """It may wait its turn at the provider for longer than a round; asked anew each time, it would go to the end of the queue for ever."""
    provider = Provider()
    runner = a_runner(provider)
    await ask(runner, range(20))
    assert (provider.asked, provider.given_up) == (1, 0)
    provider.answers.set()
    await ask(runner, [19, 19, 19])
    assert (provider.asked, provider.given_up) == (2, 0)


async def test_a_request_that_is_never_answered_is_sent_anew() -> None:
    """After twenty rounds; and one that nobody wishes for any more is given up."""
    provider = Provider()
    runner = a_runner(provider)
    await ask(runner, [0, 20, 20])
    assert (provider.asked, provider.given_up) == (2, 1)
    runner._reconcile(())
    await asyncio.sleep(0)
    assert provider.given_up == 2


async def test_a_wish_waits_for_the_end_of_its_like() -> None:
    """While a cancelled effect still cleans up, none of its kind begins: both would be at the same files."""
    provider = Provider()
    provider.leaves.clear()
    runner = a_runner(provider)
    await ask(runner, [0, 20, 20])
    found = provider.asked, provider.given_up
    provider.leaves.set()
    assert found == (1, 1)
    await ask(runner, [20, 20])
    assert (provider.asked, provider.given_up) == (2, 1)


class Door:
    """A shop that opens the way to a host, or says why it cannot."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.opened = error, list[Instance]()

    async def host(self, driver: object, instance: Instance) -> str:
        self.opened.append(instance)
        if self.error:
            raise self.error
        return "host"


def a_patient(facts: HostFacts | None, listed: tuple[Instance, ...] | None = None) -> Any:
    attempt = SimpleNamespace(number=1, label="l", instance=MACHINE, facts=facts)
    job, seen = SimpleNamespace(id="j1", attempt=attempt), fx.Seen(since=NOW, instances=listed)
    return SimpleNamespace(job=job, token=1, seen=seen, driver=None)


@pytest.mark.parametrize("error", [ConfigError("no key"), Permanent("the key is refused")])
async def test_a_key_that_is_missing_here_says_nothing_about_a_machine(error: Exception) -> None:
    """A worker that comes back without its provider's key ends no training; before a machine was ever reached, that is final."""
    for facts, expected in ((FACTS, HostUnreachable), (None, type(error))):
        machine = Machine(cast(Any, Door(error)), a_patient(facts))
        with pytest.raises(expected, match="key"):
            await machine.host()


async def test_a_machine_is_found_at_its_newest_address() -> None:
    """It may come back from a reboot with another port; its pinned key stays."""
    door = Door()
    moved = replace(MACHINE, address={"host": "new"}, host_key="")
    for listed in (None, (replace(MACHINE, address={}),), (moved,)):
        await Machine(cast(Any, door), a_patient(FACTS, listed)).host()
    assert [dict(one.address) for one in door.opened] == [{"host": "old"}, {"host": "old"}, {"host": "new"}]
    assert {one.host_key for one in door.opened} == {"pinned"}
