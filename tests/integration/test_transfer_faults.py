"""Every way of bytes under every fault of the wire, at random offsets: gone on with or refused, never accepted wrong, never begun anew.

What is sent twice is counted on the wire, against the same transfer undisturbed. RT_SEED chooses the offsets.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import shutil
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from remote_trainer.config import S3Settings
from remote_trainer.errors import RemoteTrainerError
from remote_trainer.host.client import SupervisedHost
from remote_trainer.objects.open import open_objects
from remote_trainer.objects.s3 import PART
from remote_trainer.ports import Objects
from remote_trainer.testing.netfault import Fault, Link
from remote_trainer.worker.ship import restore, ship
from tests.integration.depot_host import KEY, DepotHost, content, far_host
from tests.support.environment import ORIGINAL
from tests.support.evidence import Tally
from tests.support.patience import PATIENCE_S
from tests.support.rig import LONG
from tests.support.s3 import Kind, S3Server
from tests.support.sshd import SshdServer

SEED = int(ORIGINAL.get("RT_SEED", random.SystemRandom().randrange(10**6)))
pytestmark = pytest.mark.timeout(1800 if LONG else 900)
SIZE = (256 if LONG else 20) << 20
RATE = 40e6  # bytes a second: a line, so that what it has carried is mostly there when it breaks


class Way(ABC):
    """One way of bytes between two machines, and the link on it."""

    name = ""  # in the evidence
    up = True  # from the link's clients to its server
    slack = 0.02 * SIZE + 300_000  # bytes that may be sent twice; and what a login and its questions take

    def __init__(self, link: Link, folder: Path) -> None:
        self.link, self.folder = link, folder
        self.source = folder / "source" / "big"
        self.source.parent.mkdir(parents=True)
        with self.source.open("wb") as file:
            for _ in range(SIZE >> 20):
                file.write(os.urandom(1 << 20))
        self.sha256 = hashlib.sha256(self.source.read_bytes()).hexdigest()

    @property
    def carried(self) -> int:
        """Bytes that went the way so far."""
        return self.link.bytes_up if self.up else self.link.bytes_down

    @abstractmethod
    async def fresh(self) -> None:
        """Forget what arrived."""

    @abstractmethod
    async def transfer(self) -> None:
        """Do it, or go on."""

    @abstractmethod
    async def check(self) -> None:
        """What arrived is what was sent, and nothing else is there."""


class Dataset(Way):
    """A dataset to a host: on two channels, of which each has OpenSSH's window of 2 MiB under way."""

    name = "dataset to a host"
    slack = max(0.02 * SIZE, 2 * (2 << 20)) + 300_000
    host: DepotHost

    async def fresh(self) -> None:
        shutil.rmtree(self.host.root / "data" / "tmp", ignore_errors=True)
        for place in self.host.root.glob("data/*/tree"):
            place.chmod(0o755)
        shutil.rmtree(self.host.root / "data", ignore_errors=True)

    async def transfer(self) -> None:
        given = await self.host.packed(self.source.parent)
        await ship(self.host.depot, KEY, [given], self.host.cache)

    async def check(self) -> None:
        given = await self.host.packed(self.source.parent)
        assert content(self.host.tree(given)) == content(self.source.parent)


class Checkpoint(Way):
    """A checkpoint back to a host, by rsync over one connection with a window of 2 MiB."""

    name = "checkpoint to a host (rsync)"
    slack = max(0.02 * SIZE, 2 << 20) + 300_000
    host: DepotHost

    @property
    def target(self) -> Path:
        return self.host.root / "j" / KEY / "w" / "output" / "big"

    async def fresh(self) -> None:
        shutil.rmtree(self.host.root / "j", ignore_errors=True)
        shutil.rmtree(self.host.root / "data", ignore_errors=True)

    async def transfer(self) -> None:
        await restore(self.host.depot, KEY, [("output/big", self.sha256, self.source)])

    async def check(self) -> None:
        assert self.target.read_bytes() == self.source.read_bytes()


class Artifact(Way):
    """An artifact from a host."""

    name = "artifact from a host"
    up = False
    host: DepotHost

    async def fresh(self) -> None:
        (self.folder / "pulled").unlink(missing_ok=True)
        output = self.host.root / "j" / KEY / "w" / "output"
        output.mkdir(parents=True, exist_ok=True)
        if not (output / "big").exists():
            os.link(self.source, output / "big")

    async def transfer(self) -> None:
        host = SupervisedHost(self.host.depot.transport, str(self.host.root))
        await host.fetch(KEY, "big", self.folder / "pulled", size=SIZE)

    async def check(self) -> None:
        assert hashlib.sha256((self.folder / "pulled").read_bytes()).hexdigest() == self.sha256


class Upload(Way):
    """An object into a bucket. A bucket takes parts whole."""

    name = "artifact to a bucket"
    slack = PART * 1.1
    objects: Objects

    async def fresh(self) -> None:
        await self.objects.delete("big")

    async def transfer(self) -> None:
        await self.objects.put("big", self.source, sha256=self.sha256)
        await self.objects.verify("big", size=SIZE, sha256=self.sha256)

    async def check(self) -> None:
        await self.objects.get("big", self.folder / "back", sha256=self.sha256)


class Download(Way):
    """An object from a bucket."""

    slack = max(0.02 * SIZE, 1 << 20) + 300_000  # what a damaged record of the encryption throws away is under way
    name = "checkpoint from a bucket"
    up = False
    objects: Objects

    async def fresh(self) -> None:
        (self.folder / "back").unlink(missing_ok=True)
        await self.objects.put("big", self.source, sha256=self.sha256)

    async def transfer(self) -> None:
        await self.objects.get("big", self.folder / "back", sha256=self.sha256)

    async def check(self) -> None:
        assert hashlib.sha256((self.folder / "back").read_bytes()).hexdigest() == self.sha256
        assert [path.name for path in self.folder.iterdir() if path.name.startswith(".")] == []


@pytest.fixture
def ssh_link(own_sshd: SshdServer) -> Iterator[Link]:
    with Link(own_sshd.host, own_sshd.port) as link:
        yield link


@pytest.fixture
async def ssh_host(own_sshd: SshdServer, ssh_link: Link, tmp_path: Path) -> AsyncIterator[DepotHost]:
    async with far_host(own_sshd, ssh_link, tmp_path, keepalive_s=10) as host:
        yield host


@pytest.fixture(params=[Dataset, Checkpoint, Artifact], ids=lambda kind: kind.__name__)
def ssh_way(request: pytest.FixtureRequest, ssh_link: Link, ssh_host: DepotHost, tmp_path: Path) -> Way:
    way: Dataset | Checkpoint | Artifact = request.param(ssh_link, tmp_path / "way")
    way.host = ssh_host
    return way


@pytest.fixture(params=[Upload, Download], ids=lambda kind: kind.__name__)
def bucket_way(request: pytest.FixtureRequest, start_s3: Callable[[Kind], S3Server], tmp_path: Path) -> Iterator[Way]:
    bucket = start_s3("ministack").new_bucket()
    with Link("127.0.0.1", bucket.server.proxy.port) as link:
        way: Upload | Download = request.param(link, tmp_path / "way")
        settings = S3Settings.model_validate(bucket.server.access | {"endpoint": f"https://127.0.0.1:{link.port}"})
        way.objects = open_objects(f"s3://{bucket.bucket}/x", settings)
        yield way


async def undisturbed(way: Way) -> int:
    """Bytes on the wire of a whole transfer."""
    way.link.set(bytes_per_s=RATE)
    await way.fresh()
    before = way.carried
    await way.transfer()
    await way.check()
    return way.carried - before


async def struck(way: Way, plain: int, faults: list[tuple[Fault, float]]) -> float:
    """Transfer while faults strike; return the share of the payload that was sent twice."""
    await way.fresh()
    before = way.carried
    for fault, where in faults:
        way.link.strike(fault, int(where * SIZE), up=way.up)
    for _ in range(4 * len(faults) + 2):
        try:
            async with asyncio.timeout(PATIENCE_S):
                await way.transfer()
            break
        except RemoteTrainerError as error:
            assert len(str(error)) > 20
            way.link.heal()
    else:
        pytest.fail(f"seed {SEED}: {faults} on {type(way).__name__} was not survived")
    carried = way.carried - before
    assert not way.link.pending
    await way.check()
    return (carried - plain) / SIZE


async def survive(way: Way, faults: tuple[Fault, ...], evidence: Tally) -> None:
    """One transfer undisturbed, then one for each fault, and in the heavy round more."""
    chance = random.Random(f"{SEED} {type(way).__name__} {faults}")
    plain = await undisturbed(way)
    costs = []
    for fault in faults * (10 if LONG else 1):
        where = chance.uniform(0.1, 0.9)
        costs.append(await struck(way, plain, [(fault, where)]))
        evidence.sent_twice(int(costs[-1] * SIZE), way.name)
        assert costs[-1] * SIZE <= way.slack, f"seed {SEED}: {fault.name} at {where:.3f} cost {costs[-1]:.2%} of the payload"
    evidence.ran(len(costs))
    print(
        f"seed {SEED}: {type(way).__name__} {len(costs)} runs, sent twice: max {max(costs):.4f} mean {sum(costs) / len(costs):.4f}"
    )


@pytest.mark.fault("transfer-cut")
async def test_a_break_costs_what_was_under_way(ssh_way: Way, evidence: Tally) -> None:
    """A connection to a host that breaks in mid-transfer: the bytes arrive as they were, and hardly any are sent twice."""
    await survive(ssh_way, (Fault.RESET,), evidence)


@pytest.mark.fault("transfer-truncated")
async def test_an_early_end_is_no_end(ssh_way: Way, evidence: Tally) -> None:
    """A connection to a host that is closed in good order in mid-transfer is not taken for the end of the data."""
    await survive(ssh_way, (Fault.TRUNCATE,), evidence)


@pytest.mark.fault("transfer-flipped")
async def test_damage_is_noticed_by_the_encryption(ssh_way: Way, evidence: Tally) -> None:
    """A flipped bit, and bytes that vanish, break the connection to a host; nothing of them is taken in."""
    await survive(ssh_way, (Fault.FLIP, Fault.DROP), evidence)


@pytest.mark.s3
@pytest.mark.fault("transfer-cut")
async def test_a_bucket_is_gone_on_with(bucket_way: Way, evidence: Tally) -> None:
    """A connection to a bucket that breaks or is damaged costs at most a part upwards, and nothing downwards."""
    await survive(bucket_way, (Fault.RESET, Fault.TRUNCATE, Fault.FLIP), evidence)
