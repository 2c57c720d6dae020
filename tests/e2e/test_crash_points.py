"""`kill -9` of the real worker before, in the middle of and after each thing that it does: every job ends right all the same.

A worker with armed points dies at each of them, once, and comes back; jobs of every kind of life go through that together. What came of
them is told by records that the product does not write: see tests/support/crashing.py.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import pytest

from remote_trainer.model import Job, Phase, Reason
from remote_trainer.testing import failpoints
from tests.support.containers import ContainerHost
from tests.support.crashing import ENDLESS, MortalRig, mortal_rig
from tests.support.evidence import Tally
from tests.support.rig import heavy, wait_for
from tests.support.s3 import S3Server
from tests.support.sshd import SshdServer
from tests.support.sshtarget import SshTarget

_PATIENCE_S = 500.0  # a hundred deaths on a busy machine

#: What only one job or worker does, and once: another death at that moment, and it was done and not died at. Then there are further jobs.
_RARE = {
    f"{place}:{when}"
    for place in (
        "save.queued-provisioning",
        "save.queued-cancelled",
        "save.provisioning-releasing",
        "save.transferring-releasing",
        "save.stop",
        "save.releasing-cancelled",
        "worker.drain",
    )
    for when in failpoints.WHENS
}
_CHANCES = 4


def _dataset(folder: Path) -> Path:
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.bin").write_bytes(os.urandom(300_000))
    return folder


# -- the lives of jobs


async def _unwanted(rig: MortalRig, data: Path, again: str) -> Job:
    """A job that is cancelled before any worker has seen it."""
    job = await rig.order(f"unwanted{again}", data)
    await rig.cancel(job)
    return job


async def _starved(rig: MortalRig, data: Path, again: str) -> Job:
    """A job whose data is gone before it could be shipped."""
    job = await rig.order(f"starved{again}", _dataset(data.with_name(f"{data.name}-starved{again}")))
    rig.forget_data()
    return job


async def _trained(rig: MortalRig, data: Path, again: str) -> Job:
    """A job with everything: two runs of its first step, one of its second, a long log, a large artifact."""
    order = await rig.order(f"trained{again}", data, big_kb=6_000, flood_kb=1_000, lines=60)
    job = await rig.ended(order, patience_s=_PATIENCE_S)
    assert [run.key for run in job.attempts[-1].steps] == ["prepare.1", "prepare.2", "train.1"]
    assert len(job.attempts) == 1, rig.story()
    rig.verify_data(job.attempts[0], data)
    return job


async def _lost(rig: MortalRig, data: Path, again: str) -> Job:
    """A job whose spot machine is bid for by others, and taken away once it has a checkpoint: the second attempt goes on from there."""
    order = await rig.order(f"lost{again}", data, driver="market", lines=20, doomed="true")
    seen = await rig.until(order, lambda seen: seen.attempt and seen.attempt.checkpoint, patience_s=_PATIENCE_S)
    assert seen.attempts[0].instance is not None
    machine = seen.attempts[0].instance.id
    rig.provider.make_dear(machine, Decimal(2))
    async with asyncio.timeout(_PATIENCE_S):
        while not rig.provider.bids(machine):
            await asyncio.sleep(0.2)
    rig.provider.take(machine)
    job = await rig.ended(order, patience_s=_PATIENCE_S)
    rig.provider.power_off(machine)
    first, second = job.attempts
    assert first.reason is Reason.INSTANCE_GONE
    for attempt in job.attempts:
        rig.verify_place(attempt)
    rig.verify_restored(first, second)
    rig.verify_data(second, data)
    return job


async def _cancelled(rig: MortalRig, data: Path, again: str) -> Job:
    """A job that is cancelled while its second step runs."""
    job = await rig.order(f"cancelled{again}", data, lines=ENDLESS)
    await rig.log_has(job, 50, "train.1", patience_s=_PATIENCE_S)
    await rig.cancel(job)
    return await rig.ended(job, Phase.CANCELLED, patience_s=_PATIENCE_S)


async def _unfit(rig: MortalRig, data: Path, again: str) -> Job:
    """A job that asks for more than its host has."""
    order = await rig.order(f"unfit{again}", data, gpus=99)
    return await rig.ended(order, Phase.FAILED, patience_s=_PATIENCE_S)


Life = Callable[[MortalRig, Path, str], Coroutine[None, None, Job]]


async def _live(rig: MortalRig, data: Path, lives: Sequence[Life], again: str = "") -> list[Job]:
    """Live the two that no worker may see first, and these; let the worker drain. Returns the jobs."""
    starved = await _starved(rig, data, again)
    async with asyncio.TaskGroup() as together:
        running = [together.create_task(life(rig, data, again)) for life in lives]
        unwanted = await _unwanted(rig, data, again)
        worker = rig.undying_worker()
    ended = [
        *(each.result() for each in running),
        await rig.ended(unwanted, Phase.CANCELLED, patience_s=_PATIENCE_S),
        await rig.ended(starved, Phase.FAILED, patience_s=_PATIENCE_S),
    ]
    await rig.drained(worker)
    return ended


async def _every_life(rig: MortalRig, folder: Path) -> None:
    """Live them all, verify what came of them, and see that nothing is left."""
    data = _dataset(folder)
    ended = await _live(rig, data, (_trained, _lost, _cancelled, _unfit))
    for chance in range(_CHANCES):
        if not _RARE.intersection(rig.armed).difference(rig.deaths):
            break
        ended += await _live(rig, data, (_cancelled, _unfit), f"-{chance}")
    for job in ended:
        await rig.verify(job)
    rig.verify_money(ended)
    assert rig.leftovers() == [], rig.story()


# -- every point


@dataclass
class Storm:
    """Rigs that go through every life side by side: one for each pair of stores and each set of points."""

    host: SshTarget
    folder: Path
    stores: Mapping[str, Mapping[str, object]]

    async def blow(self, armed: Mapping[tuple[str, str], Sequence[str]]) -> dict[str, MortalRig]:
        """Live every life for each pair of stores and set of points, by their names; return the rigs, which are history then."""
        rigs: dict[str, MortalRig] = {}
        began = time.monotonic()
        async with AsyncExitStack() as stack:
            for (kind, what), points in armed.items():
                name = f"{kind}-{what}"
                own = {key: str(value).replace("/?", f"/{secrets.token_hex(4)}?") for key, value in self.stores[kind].items()}
                rigs[name] = await stack.enter_async_context(mortal_rig(self.folder / name, self.host, points, **own))
            async with asyncio.TaskGroup() as together:
                for name, rig in rigs.items():
                    together.create_task(_every_life(rig, self.folder / f"data-{name}"), name=name)
        kills = {name: rig.kills for name, rig in rigs.items()}
        met = sum(len(set(rig.deaths)) for rig in rigs.values())
        print(f"{sum(kills.values())} kills at {met} points in {time.monotonic() - began:.1f} s: {kills}")
        return rigs


@pytest.fixture
def stores(mongo_uri: str, start_s3: Callable[[str], S3Server]) -> Mapping[str, Mapping[str, object]]:
    """What each kind of installation keeps jobs and artifacts in."""
    return {"embedded": {}, "shared": {"store": mongo_uri, **start_s3("juicefs").new_bucket().settings}}


#: What only one kind of object store has.
_ONLY_IN = {"embedded": ("objects.note",), "shared": ("objects.part", "objects.parts")}


def _points(*pairs: tuple[str, str]) -> dict[tuple[str, str], Sequence[str]]:
    """Return all points of each pair of stores and moment: before, during, after."""
    return {(kind, when): [point for point in failpoints.points() if point.endswith(f":{when}")] for kind, when in pairs}


def _unmet(rigs: Mapping[str, MortalRig]) -> dict[str, list[str]]:
    """Which armed points nothing died at, though they can be met there."""
    found = {}
    for name, rig in rigs.items():
        elsewhere = tuple(f"{place}:" for kind, places in _ONLY_IN.items() if not name.startswith(kind) for place in places)
        found[name] = [point for point in rig.armed if point not in rig.deaths and not point.startswith(elsewhere)]
    return {name: points for name, points in found.items() if points}


@pytest.mark.fault("crash-points")
@pytest.mark.timeout(600)
async def test_a_worker_that_dies_at_everything_it_does(
    own_sshd: SshdServer, stores: Mapping[str, Mapping[str, object]], tmp_path: Path, evidence: Tally
) -> None:
    """A worker killed before each effect and each save, or after it, costs no job anything, whatever the jobs are kept in."""
    rigs = await Storm(own_sshd, tmp_path, stores).blow(_points(("embedded", "after"), ("shared", "before")))
    evidence.ran(sum(rig.kills for rig in rigs.values()))
    wait_for(lambda: own_sshd.programs() == [], "the end of everything the jobs had started", patience_s=10)
    assert _unmet(rigs) == {}, "a point that no life comes to proves nothing"


@heavy
@pytest.mark.fault("crash-points")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("when", ["before", "during", "after"])
@pytest.mark.parametrize("where", ["sshd", "container"])
async def test_every_point_on_every_kind_of_stores_and_hosts(
    own_sshd: SshdServer,
    start_container: Callable[..., ContainerHost],
    stores: Mapping[str, Mapping[str, object]],
    tmp_path: Path,
    evidence: Tally,
    where: str,
    when: str,
) -> None:
    """A worker killed before, in the middle of and after each effect and each save, also where the host has an address of its own."""
    visible = ("--volume", f"{tmp_path}:{tmp_path}")  # the steps' record can be read here
    host = own_sshd if where == "sshd" else start_container(options=visible)
    rigs = await Storm(host, tmp_path, stores).blow(_points(("embedded", when), ("shared", when)))
    evidence.ran(sum(rig.kills for rig in rigs.values()))
    assert _unmet(rigs) == {}, "a point that no life comes to proves nothing"


@heavy
@pytest.mark.fault("crash-points")
@pytest.mark.timeout(1800)
async def test_a_worker_that_dies_again_and_again(
    own_sshd: SshdServer, stores: Mapping[str, Mapping[str, object]], tmp_path: Path, evidence: Tally
) -> None:
    """A worker that comes to the same place for the second and the third time in its life, and dies then."""
    times = {number: [f"{point}#{number}" for point in failpoints.points()] for number in (2, 3)}
    rigs = await Storm(own_sshd, tmp_path, stores).blow({("embedded", "second"): times[2], ("shared", "third"): times[3]})
    evidence.ran(sum(rig.kills for rig in rigs.values()))
