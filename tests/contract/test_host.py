"""The supervised host keeps to the contract on this machine, behind a real OpenSSH server, and in a container."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from remote_trainer.ports import Transport
from remote_trainer.testing.host_contract import HostContract
from remote_trainer.transport.command import CommandTransport
from tests.contract.test_transport import entered, ssh_transport
from tests.support.containers import ContainerHost
from tests.support.sshd import SshdServer


class TestThisMachine(HostContract):
    """The local shell."""

    @pytest.fixture
    def transport(self) -> Transport:
        return CommandTransport()

    @pytest.fixture
    def root(self, tmp_path: Path) -> str:
        return str(tmp_path / "root with 'quotes'")


class TestSsh(HostContract):
    """OpenSSH on this machine; the folder is named from the home."""

    @pytest.fixture
    async def transport(self, own_sshd: SshdServer, tmp_path: Path) -> AsyncIterator[Transport]:  # type: ignore[override]
        transport = ssh_transport(own_sshd, tmp_path)
        yield transport
        await transport.close()

    @pytest.fixture
    def root(self, own_sshd: SshdServer) -> str:
        return f"{own_sshd.home}/rt"


class InContainerContract(HostContract):
    """A container: overlayfs, another process tree."""

    @pytest.fixture
    def root(self) -> str:
        return f"/root/rt-{secrets.token_hex(4)}"


class TestContainer(InContainerContract):
    """Behind its SSH server."""

    @pytest.fixture
    async def transport(self, shared_container: ContainerHost, tmp_path: Path) -> AsyncIterator[Transport]:  # type: ignore[override]
        transport = ssh_transport(shared_container, tmp_path)
        yield transport
        await transport.close()


class TestDockerExec(InContainerContract):
    """Entered through its engine, without any SSH."""

    @pytest.fixture
    def transport(self, shared_container: ContainerHost) -> Transport:  # type: ignore[override]
        return entered(shared_container)
