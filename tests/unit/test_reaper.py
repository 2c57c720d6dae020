"""The reaper: what nobody claims is returned, and nothing else is touched."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from remote_trainer.errors import ConfigError, DocumentTooNew, NotFound, RemoteTrainerError, StoreUnavailable, Transient
from remote_trainer.model import Attempt, Instance, Job, JobId, Limits, Phase
from remote_trainer.policy import Policy
from remote_trainer.ports import Abilities, JobQuery, Page
from remote_trainer.worker.holdings import learn_drivers, look
from remote_trainer.worker.reaper import Reaper
from remote_trainer.worker.shop import Shop
from tests.unit.life import NOW, a_job

POLICY = Policy(reap_grace_s=0.0, reap_unknown_s=3600.0)
OURS = "rt-dep-j1-a1"


class Provider:
    """A driver that rents: what it lists, and what it was asked to end."""

    name, abilities = "test", Abilities()

    def __init__(self, *labels: str) -> None:
        self.there = [Instance(id=f"i{number}", label=label) for number, label in enumerate(labels)]
        self.destroyed: list[str] = []
        self.trouble: RemoteTrainerError | None = None

    async def instances(self, prefix: str) -> Sequence[Instance]:
        if self.trouble:
            raise self.trouble
        return [one for one in self.there if one.label.startswith(prefix)]

    async def destroy(self, instance: Instance) -> None:
        self.destroyed.append(instance.label)


class Jobs:
    """A store, as far as a reaper asks it."""

    def __init__(self, *jobs: Job) -> None:
        self.jobs = {job.id: job for job in jobs}
        self.trouble: Exception | None = None

    async def find(self, query: JobQuery) -> Page:
        return Page(jobs=tuple(self.jobs.values()), cursor=None)

    async def get(self, job_id: Any) -> Job:
        if self.trouble:
            raise self.trouble
        if job_id not in self.jobs:
            raise NotFound(f"no job {job_id}")
        return self.jobs[job_id]


class StoppedClock:
    """It is always the same time."""

    def now(self) -> datetime:
        return NOW

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


def running(number: int = 1) -> Job:
    attempts = tuple(Attempt(number=n, label=f"rt-dep-j1-a{n}", started_at=NOW) for n in range(1, number + 1))
    return replace(a_job(), phase=Phase.EXECUTING, attempts=attempts)


def a_shop(provider: Provider, store: Jobs, policy: Policy = POLICY) -> Shop:
    parts = {"store": store, "make_driver": lambda name, options: provider, "clock": StoppedClock(), "policy": policy}
    unused = dict.fromkeys(("writer", "objects", "find_secret"), cast(Any, None))
    shop = Shop(**cast(Any, parts), **unused, deployment="dep", cache_dir=Path("c"), spool_dir=Path("s"))
    shop.driver("test", {})
    return shop


def reaper(provider: Provider, store: Jobs, policy: Policy = POLICY) -> Reaper:
    return Reaper(a_shop(provider, store, policy))


async def test_a_machine_of_a_live_attempt_is_kept() -> None:
    """The current attempt of a job that has not ended claims its machine; strangers' are not even listed."""
    provider = Provider(OURS, "rt-other-j1-a1", "somebody's")
    await reaper(provider, Jobs(running())).sweep()
    assert provider.destroyed == []


@pytest.mark.parametrize("job", [replace(running(), phase=Phase.FAILED), running(2)], ids=["job ended", "attempt over"])
async def test_a_machine_of_nobody_is_returned(job: Job) -> None:
    """A job that has ended, or is at its next attempt, claims that machine no more."""
    provider = Provider(OURS)
    await reaper(provider, Jobs(job)).sweep()
    assert provider.destroyed == [OURS]


async def test_it_is_asked_for_until_the_listing_agrees() -> None:
    """A provider that forgets is asked again with every sweep."""
    provider = Provider(OURS)
    sweeper = reaper(provider, Jobs(replace(running(), phase=Phase.DONE)))
    for _ in range(3):
        await sweeper.sweep()
    assert provider.destroyed == [OURS] * 3


async def test_what_is_nobodys_is_worth_an_alarm() -> None:
    """It is told which machine, and why nobody claims it: once, however many sweeps it takes."""
    with capture_logs() as lines:
        sweeper = reaper(Provider(OURS), Jobs(replace(running(), phase=Phase.DONE)))
        for _ in range(3):
            await sweeper.sweep()
    rung = [line for line in lines if line["action"] == "alarm"]
    assert [(line["kind"], line["instance"], line["job"]) for line in rung] == [("unclaimed", "i0", "j1")]
    assert "its job has ended" in rung[0]["message"]


async def test_nothing_is_returned_before_its_grace_is_over() -> None:
    """A machine that has just been seen to be nobody's stays, and one of an unknown job stays longer: the store may be an old copy."""
    for job, policy in ((running(2), Policy(reap_grace_s=60.0)), (None, POLICY)):
        provider = Provider(OURS, "rt-dep-of no form we know")
        sweeper = reaper(provider, Jobs(*filter(None, [job])), policy)
        await sweeper.sweep()
        await sweeper.sweep()
        assert provider.destroyed == []


@pytest.mark.parametrize("doubt", [DocumentTooNew("newer"), StoreUnavailable("down")])
async def test_in_doubt_a_machine_is_claimed(doubt: Exception) -> None:
    """A job that cannot be read may be alive."""
    provider, store = Provider(OURS), Jobs()
    sweeper = reaper(provider, store, Policy(reap_grace_s=0.0, reap_unknown_s=0.0))
    store.trouble = doubt
    await sweeper.sweep()
    assert provider.destroyed == []
    store.trouble = None
    await sweeper.sweep()
    assert provider.destroyed == [OURS]


@pytest.mark.parametrize("trouble", [Transient("down"), ConfigError("no key on this machine")])
async def test_a_provider_that_cannot_be_asked_ends_nothing(trouble: RemoteTrainerError) -> None:
    """The sweep goes on with the next driver and comes again; a worker that has no key works on."""
    provider = Provider(OURS)
    provider.trouble = trouble
    sweeper = reaper(provider, Jobs(running(2)))
    assert await sweeper.sweep() == []
    provider.trouble = None
    assert [one.label for one in await sweeper.sweep()] == [OURS]


# --------------------------------------------------------------------------------------------------------------- judging

AGO = NOW - timedelta(minutes=10)
ENDED = replace(running(), phase=Phase.DONE, finished_at=AGO)
NEXT = replace(running(2), attempts=(running(2).attempts[0], replace(running(2).attempts[1], started_at=AGO)))
OVER = replace(
    running(), limits=Limits(max_hours=1), attempts=(replace(running().attempts[0], started_at=NOW - timedelta(hours=4)),)
)


@pytest.mark.parametrize(
    ("job", "claimed", "words", "since"),
    [
        (running(), True, "its job is executing", None),
        (ENDED, False, "its job has ended: done", AGO),
        (NEXT, False, "its attempt is over", AGO),
        (replace(running(), attempts=()), False, "no attempt of its job", None),
        (OVER, False, "long past its limit: time_limit", NOW - timedelta(hours=1)),
        (None, False, "the store knows no such job", None),
    ],
)
async def test_whose_a_machine_is(job: Job | None, claimed: bool, words: str, since: datetime | None) -> None:
    """Judged by the job alone, with the reason in words, and since when as far as the job tells."""
    provider, policy = Provider(OURS), Policy()
    [found] = await look(a_shop(provider, Jobs(*filter(None, [job])), policy), cast(Any, provider))
    assert (found.job_id, found.attempt, found.claimed, found.since) == ("j1", 1, claimed, since)
    assert words in found.why
    assert found.due(NOW) is (since is not None)
    assert not found.due(AGO - timedelta(hours=3))


async def test_looking_touches_nothing_and_a_job_in_doubt_claims() -> None:
    """A job of a newer version may be alive, and a label that is not ours in form is nobody's, but never certainly."""
    provider, store = Provider(OURS, "rt-dep-odd"), Jobs()
    store.trouble = DocumentTooNew("newer")
    doubtful, odd = await look(a_shop(provider, store), cast(Any, provider))
    assert (doubtful.claimed, doubtful.due(NOW)) == (True, False)
    assert (odd.claimed, odd.job_id, odd.due(NOW + timedelta(days=1))) == (False, None, False)
    assert "form" in odd.why
    assert provider.destroyed == []


async def test_drivers_that_cannot_be_opened_are_told_if_they_may_have_rented() -> None:
    """A profile that is gone matters only where something may still cost money."""
    borrowed = replace(running().attempts[0], requested_at=NOW, instance=Instance(id="b", label=OURS, borrowed=True))
    rented = replace(running().attempts[0], requested_at=NOW)
    jobs = [
        replace(running(), id=JobId(f"j{name}"), driver=name, attempts=(each,)) for name, each in (("x", borrowed), ("y", rented))
    ]
    shop = a_shop(Provider(), Jobs(*jobs))

    def refuse(name: str, options: Any) -> Any:
        raise ConfigError(f"{name} is gone")

    shop.make_driver = refuse
    assert await learn_drivers(shop) == {"y": "y is gone"}
