"""Collecting checkpoints: one counts when it is whole, and an old one stays until a newer one can be resumed from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from remote_trainer.errors import HostUnreachable, ObjectsUnavailable
from remote_trainer.model import Output, OutputKind
from remote_trainer.worker.collect import Collector, newest_checkpoint
from tests.unit.collect.ground import JOB, FlakyObjects, FolderHost, paths, stored


async def test_a_checkpoint_counts_when_whole(make: Callable[..., Collector], host: FolderHost, objects: FlakyObjects) -> None:
    """A checkpoint is none before its marker is there; then it is found again from the object store alone."""
    host.checkpoint(100, marker=False)
    collector = make()
    assert (await collector.collect()).checkpoint is None
    assert await newest_checkpoint(objects, "t", JOB) is None
    host.checkpoint(100)
    result = await collector.collect()
    assert result.checkpoint and result.checkpoint.unit == "checkpoints/step-100"
    assert [artifact.path for artifact in result.checkpoint.artifacts] == [
        "checkpoints/step-100/done.json",
        "checkpoints/step-100/weights",
    ]
    assert await newest_checkpoint(objects, "t", JOB) == result.checkpoint
    assert (await make().collect()).checkpoint == result.checkpoint


async def test_a_checkpoint_that_the_job_removes(make: Callable[..., Collector], host: FolderHost, objects: FlakyObjects) -> None:
    """A kept checkpoint stays whole while the job removes its files one by one, marker last."""
    host.checkpoint(100)
    kept = (await make().collect()).checkpoint
    (host.folder / "checkpoints/step-100/weights").unlink()
    assert (await make().collect()).checkpoint == kept
    assert await newest_checkpoint(objects, "t", JOB) == kept


async def test_a_checkpoint_that_is_written_again(
    make: Callable[..., Collector], host: FolderHost, objects: FlakyObjects
) -> None:
    """A checkpoint folder that is written anew replaces what was kept of it, files that are no longer part of it included."""
    host.write("checkpoints/last/shard-1")
    host.checkpoint(1)
    host.write("checkpoints/last/done.json", b"{}")
    await make().collect()
    (host.folder / "checkpoints/last/shard-1").unlink()
    host.write("checkpoints/last/weights", b"new", mtime=2000)
    host.write("checkpoints/last/done.json", b"{}", mtime=2000)
    host.write("lora.bin")
    result = await make().collect(final=True)
    assert result.checkpoint and result.checkpoint.unit == "checkpoints/last"
    assert [artifact.path for artifact in result.checkpoint.artifacts] == [
        "checkpoints/last/done.json",
        "checkpoints/last/weights",
    ]
    assert paths(result) == await stored(objects)


async def test_old_checkpoints_are_dropped(make: Callable[..., Collector], host: FolderHost, objects: FlakyObjects) -> None:
    """Of the checkpoints the newest ``keep`` stay in the object store, whatever the host still has."""
    collector = make()
    for number, step in enumerate((9, 10, 200, 1000)):
        host.checkpoint(step, mtime=1000 + number // 2)
        result = await collector.collect()
        assert result.checkpoint and result.checkpoint.unit.endswith(f"-{step}")
    names = sorted({each.split("/")[1] for each in await stored(objects)})
    assert names == ["step-1000", "step-200"]
    assert len(await stored(objects, "t/j1/records")) == 2
    assert (await make().collect()).artifacts == result.artifacts


async def test_an_old_checkpoint_stays_until_the_new_one_is_verified(
    make: Callable[..., Collector], host: FolderHost, objects: FlakyObjects
) -> None:
    """While a newer checkpoint cannot be stored, none is dropped."""
    only = Output(name="checkpoints", kind=OutputKind.CHECKPOINT, glob="checkpoints/*", marker="done.json", keep=1)
    collector = make(outputs=(only,))
    host.checkpoint(1)
    await collector.collect()
    host.checkpoint(2, mtime=2000)
    objects.down = True
    with pytest.raises(ObjectsUnavailable):
        await collector.collect()
    found = await newest_checkpoint(objects, "t", JOB)
    assert found and found.unit == "checkpoints/step-1"
    objects.down = False
    await collector.collect()
    assert {each.split("/")[1] for each in await stored(objects)} == {"step-2"}


@pytest.mark.fault("data-damaged")
async def test_a_damaged_checkpoint_is_passed_over(
    make: Callable[..., Collector], host: FolderHost, objects: FlakyObjects, tmp_path: Path
) -> None:
    """The newest checkpoint whose stored files are intact is resumed from; a later attempt's comes before an earlier one's."""
    host.checkpoint(100)
    host.checkpoint(200)
    await make().collect()
    next(tmp_path.glob("objects/t/j1/a1/checkpoints/step-200/*/weights")).write_bytes(b"bad")
    found = await newest_checkpoint(objects, "t", JOB)
    assert found and (found.attempt, found.unit) == (1, "checkpoints/step-100")
    await make(attempt=10).collect()
    await make(attempt=9).collect()
    found = await newest_checkpoint(objects, "t", JOB)
    assert found and (found.attempt, found.unit) == (10, "checkpoints/step-200")


async def test_parts_of_a_unit_that_was_never_whole(
    make: Callable[..., Collector], host: FolderHost, objects: FlakyObjects
) -> None:
    """What was stored of a checkpoint that never got whole is removed at the end."""
    host.checkpoint(100)
    host.write("lora.bin")

    def cut(path: str) -> None:
        if path.endswith("weights"):
            raise HostUnreachable("cut")

    host.on_fetch = cut
    with pytest.raises(HostUnreachable):
        await make().collect()
    (host.folder / "checkpoints/step-100/weights").unlink()
    (host.folder / "checkpoints/step-100/done.json").unlink()
    host.on_fetch = lambda path: None
    result = await make().collect(final=True)
    assert paths(result) == await stored(objects) == ["lora.bin"]


async def test_the_former_version_stays_until_the_new_one_is_whole(
    make: Callable[..., Collector], host: FolderHost, objects: FlakyObjects
) -> None:
    """While a checkpoint that is written anew is half stored, the former one can be resumed from."""
    host.checkpoint(1)
    kept = (await make().collect()).checkpoint
    host.write("checkpoints/step-1/weights", b"new", mtime=2000)
    host.write("checkpoints/step-1/done.json", b"[]", mtime=2000)

    def cut(path: str) -> None:
        if path.endswith("weights"):
            raise HostUnreachable("cut")

    host.on_fetch = cut
    with pytest.raises(HostUnreachable):
        await make().collect()
    assert await newest_checkpoint(objects, "t", JOB) == kept
    host.on_fetch = lambda path: None
    new = (await make().collect()).checkpoint
    assert new and new != kept and await newest_checkpoint(objects, "t", JOB) == new
