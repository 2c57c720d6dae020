"""Jobs on rented machines: a real worker, the vastai driver, and a simulated Vast.ai whose instances are real SSH servers."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from pathlib import Path

import pytest

from remote_trainer.model import Job, Phase
from remote_trainer.service.submit import Order, submit
from remote_trainer.testing.vast import demo
from remote_trainer.testing.vast.local import LocalMachines
from remote_trainer.testing.vast.server import SimVast
from tests.support.rig import Rig, installation
from tests.support.sshtarget import SshTarget

pytestmark = pytest.mark.sshd

PATIENCE_S = 110.0


@pytest.fixture
def sim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimVast]:
    """A service with offers for all, its instances on this machine; this process and its workers have its key."""
    offers = [demo.offer(number, dph_base=0.3 + number / 10_000) for number in range(100, 110)]
    with SimVast(offers, machines=LocalMachines(tmp_path / "instances")) as sim:
        monkeypatch.setenv("VAST_URL", sim.url)
        monkeypatch.setenv("VAST_API_KEY", sim.key)
        yield sim


async def _submit(rig: Rig, **settings: object) -> Job:
    options = {"user": getpass.getuser(), "visibility_lag_s": "1"}
    given = [f"{name}={value}" for name, value in {"record": rig.record, **settings}.items()]
    return await submit(rig.app, Order(tool="abused@1", driver="vastai", driver_options=options, settings=given))


@pytest.mark.timeout(300)
async def test_jobs_rent_run_and_give_back(sim: SimVast, tmp_path: Path) -> None:
    """Two jobs at once, one of whose requests to rent is answered by nobody: each rents once, runs to its end and gives back."""
    sim.faults.arm("create-dropped")
    nowhere = SshTarget(tmp_path, "127.0.0.1", 1, getpass.getuser())
    async with installation(tmp_path / "rig", nowhere) as rig:
        jobs = [await _submit(rig, lines=3) for _ in range(2)]
        rig.worker()
        ended = [await rig.ended(job, Phase.DONE, patience_s=PATIENCE_S) for job in jobs]
        for job in ended:
            await rig.check(job)
            assert job.attempt is not None
            assert job.attempt.number == 1
    assert sim.faults.struck == ["create-dropped"]
    labels = [entry.label for entry in sim.record.entries("created")]
    assert sorted(labels) == sorted(job.attempt.label for job in ended if job.attempt)
    assert sim.record.doubles() == []
    assert sim.record.alive() == []
    assert not any(path.is_dir() for path in (tmp_path / "instances").iterdir())
