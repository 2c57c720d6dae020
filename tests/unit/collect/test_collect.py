"""Collecting outputs: incremental, restart-safe, verified; against a folder as host and a folder as object store."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from remote_trainer.errors import DigestMismatch, HostUnreachable, Incomplete, ObjectsUnavailable
from remote_trainer.model import Artifact, Output, OutputKind
from remote_trainer.ports import Progress, RemoteFile, StoredObject
from remote_trainer.worker.collect import Collector, newest_checkpoint, read_manifest, verify_manifest
from tests.support.patience import PATIENCE_S
from tests.unit.collect.ground import JOB, FlakyObjects, FolderHost, paths, stored


async def test_while_running(make: Callable[..., Collector], host: FolderHost, objects: FlakyObjects, tmp_path: Path) -> None:
    """A round brings settled files to the object store under the attempt's prefix and leaves nothing in the spool."""
    host.write("samples/1.png", b"one")
    result = await make().collect()
    digest = hashlib.sha256(b"one").hexdigest()
    key = f"t/j1/a1/samples/{digest[:16]}/1.png"
    assert result.artifacts == (
        Artifact(path="samples/1.png", size=3, sha256=digest, output="samples", kind=OutputKind.ARTIFACT, key=key),
    )
    await objects.verify(key, size=3, sha256=digest)
    assert host.settled[0] > 0
    assert result.manifest is None
    assert not [each for each in (tmp_path / "spool").rglob("*") if each.is_file()]


async def test_what_is_kept_costs_nothing(make: Callable[..., Collector], host: FolderHost, objects: FlakyObjects) -> None:
    """A file that is kept is neither fetched nor put again, by the same worker or the next; a changed one is."""
    host.write("samples/1.png")
    host.write("samples/2.png")
    collector = make()
    await collector.collect()
    await collector.collect()
    await make().collect()
    assert sorted(host.fetched) == ["samples/1.png", "samples/2.png"]
    assert objects.puts == 2
    host.write("samples/2.png", b"changed")
    await collector.collect()
    assert host.fetched[2:] == ["samples/2.png"]
    assert (await make().collect()).artifacts[1].size == 7


async def test_the_end(make: Callable[..., Collector], host: FolderHost, objects: FlakyObjects, tmp_path: Path) -> None:
    """The last round takes everything, lists it in a manifest that is written last, and empties the spool."""
    host.checkpoint(100)
    host.checkpoint(200, marker=False)
    host.write("samples/1.png")
    host.write("lora.bin")
    host.write("other.txt")
    result = await make().collect(final=True)
    assert host.settled == [0]
    assert result.missing == ()
    assert paths(result) == ["checkpoints/step-100/done.json", "checkpoints/step-100/weights", "lora.bin", "samples/1.png"]
    assert result.manifest and result.manifest.complete
    assert await read_manifest(objects, result.manifest) == result.manifest
    await verify_manifest(objects, result.manifest)
    text = (tmp_path / "objects" / result.manifest.key).read_text()
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert not (tmp_path / "spool" / "j1" / "a1").exists()
    assert await make().collect(final=True) == result


async def test_a_required_output_that_is_missing(make: Callable[..., Collector], host: FolderHost) -> None:
    """A final output that never appeared is missing, and the manifest is not complete; what there is is kept."""
    host.write("samples/1.png")
    result = await make().collect(final=True)
    assert result.missing == ("lora",)
    assert paths(result) == ["samples/1.png"]
    assert result.manifest and not result.manifest.complete


async def test_partial_results(make: Callable[..., Collector], host: FolderHost) -> None:
    """The manifest of an attempt that went wrong is not complete."""
    host.write("lora.bin")
    result = await make().collect(final=True, complete=False)
    assert result.missing == ()
    assert result.manifest and not result.manifest.complete


async def test_what_vanished_from_the_host_is_still_kept(make: Callable[..., Collector], host: FolderHost) -> None:
    """A file that was collected stays an artifact when the job removes it."""
    host.write("samples/1.png")
    host.write("lora.bin")
    await make().collect()
    (host.folder / "samples/1.png").unlink()
    assert paths(await make().collect(final=True)) == ["lora.bin", "samples/1.png"]


@pytest.mark.fault("objects-down")
@pytest.mark.parametrize("silent", [False, True])
async def test_the_object_store_is_down(
    make: Callable[..., Collector], host: FolderHost, objects: FlakyObjects, silent: bool
) -> None:
    """While the object store is down everything is still fetched, kept in the spool, and put from there once it is back."""
    for number in range(6):
        host.write(f"samples/{number}.png", b"%d" % number)
    host.write("lora.bin")
    objects.down, objects.silent = True, silent
    collector = make()
    with pytest.raises(ObjectsUnavailable):
        await collector.collect(final=True)
    assert len(host.fetched) == 7
    objects.down = objects.silent = False
    result = await make().collect(final=True)
    assert len(host.fetched) == 7
    assert len(result.artifacts) == 7


async def test_a_round_that_is_cancelled(make: Callable[..., Collector], host: FolderHost, objects: FlakyObjects) -> None:
    """A cancelled round has ended when what it was writing has: nothing appears in the object store behind the back of the next one."""
    host.write("samples/1.png")
    objects.goes_on.clear()
    collecting = asyncio.create_task(make().collect())
    await asyncio.to_thread(objects.writing.wait, PATIENCE_S)
    collecting.cancel()
    for _ in range(100):
        await asyncio.sleep(0)
    assert not collecting.done()
    objects.goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await collecting
    assert await stored(objects) == []


@pytest.mark.fault("data-damaged")
async def test_a_pull_that_broke_is_resumed(make: Callable[..., Collector], host: FolderHost, tmp_path: Path) -> None:
    """Half a file in the spool is continued by the next worker, not fetched again from its start."""
    host.write("lora.bin", b"0123456789")
    original = FolderHost.fetch

    async def half(key: str, path: str, target: Path, *, size: int, progress: Progress | None = None) -> None:
        await asyncio.to_thread(target.write_bytes, b"01234")
        raise HostUnreachable("cut")

    host.fetch = half  # type: ignore[method-assign]
    with pytest.raises(HostUnreachable):
        await make().collect(final=True)
    (host.folder / "lora.bin").write_bytes(b"xxxxx56789")  # what is fetched now shows which bytes were
    listed = RemoteFile(path="lora.bin", size=10, mtime=1, sha256=hashlib.sha256(b"0123456789").hexdigest())

    async def outputs(key: str, globs: Sequence[str], *, settled_s: float) -> Sequence[RemoteFile]:
        return [listed]

    host.fetch = original.__get__(host)  # type: ignore[method-assign]
    host.outputs = outputs  # type: ignore[method-assign]
    assert paths(await make().collect(final=True)) == ["lora.bin"]


@pytest.mark.fault("data-damaged")
async def test_a_file_that_changes_while_it_is_fetched(make: Callable[..., Collector], host: FolderHost) -> None:
    """A file that changes between listing and fetching is left for the next round; the others are kept."""
    host.write("samples/1.png", b"before")
    host.write("samples/2.png")
    host.on_fetch = lambda path: host.write("samples/1.png", b"after!")
    collector = make()
    assert paths(await collector.collect()) == ["samples/2.png"]
    host.on_fetch = lambda path: None
    assert paths(await collector.collect()) == ["samples/1.png", "samples/2.png"]


@pytest.mark.fault("data-damaged")
async def test_a_file_that_never_stops_changing(make: Callable[..., Collector], host: FolderHost) -> None:
    """At the end a file that cannot be fetched as listed is an error that names it, after several tries; no manifest is written."""
    host.write("lora.bin")
    number = iter(range(100))
    host.on_fetch = lambda path: host.write("lora.bin", b"%d" % next(number))
    with pytest.raises(DigestMismatch, match=r"lora\.bin"):
        await make().collect(final=True)
    assert len(host.fetched) == 3


async def test_a_file_that_is_gone(make: Callable[..., Collector], host: FolderHost) -> None:
    """A file that is removed between listing and fetching is nobody's fault: it is not an artifact."""
    host.write("samples/1.png")
    host.write("lora.bin")

    def gone(path: str) -> None:
        if path == "samples/1.png":
            (host.folder / path).unlink()
            raise Incomplete("gone")

    host.on_fetch = gone
    assert paths(await make().collect(final=True)) == ["lora.bin"]


@pytest.mark.fault("hostile-host")
async def test_paths_that_leave_the_folder(make: Callable[..., Collector], host: FolderHost, tmp_path: Path) -> None:
    """A host that lists paths outside its output folder gets nothing fetched under them, and the rest is kept."""
    everything = Output(name="all", kind=OutputKind.ARTIFACT, glob="**")
    host.write("fine")
    host.lies = [RemoteFile(path=path, size=1, mtime=1, sha256="0" * 64) for path in ("../evil", "/etc/passwd", "a/../../b")]
    assert paths(await make(outputs=(everything,)).collect(final=True)) == ["fine"]
    assert host.fetched == ["fine"]


@pytest.mark.fault("hostile-host")
async def test_a_file_too_large_for_the_spool(make: Callable[..., Collector], host: FolderHost) -> None:
    """A file that does not fit on the spool's disk is not begun; the message says how large it is and what is free."""
    host.lies = [RemoteFile(path="lora.bin", size=1 << 41, mtime=1, sha256="0" * 64)]
    with pytest.raises(ObjectsUnavailable, match=r"lora\.bin has 2199023\.3 MB.*MB free"):
        await make().collect(final=True)
    assert host.fetched == []


@pytest.mark.fault("data-damaged")
async def test_a_stored_copy_that_is_damaged(
    make: Callable[..., Collector], host: FolderHost, objects: FlakyObjects, tmp_path: Path
) -> None:
    """A kept file whose stored bytes are damaged is noticed at the end and stored again from the host."""
    host.write("lora.bin", b"good")
    await make().collect()
    stored_file = next(tmp_path.glob("objects/t/j1/a1/*/lora.bin"))
    before = stored_file.stat()
    stored_file.write_bytes(b"evil")
    os.utime(stored_file, ns=(before.st_atime_ns, before.st_mtime_ns))
    result = await make().collect(final=True)
    assert stored_file.read_bytes() == b"good"
    assert result.manifest
    stored_file.write_bytes(b"evil")
    with pytest.raises(DigestMismatch):
        await verify_manifest(objects, result.manifest)
    stored_file.unlink()
    with pytest.raises(Incomplete):
        await verify_manifest(objects, result.manifest)


@pytest.mark.fault("object-store-lies")
async def test_what_vanished_after_it_was_verified(
    make: Callable[..., Collector], host: FolderHost, objects: FlakyObjects, tmp_path: Path
) -> None:
    """A kept file that is gone at the end is no success: it is said, and fetched again by the next try."""
    host.write("lora.bin")
    collector = make()
    await collector.collect()
    next(tmp_path.glob("objects/t/j1/a1/*/lora.bin")).unlink()
    with pytest.raises(Incomplete, match="vanished"):
        await collector.collect(final=True)
    result = await make().collect(final=True)
    assert result.manifest and result.manifest.complete
    await verify_manifest(objects, result.manifest)


class Asleep(FlakyObjects):
    """The object store as a worker sees it that falls asleep just before it puts something."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.sleeps, self.awake = asyncio.Event(), asyncio.Event()

    async def put(self, key: str, path: Path, *, sha256: str, progress: Progress | None = None) -> StoredObject:
        self.sleeps.set()
        await self.awake.wait()
        return await super().put(key, path, sha256=sha256, progress=progress)


@pytest.mark.fault("stale-collector")
@pytest.mark.parametrize("final", [False, True])
async def test_a_worker_that_was_asleep_damages_nothing(
    make: Callable[..., Collector], host: FolderHost, objects: FlakyObjects, tmp_path: Path, final: bool
) -> None:
    """A collector that comes back with an older version of everything changes nothing that its successor has verified."""
    host.write("lora.bin", b"older")
    host.write("checkpoints/last/weights", b"older")
    host.write("checkpoints/last/done.json", b"{}")
    asleep = Asleep(tmp_path / "objects")
    stale = asyncio.create_task(make(objects=asleep, spool=tmp_path / "stale").collect(final=final))
    await asleep.sleeps.wait()
    host.write("lora.bin", b"newer!")
    host.write("checkpoints/last/weights", b"newer!")
    result = await make().collect(final=True)
    assert result.manifest and result.manifest.complete
    asleep.awake.set()
    await asyncio.gather(stale, return_exceptions=True)
    await verify_manifest(objects, result.manifest)
    assert await read_manifest(objects, result.manifest) == result.manifest
    assert {artifact.size for artifact in result.manifest.artifacts} == {6, 2}
    found = await newest_checkpoint(objects, "t", JOB)
    assert found and found.unit == "checkpoints/last"
