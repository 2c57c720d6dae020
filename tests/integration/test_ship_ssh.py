"""Shipping over a real OpenSSH server, through a link that is slow, counted, or broken."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from remote_trainer.dataset import manifest
from remote_trainer.errors import HostUnreachable
from remote_trainer.ports import DriverSettings
from remote_trainer.testing.netfault import Link
from remote_trainer.transport.ssh import SshTransport
from remote_trainer.worker.ship import ship
from tests.integration.depot_host import KEY, DepotHost, content, host_of, make, until
from tests.support.sshd import SshdServer

pytestmark = pytest.mark.sshd


@pytest.fixture
def link(own_sshd: SshdServer) -> Iterator[Link]:
    with Link(own_sshd.host, own_sshd.port) as link:
        yield link


@pytest.fixture
async def host(own_sshd: SshdServer, link: Link, tmp_path: Path) -> AsyncIterator[DepotHost]:
    settings = DriverSettings(state_dir=tmp_path / "state", ssh_key=own_sshd.key_path)
    transport = SshTransport(f"{own_sshd.user}@{own_sshd.host}:{link.port}", settings, host_key=own_sshd.host_key_public)
    yield await host_of(transport, own_sshd.home / "rt", tmp_path / "cache")
    await transport.close()


async def test_data_arrives_and_is_sent_once(host: DepotHost, link: Link, tmp_path: Path) -> None:
    """The bytes on the line are the data's and little more; the same data again costs no payload."""
    data = make(tmp_path / "data", big=3 * manifest.SMALL_CHUNK)
    given = await host.packed(data)
    before = link.bytes_up
    await ship(host.depot, KEY, [given], host.cache)
    assert content(host.tree(given)) == content(data)
    assert given.size < link.bytes_up - before < given.size * 1.02 + 100_000
    shutil.rmtree(data)
    before = link.bytes_up
    await ship(host.depot, "rt-test-again-a1", [given], host.cache)
    assert link.bytes_up - before < 5_000


async def test_a_cut_line_costs_what_was_under_way(host: DepotHost, link: Link, tmp_path: Path) -> None:
    """A connection that breaks in mid-transfer is an error that says so; the next call sends the rest."""
    data = make(tmp_path / "data", big=8 * manifest.SMALL_CHUNK)
    given = await host.packed(data)
    before = link.bytes_up
    first = asyncio.create_task(ship(host.depot, KEY, [given], host.cache))
    await until(lambda: len(list(host.draft(given).glob("got/*"))) >= 4)
    link.reset()
    with pytest.raises(HostUnreachable):
        await first
    link.heal()
    await ship(host.depot, KEY, [given], host.cache)
    assert content(host.tree(given)) == content(data)
    assert link.bytes_up - before < given.size + 5 * manifest.SMALL_CHUNK


async def test_a_far_host_gets_more_channels(host: DepotHost, link: Link, tmp_path: Path) -> None:
    """With a long round trip several windows are under way at once."""
    given = await host.packed(make(tmp_path / "data", big=8 * manifest.SMALL_CHUNK))
    link.set(rtt_s=0.1)
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, len(list(host.draft(given).glob("w/*"))))
            await asyncio.sleep(0.02)

    watching = asyncio.create_task(watch())
    await ship(host.depot, KEY, [given], host.cache)
    watching.cancel()
    assert most >= 6
    assert await host.depot.digests() == {given.digest}
