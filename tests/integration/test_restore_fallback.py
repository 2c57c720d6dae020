"""Restoring a checkpoint that is not what it was when it was found: the next older one, else the beginning; never a failed job."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from remote_trainer import effects as fx
from remote_trainer.host.client import SupervisedHost
from remote_trainer.model import Artifact, Instance, JobId, Output, OutputKind, Place
from remote_trainer.objects.local import LocalObjects
from remote_trainer.ports import Abilities, Change
from remote_trainer.transport.command import CommandTransport
from remote_trainer.worker import records
from remote_trainer.worker.outputs import Unit
from remote_trainer.worker.perform import Performer
from tests.integration.depot_host import KEY, host_of

JOB = JobId("job")
CHECKPOINTS = Output(name="checkpoints", kind=OutputKind.CHECKPOINT, glob="checkpoints/*", marker="done")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Store:
    """Takes down what is saved."""

    def __init__(self) -> None:
        self.said: list[str] = []

    async def save(self, change: Change) -> None:
        self.said += [event.message for event in change.events]


class Patient:
    """A job whose second attempt is about to get its inputs."""

    def __init__(self) -> None:
        attempt = SimpleNamespace(number=2, instance=Instance(id="here", label=KEY), label=KEY)
        plan = SimpleNamespace(outputs=(CHECKPOINTS,))
        self.job: Any = SimpleNamespace(
            id=JOB, retry_of=None, tenant="t", plan=plan, inputs=(), attempt=attempt, place=Place(driver="here")
        )
        self.token: Any = 1
        self.driver: Any = SimpleNamespace(abilities=Abilities(borrowed=True))
        self.seen = fx.Seen(since=NOW)

    def observe(self, change: Callable[[fx.Seen], fx.Seen]) -> None:
        self.seen = change(self.seen)


class Installation:
    """A host on this machine, an object store in a folder, and what performs effects between them."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.objects, self.store, self.patient = LocalObjects(folder / "objects"), Store(), Patient()
        self.folder, self.output = folder, root / "j" / KEY / "w" / "output"
        host = SupervisedHost(CommandTransport(), str(root))

        async def the_host(*_: object) -> SupervisedHost:
            return host

        self.shop = SimpleNamespace(
            objects=self.objects,
            spool_dir=folder / "spool",
            cache_dir=folder / "cache",
            clock=SimpleNamespace(now=lambda: NOW),
            writer=self.store,
            host=the_host,
        )
        self.performer = Performer(cast(Any, self.shop), cast(Any, self.patient))

    async def keep(self, step: int) -> None:
        """Store a checkpoint of the first attempt."""
        artifacts = []
        for name, data in (("weights", b"%d" % step * 1000), ("done", b"%d" % step)):
            file = self.folder / name
            file.write_bytes(data)
            path, digest = f"checkpoints/{step}/{name}", hashlib.sha256(data).hexdigest()
            key = records.file_key("t", JOB, 1, path, digest)
            await self.objects.put(key, file, sha256=digest)
            artifacts.append(
                Artifact(path=path, size=len(data), sha256=digest, output="checkpoints", kind=CHECKPOINTS.kind, key=key)
            )
        unit, prefix = Unit(CHECKPOINTS, f"checkpoints/{step}", (), step), records.records_prefix("t", JOB, 1)
        record = records.record_of(unit, 1, tuple(artifacts), prefix)
        await records.write(self.objects, record.key, record)

    def stored(self, step: int) -> Path:
        """Where a checkpoint's weights lie."""
        return next(self.folder.glob(f"objects/t/job/a1/checkpoints/{step}/*/weights"))

    async def transfer(self, spoil: Callable[[fx.Seen], None]) -> None:
        """Do what the core wishes for until the inputs are there; ``spoil`` strikes between finding and fetching."""
        while not self.patient.seen.shipped:
            if not self.patient.seen.resume_known:
                await self.performer.perform(fx.FindCheckpoint())
                spoil(self.patient.seen)
            await self.performer.perform(fx.ShipInputs(KEY, self.patient.seen.resume))


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[Installation]:
    await host_of(CommandTransport(), tmp_path / "rt", tmp_path / "cache")
    yield Installation(tmp_path / "rt", tmp_path / "here")


@pytest.mark.fault("object-store-lies")
@pytest.mark.parametrize("how", ["vanishes", "is flipped"])
@pytest.mark.parametrize("kept", [1, 2])
async def test_a_checkpoint_that_goes_bad_after_it_was_found(there: Installation, how: str, kept: int) -> None:
    """The job goes on from the next older checkpoint, or from the beginning, and an event says so."""
    there.folder.mkdir()
    for step in range(1, kept + 1):
        await there.keep(step)

    def spoil(seen: fx.Seen) -> None:
        if seen.resume and seen.resume.unit.endswith(str(kept)):
            weights = there.stored(kept)
            if how == "vanishes":
                weights.unlink()
            else:
                before = weights.stat()
                weights.write_bytes(b"x" + weights.read_bytes()[1:])
                os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))

    await there.transfer(spoil)
    resumed = there.patient.seen.resume
    if kept == 2:
        assert resumed and resumed.unit == "checkpoints/1"
        assert (there.output / "checkpoints/1/weights").read_bytes() == b"1" * 1000
    else:
        assert resumed is None and not there.output.exists()
    assert [message.split(",")[0] for message in there.store.said] == [
        f"checkpoint checkpoints/{kept} of attempt 1 cannot be used"
    ]
    assert not list(there.shop.spool_dir.rglob("restore")) or kept == 1


async def test_what_was_fetched_is_not_fetched_again(there: Installation) -> None:
    """A worker that dies between object store and host leaves what it had fetched to the next one."""
    there.folder.mkdir()
    await there.keep(1)
    await there.performer.perform(fx.FindCheckpoint())
    checkpoint = there.patient.seen.resume
    assert checkpoint
    spool = there.shop.spool_dir / JOB / "a2" / "restore"
    await records.each_of(
        checkpoint.artifacts, lambda artifact: there.objects.get(artifact.key, spool / artifact.sha256, sha256=artifact.sha256)
    )
    there.stored(1).unlink()
    await there.performer.perform(fx.ShipInputs(KEY, checkpoint))
    assert there.patient.seen.shipped
    assert (there.output / "checkpoints/1/weights").read_bytes() == b"1" * 1000
