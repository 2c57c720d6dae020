"""Shipping to a host behind pipes, under each shell, as root and not: complete and verified, or not there."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import stat
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from remote_trainer.dataset import manifest
from remote_trainer.errors import Conflict, DatasetError, DigestMismatch, HostError, HostFull, RemoteTrainerError
from remote_trainer.host.depot import Depot, outcome, relative
from remote_trainer.ports import Channel
from remote_trainer.transport.command import CommandTransport
from remote_trainer.worker.ship import restore, ship
from tests.integration.depot_host import KEY, KINDS, DepotHost, content, depot_host, host_of, make, until
from tests.support.smalldisk import small_disk

pytestmark = pytest.mark.shells
BIG = 3 * manifest.SMALL_CHUNK + 12345


@pytest.fixture(params=KINDS)
async def host(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[DepotHost]:
    async with depot_host(request.param, tmp_path) as host:
        yield host


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Four MiB."""
    with small_disk(tmp_path / "small", "4m") as disk:
        yield disk


@pytest.fixture
async def plain(tmp_path: Path) -> DepotHost:
    return await host_of(CommandTransport(), tmp_path / "rt", tmp_path / "cache")


async def test_every_name_and_byte_arrives(host: DepotHost, tmp_path: Path) -> None:
    """Odd names, empty files and folders, and a file in pieces are there as they were, and nothing can write to them."""
    data = make(tmp_path / "data", big=BIG)
    given = await host.packed(data)
    steps: list[tuple[int, int]] = []
    await ship(host.depot, KEY, [given], host.cache, progress=lambda done, total: steps.append((done, total)))
    assert content(host.tree(given)) == content(data)
    modes = {stat.S_IMODE(path.lstat().st_mode) & 0o222 for path in [host.tree(given), *host.tree(given).rglob("*")]}
    assert modes == {0}
    assert steps == sorted(steps) and steps[-1] == (given.size, given.size)
    assert await host.depot.digests() == {given.digest}
    assert not host.draft(given).exists()


async def test_the_same_data_ships_nothing(plain: DepotHost, tmp_path: Path) -> None:
    """A host that has the data is asked one thing, and no byte of the source is needed any more."""
    given = await plain.packed(make(tmp_path / "data"))
    await ship(plain.depot, KEY, [given], plain.cache)
    await ship(plain.depot, "rt-test-other-a1", [given], type(plain.cache)(tmp_path / "empty"))


async def test_several_inputs_are_one_progress(plain: DepotHost, tmp_path: Path) -> None:
    """Dataset and tool are counted together."""
    inputs = [
        await plain.packed(make(tmp_path / "data", big=BIG)),
        await plain.packed(make(tmp_path / "tool", {"t": b"t"}), "tool"),
    ]
    steps: list[tuple[int, int]] = []
    await ship(plain.depot, KEY, inputs, plain.cache, progress=lambda done, total: steps.append((done, total)))
    total = sum(given.size for given in inputs)
    assert steps == sorted(steps) and steps[-1] == (total, total)
    assert await plain.depot.digests() == {given.digest for given in inputs}


# -- broken off


class Breaking(CommandTransport):
    """Its connection breaks when so many bytes were sent; counts what is sent in all."""

    def __init__(self, breaks: Sequence[int]) -> None:
        super().__init__()
        self.breaks, self.sent, self.received = list(breaks), 0, 0

    def open(self, argv: Sequence[str]) -> AbstractAsyncContextManager[Channel]:
        return self._counting(super().open(argv)) if "receive" in argv else super().open(argv)

    @contextlib.asynccontextmanager
    async def _counting(self, opened: AbstractAsyncContextManager[Channel]) -> AsyncIterator[Channel]:
        async with opened as channel:
            write = channel.write

            async def counted(data: bytes) -> None:
                self.sent += len(data)
                if self.breaks and self.sent > self.breaks[0]:
                    self.breaks.pop(0)
                    raise ConnectionError("the line is dead")
                await write(data)

            channel.write = counted  # type: ignore[method-assign]
            yield channel


async def test_a_broken_transfer_goes_on(tmp_path: Path) -> None:
    """After each break only chunks that were under way are sent again."""
    transport = Breaking([20 << 20, 60 << 20])
    host = await host_of(transport, tmp_path / "rt", tmp_path / "cache")
    data = make(tmp_path / "data", big=6 * manifest.SMALL_CHUNK)
    given = await host.packed(data)
    for _ in range(2):
        with pytest.raises((ConnectionError, RemoteTrainerError)):
            await ship(host.depot, KEY, [given], host.cache)
        assert await host.depot.digests() == set()
    await ship(host.depot, KEY, [given], host.cache)
    assert content(host.tree(given)) == content(data)
    assert transport.sent < given.size + 2 * 8 * manifest.SMALL_CHUNK  # two breaks, at most eight channels


@pytest.mark.fault("worker-killed")
async def test_a_killed_worker_leaves_chunks_to_go_on_from(host: DepotHost, tmp_path: Path) -> None:
    """What is verified when the worker dies is not sent again by the next one, and leftovers of the first do not harm."""
    data = make(tmp_path / "data", big=BIG)
    given = await host.packed(data)
    first = asyncio.create_task(ship(host.depot, KEY, [given], host.cache))
    await until(lambda: any(host.draft(given).glob("got/*")))
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    verified = {path.name for path in host.draft(given).glob("got/*")}
    begun = await host.depot.begin(given, KEY)
    assert begun is not None and {str(number) for number in begun.got} >= verified
    await ship(host.depot, KEY, [given], host.cache)
    assert content(host.tree(given)) == content(data)


async def test_a_writer_that_hangs_is_ended(host: DepotHost, tmp_path: Path) -> None:
    """A receiver whose connection died silently writes nothing after the same job has begun anew."""
    given = await host.packed(make(tmp_path / "data"))
    await host.depot.begin(given, KEY)
    async with host.depot.receiving(given, KEY) as stale:
        await until(lambda: any(host.draft(given).glob("w/*")))
        await host.depot.begin(given, KEY)
        assert await stale.wait() != 0
    assert not list(host.draft(given).glob("w/*"))
    await ship(host.depot, KEY, [given], host.cache)


async def test_two_jobs_with_the_same_data_do_not_collide(host: DepotHost, tmp_path: Path) -> None:
    """Two jobs at once: one ships, the other waits, both have it."""
    data = make(tmp_path / "data", big=BIG)
    given = await host.packed(data)
    await asyncio.gather(*(ship(host.depot, f"rt-test-{number}-a1", [given], host.cache) for number in range(3)))
    assert content(host.tree(given)) == content(data)
    assert sorted(path.name for path in host.tree(given).with_name("uses").iterdir()) == [f"rt-test-{n}-a1" for n in range(3)]


async def test_a_transfer_nobody_goes_on_with_is_taken_over(plain: DepotHost, tmp_path: Path) -> None:
    """A job that died in mid-transfer does not keep another from shipping the same data."""
    given = await plain.packed(make(tmp_path / "data"))
    await plain.depot.begin(given, KEY)
    assert await plain.depot.begin(given, "rt-test-other-a1") is None
    os.utime(plain.draft(given) / "owner", (1, 1))
    assert await plain.depot.begin(given, "rt-test-other-a1") is not None
    with pytest.raises(HostError, match="took over"):
        await plain.depot.finish(given, KEY)


# -- damage


@pytest.mark.fault("data-damaged")
async def test_an_incomplete_input_is_never_published(host: DepotHost, tmp_path: Path) -> None:
    """Publishing with a chunk missing is refused."""
    given = await host.packed(make(tmp_path / "data"))
    await host.depot.begin(given, KEY)
    with pytest.raises(RemoteTrainerError, match="missing"):
        await host.depot.finish(given, KEY)
    assert await host.depot.digests() == set()


@pytest.mark.fault("data-damaged")
@pytest.mark.parametrize("big", [0, BIG])
async def test_a_damaged_chunk_is_found_and_sent_again(plain: DepotHost, tmp_path: Path, big: int) -> None:
    """A chunk whose bytes are wrong once is repaired; the data arrives whole."""
    data = make(tmp_path / "data", big=big)
    given = await plain.packed(data)
    kept = plain.cache.chunk_path(given.chunks[-1].sha256)
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DatasetError, match=r"cached copy .* was damaged and is removed; submit again"):
        await ship(plain.depot, KEY, [given], plain.cache)
    assert await plain.depot.digests() == set()
    kept.write_bytes(whole)
    await ship(plain.depot, KEY, [given], plain.cache)
    assert content(plain.tree(given)) == content(data)


class Flipping(CommandTransport):
    """Damages a bit of every chunk that is sent."""

    def open(self, argv: Sequence[str]) -> AbstractAsyncContextManager[Channel]:
        return self._flipping(super().open(argv)) if "receive" in argv else super().open(argv)

    @contextlib.asynccontextmanager
    async def _flipping(self, opened: AbstractAsyncContextManager[Channel]) -> AsyncIterator[Channel]:
        async with opened as channel:
            write = channel.write

            async def flipped(data: Any) -> None:
                await write(data if bytes(data[-1:]) == b"\n" else bytes(data[:-1]) + bytes([data[-1] ^ 1]))

            channel.write = flipped  # type: ignore[method-assign]
            yield channel


@pytest.mark.fault("data-damaged")
async def test_a_way_that_damages_everything_is_an_error(tmp_path: Path) -> None:
    """After three damaged arrivals it is not our source: the error says so and nothing was published."""
    host = await host_of(Flipping(), tmp_path / "rt", tmp_path / "cache")
    given = await host.packed(make(tmp_path / "data", {"f": b"x"}))
    with pytest.raises(DigestMismatch, match="arrived damaged 3 times"):
        await ship(host.depot, KEY, [given], host.cache)
    assert await host.depot.digests() == set()


@pytest.mark.fault("data-damaged")
async def test_an_edited_source_is_said(plain: DepotHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Big data that was edited since the submit fails with a clear error; nothing wrong arrives."""
    monkeypatch.setattr("remote_trainer.dataset.pack.KEEP_BELOW", 0)
    data = make(tmp_path / "data")
    given = await plain.packed(data)
    (data / "-rf").write_bytes(b"A name like an option")
    with pytest.raises(DatasetError, match=r"-rf changed.*submit again"):
        await ship(plain.depot, KEY, [given], plain.cache)
    assert await plain.depot.digests() == set()


@pytest.mark.fault("data-damaged")
async def test_a_tree_that_was_not_on_disk_when_the_machine_went_down_is_shipped_again(plain: DepotHost, tmp_path: Path) -> None:
    """A verified tree of an earlier boot counts only if it had reached the disk."""
    given = await plain.packed(make(tmp_path / "data"))
    await ship(plain.depot, KEY, [given], plain.cache)
    mark = plain.tree(given).with_name("ok")
    await until(lambda: mark.read_text() == "durable\n")
    mark.write_text("boot of-another-time\n")
    assert await plain.depot.digests() == set()
    await ship(plain.depot, KEY, [given], plain.cache)
    assert await plain.depot.digests() == {given.digest}


# -- space


async def test_a_disk_too_small_is_told_before_anything_is_sent(disk: Path, tmp_path: Path) -> None:
    """The figures are in the error, and no chunk is on the host."""
    host = await host_of(CommandTransport(), disk / "rt", tmp_path / "cache")
    given = await host.packed(make(tmp_path / "data", big=20 << 20))
    with pytest.raises(HostFull, match=r"needs 0\.02 GB .* 0\.00 GB are free"):
        await ship(host.depot, KEY, [given], host.cache)
    assert not list(host.draft(given).glob("got/*"))


@pytest.mark.fault("host-disk-full")
@pytest.mark.parametrize("big", [0, 20 << 20])
async def test_a_disk_that_fills_up_meanwhile_is_told(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, big: int
) -> None:
    """Somebody else fills the disk in mid-transfer: HostFull, not a hang and not a damaged tree."""
    monkeypatch.setattr("remote_trainer.worker.ship._SPARE", -(1 << 40))
    host = await host_of(CommandTransport(), disk / "rt", tmp_path / "cache")
    files = {f"{number}": os.urandom(100_000) for number in range(60)}
    given = await host.packed(make(tmp_path / "data", {"one": b"1"} if big else files, big=big))
    with pytest.raises(HostFull, match="no space left"):
        await ship(host.depot, KEY, [given], host.cache)
    assert await host.depot.digests() == set()


async def test_old_data_makes_room_and_a_live_job_keeps_its_own(host: DepotHost, tmp_path: Path) -> None:
    """Prune removes the longest unused first, down to the bytes to keep, and never what a job with a work folder was given."""
    inputs = [await host.packed(make(tmp_path / str(number), {"f": bytes([number]) * 5000})) for number in range(3)]
    for number, given in enumerate(inputs):
        await ship(host.depot, f"rt-test-{number}-a1", [given], host.cache)
        for use in host.tree(given).with_name("uses").iterdir():
            os.utime(use, (1, 1))
        mark = host.tree(given).with_name("ok")
        await until(lambda mark=mark: mark.read_text() == "durable\n")  # type: ignore[misc]
        os.utime(mark, (number + 1, number + 1))
    (host.root / "j" / "rt-test-0-a1" / "w").mkdir(parents=True)
    assert await host.depot.prune(2 * inputs[0].size) == inputs[1].size
    assert await host.depot.digests() == {inputs[0].digest, inputs[2].digest}
    assert await host.depot.prune(0) == inputs[2].size
    assert await host.depot.digests() == {inputs[0].digest}


# -- checkpoints


async def test_a_checkpoint_comes_back(host: DepotHost, tmp_path: Path) -> None:
    """Files are put into the work folder under their paths, verified; doing it twice changes nothing; our copies stay."""
    local = make(tmp_path / "local", {"model.bin": b"m" * 100, "state/model.bin": b"s", "state/same.bin": b"s"})
    names = ["model.bin", "state/model.bin", "state/same.bin"]
    files = [(f"output/ckpt 1/{name}", hashlib.sha256((local / name).read_bytes()).hexdigest(), local / name) for name in names]
    for _ in range(2):
        await restore(host.depot, KEY, files)
    restored = content(host.root / "j" / KEY / "w" / "output" / "ckpt 1")
    assert restored == {"model.bin": b"m" * 100, "state": None, "state/model.bin": b"s", "state/same.bin": b"s"}
    assert (local / "model.bin").read_bytes() == b"m" * 100
    with pytest.raises(DigestMismatch, match="arrived damaged"):
        await restore(host.depot, KEY, [("output/x", "0" * 64, local / "model.bin")])
    assert not (host.root / "j" / KEY / "w" / "output" / "x").exists()


# -- the host is not trusted


@pytest.mark.fault("hostile-host")
@pytest.mark.parametrize("line", [b"", b"ok", b"ok x", b"ok -1", b"yes 1", b"\xff\xfe", b"ok 1 2 3"])
def test_nonsense_from_the_host_is_an_error(line: bytes) -> None:
    """A reply that the protocol does not have is never taken for a chunk."""
    with pytest.raises(HostError):
        outcome(line, "host")


@pytest.mark.fault("hostile-host")
@pytest.mark.parametrize("path", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a/", "a\nb", "."])
def test_paths_that_leave_are_refused(path: str) -> None:
    """Neither what we send nor what the host lists can name something outside its folder."""
    with pytest.raises(Conflict):
        relative(path)


def test_the_depot_is_clean_shell() -> None:
    """shellcheck has nothing to say about depot.sh."""
    script = Path(Depot.__module__.replace(".", "/")).with_suffix(".sh")
    done = subprocess.run(["shellcheck", Path(__file__).parents[2] / script], capture_output=True, text=True)
    assert done.stdout == ""
