"""The reaper beside machines that cannot be returned and drivers that cannot be asked: the rest is returned all the same."""

from __future__ import annotations

from remote_trainer.errors import Permanent
from remote_trainer.model import Instance
from tests.unit.test_reaper import OURS, Jobs, Provider, reaper, running


class Refusing(Provider):
    """Refuses to end one machine."""

    refused = OURS

    async def destroy(self, instance: Instance) -> None:
        if instance.label == self.refused:
            raise Permanent("no")
        await super().destroy(instance)


class Buggy(Provider):
    """Cannot read what its provider says."""

    async def instances(self, prefix: str) -> list[Instance]:
        raise ValueError("a bug")


async def test_a_machine_that_cannot_be_returned_keeps_no_other() -> None:
    """The rest of the list is asked for all the same, and that one again with the next sweep."""
    provider = Refusing(OURS, "rt-dep-j1-a2")
    sweeper = reaper(provider, Jobs(running(3)))
    assert [one.label for one in await sweeper.sweep()] == ["rt-dep-j1-a2"]
    provider.refused = ""
    assert OURS in [one.label for one in await sweeper.sweep()]


async def test_a_driver_with_a_bug_does_not_end_the_worker() -> None:
    """A worker stops when its reaper dies."""
    assert await reaper(Buggy(OURS), Jobs(running(2))).sweep() == []
