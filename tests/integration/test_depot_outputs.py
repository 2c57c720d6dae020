"""The list of outputs on a host, and parts of its files; on a full disk nothing that is there passes for missing."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from remote_trainer.errors import Conflict
from tests.integration.depot_host import FILES, KEY, KINDS, DepotHost, depot_host, make
from tests.support.smalldisk import fill

pytestmark = pytest.mark.shells


@pytest.fixture(params=KINDS)
async def host(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[DepotHost]:
    async with depot_host(request.param, tmp_path) as host:
        yield host


@pytest.fixture(params=[kind for kind in KINDS if kind != "nobody"])
async def small_host(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[DepotHost]:
    """A host whose root is a disk of one MiB."""
    async with depot_host(request.param, tmp_path, disk="1m") as host:
        yield host


async def test_outputs_are_listed_with_digests(host: DepotHost) -> None:
    """Regular files that match a glob, with size and SHA-256; links, pipes and names with control characters are not there."""
    output = host.work() / "output"
    make(
        output,
        {"lora.safetensors": b"l", "samples/a b.png": b"p", "samples/deep/c.png": b"q", "ckpt-1/model.bin": b"m", "x\ny": b"n"},
    )
    (output / "link.safetensors").symlink_to("/etc/passwd")
    (output / "samples" / "folder").symlink_to("/etc")
    os.mkfifo(output / "pipe")

    async def listed(*globs: str) -> list[str]:
        return sorted(file.path for file in await host.depot.outputs(KEY, globs, settled_s=0))

    assert await listed("*.safetensors") == ["lora.safetensors"]
    assert await listed("samples/*.png") == ["samples/a b.png"]
    assert await listed("**/*.png", "ckpt-[0-9]/**") == ["ckpt-1/model.bin", "samples/a b.png", "samples/deep/c.png"]
    assert await listed("**") == ["ckpt-1/model.bin", "lora.safetensors", "samples/a b.png", "samples/deep/c.png"]
    (file,) = await host.depot.outputs(KEY, ["lora*"], settled_s=0)
    assert (file.size, file.sha256) == (1, "acac86c0e609ca906f632b0e2dacccb2b77d22b0621f20ebece1a4835b93f6f0")


async def test_files_still_written_are_left_out(host: DepotHost) -> None:
    """A file that changed within the time to settle is not listed, whatever modification time it claims."""
    output = host.work() / "output"
    (output / "fresh").write_bytes(b"f")
    os.utime(output / "fresh", (1, 1))
    assert await host.depot.outputs(KEY, ["**"], settled_s=3600) == ()
    assert len(await host.depot.outputs(KEY, ["**"], settled_s=0)) == 1


@pytest.mark.parametrize("host", ["dash"], indirect=True)
async def test_a_change_is_hashed_again(host: DepotHost) -> None:
    """A digest is kept for a file that has rested, and computed anew when the file changes."""
    path = host.work() / "output" / "model"
    path.write_bytes(b"one")
    (first,) = await host.depot.outputs(KEY, ["*"], settled_s=0)
    known = host.root / "j" / KEY / "digests"
    while not known.exists():
        await asyncio.sleep(0.2)
        await host.depot.outputs(KEY, ["*"], settled_s=0)
    known.write_text(known.read_text().replace(first.sha256, "0" * 64))
    (second,) = await host.depot.outputs(KEY, ["*"], settled_s=0)
    assert second.sha256 == "0" * 64  # it was not read again
    path.write_bytes(b"two")
    (third,) = await host.depot.outputs(KEY, ["*"], settled_s=0)
    assert third.sha256 not in (first.sha256, "0" * 64)


async def test_no_output_folder_is_no_output(host: DepotHost) -> None:
    """A job that wrote nothing has nothing."""
    assert await host.depot.outputs(KEY, ["**"], settled_s=0) == ()


async def test_parts_of_files_are_read(host: DepotHost) -> None:
    """Bytes from an offset, at most so many; nothing past the end, of a link, or of what is not there."""
    folder = host.work()
    (folder / "metrics.jsonl").write_bytes(b"0123456789")
    (folder / "link").symlink_to("/etc/passwd")
    assert await host.depot.read(KEY, "metrics.jsonl", offset=3, limit=4) == b"3456"
    assert await host.depot.read(KEY, "metrics.jsonl", offset=10) == b""
    assert await host.depot.read(KEY, "absent", offset=0) == b""
    assert await host.depot.read(KEY, "link", offset=0) == b""
    with pytest.raises(Conflict):
        await host.depot.read(KEY, "../../../inc", offset=0)


@pytest.mark.fault("host-disk-full")
@pytest.mark.parametrize("known", [False, True], ids=["first look", "looked at before"])
async def test_a_full_disk_hides_no_output(small_host: DepotHost, known: bool) -> None:
    """Every file is listed with its size and digest, whether or not its digest was noted while there was room."""
    output = small_host.work() / "output"
    make(output, FILES)
    for number in range(40):
        (output / f"more {number}").write_bytes(os.urandom(500))
    there = {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in output.rglob("*")
        if path.is_file()
    }
    if known:
        await small_host.depot.outputs(KEY, ["**"], settled_s=0)
    fill(small_host.root)
    for _ in range(2):
        listed = await small_host.depot.outputs(KEY, ["**"], settled_s=0)
        assert {each.path: each.sha256 for each in listed} == there
