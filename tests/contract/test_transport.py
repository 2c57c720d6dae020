"""Both transports keep to the contract: this machine, a command prefix, and a real OpenSSH server with and without rsync."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from remote_trainer.ports import DriverSettings, Transport
from remote_trainer.testing.transport_contract import TransportContract
from remote_trainer.transport.command import CommandTransport
from remote_trainer.transport.ssh import SshTransport
from tests.support.containers import ContainerHost, Fleet
from tests.support.sshd import SshdServer


def ssh_transport(server: SshdServer | ContainerHost, folder: Path) -> SshTransport:
    settings = DriverSettings(state_dir=folder, ssh_key=server.key_path)
    return SshTransport(f"{server.user}@{server.host}:{server.port}", settings, host_key=server.host_key_public)


def entered(container: ContainerHost) -> CommandTransport:
    """Through the engine, without any SSH."""
    return CommandTransport(("docker", "-H", container.docker.address, "exec", "-i", container.name))


_NEEDED = (
    "sh", "cat", "echo", "head", "ln", "mkdir", "mkfifo", "mv", "printf", "rm", "setsid", "sleep", "tail", "tee", "test", "touch",
    "true", "wc",
)  # fmt: skip


class HereContract(TransportContract):
    """Hosts that share this machine's disk."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> str:
        path = tmp_path / "on the host"
        path.mkdir()
        return str(path)


class TestThisMachine(HereContract):
    """The empty prefix."""

    @pytest.fixture
    def transport(self) -> Transport:
        return CommandTransport()


class TestPrefix(HereContract):
    """A prefix that runs what follows it, as `docker exec -i NAME` does."""

    @pytest.fixture
    def transport(self) -> Transport:
        return CommandTransport(("env", "-C", "/"), address="env")


class TestSsh(HereContract):
    """A server with the stock limit of ten sessions per connection."""

    @pytest.fixture
    async def transport(self, start_sshd: Callable[..., SshdServer], tmp_path: Path) -> AsyncIterator[Transport]:  # type: ignore[override]
        transport = ssh_transport(start_sshd(max_sessions=10, max_startups=10), tmp_path)
        yield transport
        await transport.close()


class TestSshWithoutRsync(HereContract):
    """A server whose sessions find no rsync."""

    @pytest.fixture
    async def transport(self, start_sshd: Callable[..., SshdServer], tmp_path: Path) -> AsyncIterator[Transport]:  # type: ignore[override]
        programs = tmp_path / "bin"
        programs.mkdir()
        for name in _NEEDED:
            (programs / name).symlink_to(Path("/usr/bin") / name)
        transport = ssh_transport(start_sshd(environment={"PATH": str(programs)}), tmp_path)
        yield transport
        await transport.close()


@pytest.fixture(scope="module")
def bare_host(container_fleet: Fleet) -> ContainerHost:
    return container_fleet.launch(bare=True)


class TestContainer(TransportContract):
    """A host with an address, a file system and nothing installed."""

    @pytest.fixture
    async def transport(self, bare_host: ContainerHost, tmp_path: Path) -> AsyncIterator[Transport]:  # type: ignore[override]
        transport = ssh_transport(bare_host, tmp_path)
        yield transport
        await transport.close()

    @pytest.fixture
    async def folder(self, transport: Transport) -> str:  # type: ignore[override]
        return (await transport.run(["mktemp", "-d"])).stdout.decode().strip()


class TestDockerExec(TransportContract):
    """A container entered through its engine, without any SSH."""

    @pytest.fixture
    async def transport(self, shared_container: ContainerHost) -> Transport:  # type: ignore[override]
        return entered(shared_container)

    @pytest.fixture
    async def folder(self, transport: Transport) -> str:  # type: ignore[override]
        return (await transport.run(["mktemp", "-d"])).stdout.decode().strip()
