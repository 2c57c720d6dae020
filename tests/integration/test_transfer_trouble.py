"""Transfers that crawl, stall, are killed, or meet a host whose disk is full or whose files change: gone on with or refused."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from remote_trainer.dataset import manifest
from remote_trainer.errors import HostError, HostFull, HostLacks, HostUnreachable
from remote_trainer.host.client import SupervisedHost
from remote_trainer.testing.netfault import Link
from remote_trainer.transport.command import CommandTransport
from remote_trainer.worker import way as ways
from remote_trainer.worker.ship import ship
from tests.integration.depot_host import KEY, DepotHost, content, far_host, host_of, make, until
from tests.support.rig import LONG
from tests.support.smalldisk import grow, small_disk
from tests.support.sshd import SshdServer

OTHER = "rt-test-other-a1"
BIG = manifest.SMALL_CHUNK + 12345


@pytest.fixture
async def plain(tmp_path: Path) -> DepotHost:
    return await host_of(CommandTransport(), tmp_path / "rt", tmp_path / "cache")


@pytest.fixture
def link(own_sshd: SshdServer) -> Iterator[Link]:
    with Link(own_sshd.host, own_sshd.port) as link:
        yield link


@pytest.fixture
async def far(own_sshd: SshdServer, link: Link, tmp_path: Path) -> AsyncIterator[DepotHost]:
    async with far_host(own_sshd, link, tmp_path) as host:
        yield host


# -- time


@pytest.mark.fault("transfer-slow")
async def test_what_moves_is_let_move(far: DepotHost, link: Link, tmp_path: Path) -> None:
    """At 10 kB/s nothing breaks a transfer off, either way; in the heavy round for longer than a silence that is borne."""
    size = 700_000 if LONG else 40_000
    far.work()
    (far.root / "j" / KEY / "w" / "output" / "result").write_bytes(os.urandom(size))
    given = await far.packed(make(tmp_path / "data", {"f": os.urandom(size)}))
    link.set(bytes_per_s=10_000)
    await ship(far.depot, KEY, [given], far.cache)
    host = SupervisedHost(far.depot.transport, str(far.root))
    await host.fetch(KEY, "result", tmp_path / "result", size=size)
    assert (tmp_path / "result").read_bytes() == (far.root / "j" / KEY / "w" / "output" / "result").read_bytes()
    assert await far.depot.digests() == {given.digest}


@pytest.mark.fault("transfer-slow")
async def test_what_does_not_move_goes_on_over_a_new_connection(
    far: DepotHost, own_sshd: SshdServer, link: Link, tmp_path: Path
) -> None:
    """The host stops taking bytes while its connection lives: that is noticed, and what has arrived is not sent again."""
    data = make(tmp_path / "data", big=BIG)
    given = await far.packed(data)
    before = link.bytes_up
    link.set(bytes_per_s=20e6)
    async with far_host(own_sshd, link, tmp_path, stall_s=2) as impatient:
        first = asyncio.create_task(ship(impatient.depot, KEY, [given], far.cache))
        await until(lambda: link.bytes_up - before > BIG // 2 or first.done())
        for mark in far.draft(given).glob("w/*"):
            for child in _children(int(mark.name)):
                os.kill(child, signal.SIGSTOP)
        with pytest.raises(HostUnreachable, match="did not move for 2 s"):
            await first
    await ship(far.depot, KEY, [given], far.cache)
    assert content(far.tree(given)) == content(data)
    assert link.bytes_up - before < given.size + 2 * (2 << 20) + 500_000


async def test_a_line_too_slow_for_the_inputs_is_told(
    far: DepotHost, link: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rented machine is given up while its inputs crawl; what is there of them is not sent again to one that is kept."""
    monkeypatch.setattr(ways, "SETTLES_S", 0.3)
    monkeypatch.setattr(ways, "MEASURED_S", 0.7)
    given = await far.packed(make(tmp_path / "data", big=12_000_000))
    traffic, uplink = ways.Traffic(), ways.Uplink()
    link.set(bytes_per_s=200_000)
    with pytest.raises(HostLacks, match="from here, at least 16"):
        await ship(far.depot, KEY, [given], far.cache, way=ways.Way(traffic, KEY, uplink, "m1", 16.0))
    sent = traffic.sent[KEY]
    assert 0 < sent < 6_000_000
    link.set()
    await ship(far.depot, KEY, [given], far.cache, way=ways.Way(traffic, KEY, uplink, "m1", 16.0))
    assert await far.depot.digests() == {given.digest}
    assert given.size <= traffic.sent[KEY] <= given.size + sent


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()] or [pid]


# -- the worker dies

_SHIP = """
import asyncio, sys
from pathlib import Path
from remote_trainer.dataset.cache import Cache
from remote_trainer.dataset.pack import pack
from remote_trainer.host.depot import Depot
from remote_trainer.ports import DriverSettings
from remote_trainer.transport.ssh import SshTransport
from remote_trainer.worker.ship import ship

async def main(target, key, host_key, root, cache, data, label):
    transport = SshTransport(target, DriverSettings(state_dir=Path(cache), ssh_key=Path(key)), host_key=host_key)
    await ship(Depot(transport, root), label, [await pack(data, Cache(Path(cache)))], Cache(Path(cache)))

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.fault("transfer-cut")
async def test_a_killed_worker_costs_what_was_under_way(far: DepotHost, own_sshd: SshdServer, link: Link, tmp_path: Path) -> None:
    """After `kill -9` in mid-transfer the next worker sends the rest of each chunk, not the chunks."""
    data = make(tmp_path / "data", big=BIG)
    given = await far.packed(data)
    link.set(bytes_per_s=20e6)
    before = link.bytes_up
    target = f"{own_sshd.user}@{own_sshd.host}:{link.port}"
    words = [target, own_sshd.key_path, own_sshd.host_key_public, far.root, tmp_path / "cache", data, KEY]
    worker = subprocess.Popen([sys.executable, "-c", _SHIP, *map(str, words)])
    await until(lambda: link.bytes_up - before > BIG // 2 or worker.poll() is not None)
    worker.kill()
    assert worker.wait() < 0
    await ship(far.depot, KEY, [given], far.cache)
    assert content(far.tree(given)) == content(data)
    assert link.bytes_up - before < given.size + 2 * (2 << 20) + 500_000


# -- the host's files


@pytest.mark.fault("inputs-changed")
async def test_inputs_that_a_step_has_changed_are_not_given_to_others(plain: DepotHost, tmp_path: Path) -> None:
    """A step that runs as root wrote into its dataset: another job waits while it runs, and gets the data as it was afterwards."""
    data = make(tmp_path / "data")
    given = await plain.packed(data)
    await ship(plain.depot, KEY, [given], plain.cache)
    plain.work()
    folder = plain.tree(given) / "a b"
    folder.chmod(0o755)
    (folder / "c.txt.latents").write_bytes(b"cached by a trainer")
    with pytest.raises(HostError, match="has changed the data"):
        await ship(plain.depot, OTHER, [given], plain.cache)
    (plain.root / "j" / KEY / "w").rename(tmp_path / "over")
    await ship(plain.depot, OTHER, [given], plain.cache)
    assert content(plain.tree(given)) == content(data)


@pytest.mark.fault("inputs-changed")
async def test_a_bundle_that_changes_before_it_is_unpacked(plain: DepotHost, tmp_path: Path) -> None:
    """Bytes of a chunk that wait on the host and are damaged there are found and sent again."""
    data = make(tmp_path / "data", {str(number): os.urandom(500_000) for number in range(4)})
    given = await plain.packed(data)
    await plain.depot.begin(given, KEY)
    number = len(given.chunks) - 1
    waiting = plain.draft(given) / "part"
    whole = plain.cache.chunk_path(given.chunks[number].sha256).read_bytes()
    (waiting / f"{number}.tar").write_bytes(whole[:1_000_000] + bytes([whole[1_000_000] ^ 1]) + whole[1_000_001:1_500_000])
    (waiting / str(number)).write_text("1500000\n")
    await ship(plain.depot, KEY, [given], plain.cache)
    assert content(plain.tree(given)) == content(data)


@pytest.mark.fault("inputs-changed")
async def test_what_had_come_before_the_machine_went_down_is_sent_again(plain: DepotHost, tmp_path: Path) -> None:
    """Chunks noted in an earlier boot may not have reached the disk: none of them counts."""
    given = await plain.packed(make(tmp_path / "data", big=BIG))
    await plain.depot.begin(given, KEY)
    for number in range(len(given.chunks)):
        (plain.draft(given) / "got" / str(number)).touch()
    (plain.draft(given) / "owner").write_text(f"{KEY} an-earlier-boot\n")
    begun = await plain.depot.begin(given, KEY)
    assert begun and not begun.present and begun.got == frozenset()


# -- space


@pytest.mark.fault("transfer-disk-full")
async def test_a_full_disk_goes_on_where_it_stood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's disk fills up in mid-transfer: a clear error; once there is room, only the rest is sent."""
    monkeypatch.setattr("remote_trainer.worker.ship._SPARE", -(1 << 40))
    with small_disk(tmp_path / "disk", "12m") as disk:
        host = await host_of(CommandTransport(), disk / "rt", tmp_path / "cache")
        data = make(tmp_path / "data", big=BIG)
        given = await host.packed(data)
        with pytest.raises(HostFull, match="no space left"):
            await ship(host.depot, KEY, [given], host.cache)
        assert await host.depot.digests() == set()
        grow(disk, "60m")
        begun = await host.depot.begin(given, KEY)
        assert begun and sum(begun.parts.values()) > 5 << 20
        await ship(host.depot, KEY, [given], host.cache)
        assert content(host.tree(given)) == content(data)
