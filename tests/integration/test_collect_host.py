"""Outputs of a real host: this machine's shell and an OpenSSH server, to a folder and to S3."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from remote_trainer.config import S3Settings
from remote_trainer.errors import HostUnreachable
from remote_trainer.host.client import SupervisedHost
from remote_trainer.model import JobId, Output, OutputKind
from remote_trainer.objects.local import LocalObjects
from remote_trainer.objects.open import open_objects
from remote_trainer.objects.s3 import PART
from remote_trainer.ports import DriverSettings, Objects
from remote_trainer.testing.netfault import Link
from remote_trainer.transport.command import CommandTransport
from remote_trainer.transport.ssh import SshTransport
from remote_trainer.worker.collect import Collector, newest_checkpoint, verify_manifest
from tests.support.s3 import S3Bucket
from tests.support.sshd import SshdServer

LABEL = "rt-test01-j1-a1"
OUTPUTS = (
    Output(name="checkpoints", kind=OutputKind.CHECKPOINT, glob="checkpoints/*", marker="done.json", keep=1),
    Output(name="lora", kind=OutputKind.FINAL, glob="*.safetensors"),
    Output(name="samples", kind=OutputKind.ARTIFACT, glob="samples/**"),
)


class OutputFolder:
    """The output folder of a job on a host that shares this machine's disk."""

    def __init__(self, root: Path) -> None:
        self.path = root / "j" / LABEL / "w" / "output"

    def write(self, path: str, data: bytes) -> None:
        target = self.path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "host root"


@pytest.fixture
def output(root: Path) -> OutputFolder:
    return OutputFolder(root)


@pytest.fixture
def link(sshd: SshdServer) -> Iterator[Link]:
    with Link(sshd.host, sshd.port) as link:
        yield link


@pytest.fixture(params=["here", "ssh"])
async def host(request: pytest.FixtureRequest, root: Path, tmp_path: Path) -> AsyncIterator[SupervisedHost]:
    """A host that was set up, on this machine and behind an OpenSSH server."""
    if request.param == "here":
        host = SupervisedHost(CommandTransport(), str(root))
    else:
        server: SshdServer = request.getfixturevalue("sshd")
        link: Link = request.getfixturevalue("link")
        settings = DriverSettings(state_dir=tmp_path, ssh_key=server.key_path)
        transport = SshTransport(f"{server.user}@127.0.0.1:{link.port}", settings, host_key=server.host_key_public)
        host = SupervisedHost(transport, str(root))
    await host.bootstrap("inc1")
    yield host
    await host.transport.close()


def collector(host: SupervisedHost, objects: Objects, tmp_path: Path) -> Collector:
    return Collector(
        host=host,
        objects=objects,
        outputs=OUTPUTS,
        tenant="t",
        job_id=JobId("j1"),
        attempt=1,
        label=LABEL,
        spool=tmp_path / "spool",
    )


async def test_a_training(host: SupervisedHost, output: OutputFolder, tmp_path: Path) -> None:
    """Checkpoints are kept while the job runs, odd names survive, links are not followed, and the end is verified."""
    objects = LocalObjects(tmp_path / "objects")
    collecting = collector(host, objects, tmp_path)
    assert (await collecting.collect()).artifacts == ()
    for step in (9, 10):
        output.write(f"checkpoints/step-{step}/weights", os.urandom(100_000))
        output.write(f"checkpoints/step-{step}/done.json", b"{}")
    for name in ("1.png", "with space & 'quotes' $HOME.png", "ünï.png", "-rf", "empty"):
        output.write(f"samples/{name}", name.encode() if name != "empty" else b"")
    (output.path / "samples/link.png").symlink_to("/etc/passwd")
    (output.path / "samples/folder").symlink_to("/etc")
    while not (found := (await collecting.collect()).checkpoint) or found.unit != "checkpoints/step-10":
        await asyncio.sleep(0.5)  # a file that has come of age sends no event
    output.write("lora.safetensors", b"at the very end")
    result = await collector(host, objects, tmp_path).collect(final=True)
    assert result.manifest and result.manifest.complete
    assert [artifact.path for artifact in result.artifacts] == [
        "checkpoints/step-10/done.json",
        "checkpoints/step-10/weights",
        "lora.safetensors",
        "samples/-rf",
        "samples/1.png",
        "samples/empty",
        "samples/with space & 'quotes' $HOME.png",
        "samples/ünï.png",
    ]
    await verify_manifest(objects, result.manifest)
    assert await newest_checkpoint(objects, "t", JobId("j1")) == result.checkpoint


async def test_to_a_bucket(host: SupervisedHost, output: OutputFolder, s3_bucket: S3Bucket, tmp_path: Path) -> None:
    """A large final file goes in parts from the host to a bucket and comes back as it was."""
    objects = open_objects(f"s3://{s3_bucket.bucket}/trainings", S3Settings.model_validate(s3_bucket.server.access))
    data = os.urandom(2 * PART + 12345)
    output.write("lora.safetensors", data)
    result = await collector(host, objects, tmp_path).collect(final=True)
    assert result.manifest and result.manifest.complete
    await verify_manifest(objects, result.manifest)
    [artifact] = result.artifacts
    await objects.get(artifact.key, tmp_path / "back", sha256=artifact.sha256)
    assert (tmp_path / "back").read_bytes() == data


@pytest.mark.fault("network-cut")
@pytest.mark.parametrize("host", ["ssh"], indirect=True)
async def test_the_way_breaks(host: SupervisedHost, output: OutputFolder, link: Link, tmp_path: Path) -> None:
    """A connection that breaks in the middle of a file costs what was under way: the next round goes on from the spool."""
    size = 20_000_000
    output.write("lora.safetensors", os.urandom(size))
    objects = LocalObjects(tmp_path / "objects")
    link.set(bytes_per_s=10e6)
    collecting = asyncio.create_task(collector(host, objects, tmp_path).collect(final=True))
    spool = tmp_path / "spool" / "j1" / "a1"
    while sum(path.stat().st_size for path in spool.glob("*")) < size // 4:
        assert not collecting.done(), await collecting
        await asyncio.sleep(0.01)
    link.reset()
    with pytest.raises(HostUnreachable):
        await collecting
    spooled = sum(path.stat().st_size for path in spool.glob("*"))
    assert size // 4 <= spooled < size
    link.heal()
    link.set()
    before = link.bytes_down
    result = await collector(host, objects, tmp_path).collect(final=True)
    assert link.bytes_down - before < size - spooled + 1_000_000
    assert result.manifest and result.manifest.complete
