"""Spot machines, other places and races, with the real driver and a simulated Vast.ai whose instances are real SSH servers.

The worker runs in this process, so that it looks more often than it would otherwise; nothing else is different.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from remote_trainer.drivers.vastai import pace
from remote_trainer.model import Job, Phase, Reason
from remote_trainer.policy import Policy
from remote_trainer.service.submit import Order, submit
from remote_trainer.testing import openssh
from remote_trainer.testing.vast.server import SimVast
from remote_trainer.worker.loop import Worker
from tests.support.patience import PATIENCE_S
from tests.support.rig import Rig, installation, wait_for
from tests.support.vasthere import OPTIONS, nowhere, vast_here

pytestmark = [pytest.mark.sshd, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
QUICK = Policy(instance_poll_s=1, lag_margin_s=1, gone_confirm_s=2, capacity_retry_s=1)


@pytest.fixture
def sim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimVast]:
    """A service with a few offers, its instances on this machine; requests need not wait their turn."""
    for kind in pace.INTERVALS_S:
        monkeypatch.setitem(pace.INTERVALS_S, kind, 0.0)
    with vast_here(tmp_path) as sim:
        yield sim


@contextlib.asynccontextmanager
async def working(tmp_path: Path) -> AsyncIterator[Rig]:
    """An installation with a worker."""
    drivers = tmp_path / "drivers"
    drivers.mkdir()
    (drivers / "rare.yaml").write_text("driver: vastai\noptions: {gpu_names: [B200]}\n")
    async with installation(tmp_path / "rig", nowhere(tmp_path), collect_interval_s=1, drivers_path=drivers) as rig:
        shop = await rig.app.shop()
        shop.policy = QUICK
        worker = asyncio.create_task(Worker(shop, lease_s=30, max_jobs=8).run())
        try:
            yield rig
        finally:
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)


async def _prints(rig: Rig, driver: str = "vastai", **terms: object) -> Job:
    """Submit a job of two steps; ``terms`` are how its machine is got."""
    settings = [f"record={rig.record}", "lines=3"]
    return await submit(rig.app, Order(tool="abused@1", driver=driver, driver_options=OPTIONS, settings=settings, terms=terms))


async def test_the_next_place_and_the_first_machine(sim: SimVast, tmp_path: Path) -> None:
    """A job whose first place has nothing runs at its second; of two machines that race the one that is ready runs the other job."""
    sim.faults.arm("boot-forever", offer=100)
    async with working(tmp_path) as rig:
        racing, elsewhere = await _prints(rig, race=2), await _prints(rig, "rare,vastai")
        first, second = [await rig.ended(job, Phase.DONE, patience_s=PATIENCE_S) for job in (racing, elsewhere)]
        await rig.check(first)
        await rig.check(second)
    rented = Counter(entry.label for entry in sim.record.entries("created"))
    assert rented == {_label(first): 2, _label(second): 1}
    assert [attempt.place for attempt in second.attempts] == [1]
    assert sim.record.doubles() == [_label(first)]


def _label(job: Job) -> str:
    assert job.attempt is not None and job.attempt.number == 1
    return job.attempt.label


# -- an eviction

#: Few steps, and a checkpoint every few.
TRAINING = {
    "resolution": 64, "bucket_step": 32, "targets": "locon", "rank": 4, "alpha": 2.0, "lr": 0.003, "batch_size": 2, "steps": 30,
    "sample_count": 0, "checkpoint_every": 3, "log_every": 3, "threads": 1, "gpus": 0, "preset": "none",
}  # fmt: skip


@pytest.mark.train
@pytest.mark.timeout(900)
@pytest.mark.fault("evicted")
async def test_a_training_that_was_evicted_ends_as_if_it_never_was(sim: SimVast, tmp_path: Path) -> None:
    """Outbid in mid-training, it goes on elsewhere from its newest verified checkpoint; the adapter is that of one never interrupted."""
    order = await asyncio.to_thread(_order, tmp_path)
    async with working(tmp_path) as rig:
        job = await submit(rig.app, order)
        undisturbed = asyncio.create_task(asyncio.to_thread(_trained, job, tmp_path))
        await asyncio.to_thread(wait_for, lambda: _stand_still(tmp_path), "the first checkpoint", patience_s=PATIENCE_S)
        seen = await rig.until(job, lambda seen: seen.attempt and seen.attempt.checkpoint, patience_s=PATIENCE_S)
        _outbid(sim, seen)
        done = await rig.ended(job, Phase.DONE, patience_s=PATIENCE_S)
        first, second = done.attempts
        assert (first.reason, second.reason) == (Reason.EVICTED, Reason.COMPLETED)
        assert first.offer is not None and second.offer is not None and first.offer.machine != second.offer.machine
        assert first.checkpoint is not None and second.restored == first.checkpoint
        step = int(first.checkpoint.unit.rpartition("-")[2])
        assert f"resumed at step {step} " in (await rig.log(done, "train.1", attempt=2)).decode()
        await rig.artifacts(done)
        assert _weights(tmp_path / "rig" / "downloads" / job.id / "final") == await undisturbed


def _order(folder: Path) -> Order:
    """A training of a tiny base on some photographs, on machines whose Python is known to have what is needed."""
    base, photographs, python = folder / "base", folder / "photographs", folder / "python"
    photographs.mkdir()
    for image in sorted((ROOT / "tests" / "fixtures" / "muybridge-cat").glob("*.jpg"))[::8]:
        shutil.copy(image, photographs)
        shutil.copy(image.with_suffix(".txt"), photographs)
    python.write_text(
        f'#!/bin/sh\ncase "$2" in *"import accelerate,"*) exit 0 ;; esac\nexec {shlex.quote(sys.executable)} "$@"\n'
    )
    python.chmod(0o755)
    _script("make_tiny_sd15.py", base)
    settings = [f"{name}={value}" for name, value in {**TRAINING, "python": python}.items()]
    return Order(
        tool="sd15-lora@1",
        driver="vastai",
        driver_options=OPTIONS,
        terms={"spot": True},
        dataset=str(photographs),
        base=str(base),
        settings=settings,
    )


def _script(name: str, *arguments: str | Path, **environment: str) -> None:
    """Run one of the scripts that go to machines, here."""
    command = [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr


def _trained(job: Job, folder: Path) -> dict[str, str]:
    """The weights that the same training gives when nothing happens to it."""
    ours = ("base", "python", "gpus", "vram_gb", "preset")
    given = {name: value for name, value in job.plan.parameters.items() if name not in ours and not name.startswith("evaluate")}
    (folder / "options.json").write_text(json.dumps(given))
    places = {"BASE": "base", "DATASET": "photographs", "OUTPUT": "output", "CACHE": "cache"}
    environment = {f"RT_{name}": str(folder / place) for name, place in places.items()}
    _script("sd15_lora/train.py", "--config", folder / "options.json", **environment)
    return _weights(folder / "output" / "final")


def _weights(folder: Path) -> dict[str, str]:
    """Name → SHA-256 of each file's tensors: the text before them names the folders of the machine."""
    found = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    assert len(found) == 2
    return {name: hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest() for name, data in found.items()}


def _stand_still(folder: Path) -> bool:
    """Stop the training on a rented machine once it has a checkpoint; return whether that is so."""
    if not list(folder.glob("instances/*/home/.remote-trainer/j/*/w/output/checkpoints/step-*/manifest.json")):
        return False
    for pid in openssh.pids():
        words = openssh.read(pid, "cmdline").split(b"\0")
        if any(word.endswith(b"sd15_lora/train.py") for word in words) and str(folder / "instances").encode() in b" ".join(words):
            os.kill(pid, signal.SIGSTOP)
            return True
    return False


def _outbid(sim: SimVast, job: Job) -> None:
    """Let somebody bid more for the machine that a job runs on."""
    assert job.attempt is not None and job.attempt.offer is not None and job.attempt.offer.spot
    change = urllib.request.Request(f"{sim.url}/admin/offers/{job.attempt.offer.id}/", b'{"min_bid": 9}', method="POST")
    with urllib.request.urlopen(change, timeout=PATIENCE_S) as reply:
        assert reply.status == 200
