"""Jobs on rented machines: a real worker, the vastai driver, and a simulated Vast.ai whose instances are real SSH servers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from remote_trainer.model import Job, Phase
from remote_trainer.policy import job_cost
from remote_trainer.service import jobs
from remote_trainer.service.ledger import grant
from remote_trainer.service.submit import Order, submit
from remote_trainer.testing.vast.server import SimVast
from remote_trainer.worker.audit import Audit
from tests.support.rig import Rig, installation
from tests.support.vasthere import OPTIONS, nowhere, vast_here

pytestmark = pytest.mark.sshd


@pytest.fixture
def sim(tmp_path: Path) -> Iterator[SimVast]:
    with vast_here(tmp_path) as sim:
        yield sim


async def _submit(rig: Rig, order: Mapping[str, Any] = MappingProxyType({}), **settings: object) -> Job:
    given = [f"{name}={value}" for name, value in {"record": rig.record, **settings}.items()]
    return await submit(rig.app, Order(tool="abused@1", driver="vastai", driver_options=OPTIONS, settings=given, **order))


async def _check_money(rig: Rig, ended: Sequence[Job]) -> None:
    """The account, the meter and the bill of jobs that are done."""
    costs = {job.id: job_cost(job, job.finished_at or job.created_at) for job in ended}
    assert await rig.app.store.ledger.balance("ada") == 5 - sum(costs.values())
    shop = await rig.app.shop()
    shop.driver(ended[0].driver, ended[0].driver_options)
    await Audit(shop).look()
    await shop.close()
    for job in ended:
        told = await jobs.snapshot(rig.app, job.id)
        assert told.billed is not None and 0 < told.billed <= told.cost == costs[job.id]
        [attempt] = job.attempts
        assert attempt.ready_at is not None and attempt.bytes_out > 0 and attempt.instance is not None
        assert attempt.instance.price_per_hour > attempt.instance.disk_per_hour > 0


@pytest.mark.timeout(900)
async def test_jobs_rent_run_and_give_back(sim: SimVast, tmp_path: Path) -> None:
    """Two jobs at once: each rents once, runs to its end and gives back.

    A request to rent is answered by nobody, and a machine lets our key in late: neither costs an attempt. Their tenant pays what our
    meter says, which is no less than what the provider bills.
    """
    sim.faults.arm("create-dropped")
    sim.faults.arm("boot-key-denied", seconds=3)
    async with installation(tmp_path / "rig", nowhere(tmp_path)) as rig:
        await grant(rig.app, "ada", Decimal(5), "")
        queued = [await _submit(rig, lines=3, order={"tenant": "ada", "max_cost": Decimal(1)}) for _ in range(2)]
        assert await rig.app.store.ledger.balance("ada") == 3
        rig.worker()
        ended = [await rig.ended(job, Phase.DONE) for job in queued]
        for job in ended:
            await rig.check(job)
            assert job.attempt is not None
            assert job.attempt.number == 1
        await _check_money(rig, ended)
    assert sorted(sim.faults.struck) == ["boot-key-denied", "create-dropped"]
    labels = [entry.label for entry in sim.record.entries("created")]
    assert sorted(labels) == sorted(job.attempt.label for job in ended if job.attempt)
    assert sim.record.doubles() == []
