"""The drivers of borrowed machines keep to the contract; and what each can get wrong alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from remote_trainer.drivers.local import LocalDriver
from remote_trainer.drivers.ssh import SshDriver
from remote_trainer.errors import ConfigError, Permanent, Transient
from remote_trainer.ports import DriverSettings
from remote_trainer.testing.driver_contract import BorrowedDriverContract
from tests.support.sshd import SshdServer


class TestLocal(BorrowedDriverContract):
    """This machine."""

    kind = LocalDriver

    @pytest.fixture
    def options(self) -> Mapping[str, Any]:
        return {}

    @pytest.fixture
    def settings(self, tmp_path: Path) -> DriverSettings:
        return DriverSettings(state_dir=tmp_path)

    async def test_the_root_is_below_the_state_folder(self, driver: LocalDriver, tmp_path: Path) -> None:
        """The jobs' files lie in the product's own folder, or where the option says."""
        assert (await self.instance(driver)).address["root"] == str(tmp_path / "local")

    async def test_a_folder_that_cannot_be_written(self, settings: DriverSettings) -> None:
        """A root below a folder that cannot be written is told by the check."""
        with pytest.raises(Permanent, match="/proc/sys"):
            await LocalDriver({"root": "/proc/sys/x"}, settings).check()


class TestSsh(BorrowedDriverContract):
    """A real OpenSSH server."""

    kind = SshDriver

    @pytest.fixture
    def options(self, sshd: SshdServer) -> Mapping[str, Any]:
        return {"host": f"{sshd.user}@{sshd.host}:{sshd.port}", "identity": str(sshd.key_path)}

    @pytest.fixture
    def settings(self, tmp_path: Path) -> DriverSettings:
        return DriverSettings(state_dir=tmp_path)

    async def test_the_key_seen_first_is_the_one_that_counts(
        self, own_sshd: SshdServer, options: Mapping[str, Any], settings: DriverSettings
    ) -> None:
        """An instance with a stored host key leads to that key only, also for a driver that was never told one."""
        given = {**options, "host": f"{own_sshd.user}@{own_sshd.host}:{own_sshd.port}", "identity": str(own_sshd.key_path)}
        first = SshDriver(given, settings)
        made = await self.instance(first)
        transport = await first.connect(made)
        await transport.run(["true"])
        stored = replace(made, host_key=transport.host_key)
        assert await first.connect(stored) is transport
        await first.close()
        own_sshd.change_host_key()
        with pytest.raises(Permanent, match="host key"):
            await SshDriver({**given, "host_key": stored.host_key}, settings).check()

    async def test_check_tells_a_host_that_is_down_from_a_wrong_one(
        self, own_sshd: SshdServer, options: Mapping[str, Any], settings: DriverSettings
    ) -> None:
        """A host that is down may come back: Transient, in the transport's words."""
        own_sshd.stop()
        driver = SshDriver({**options, "host": f"{own_sshd.user}@{own_sshd.host}:{own_sshd.port}"}, settings)
        with pytest.raises(Transient, match="connection refused"):
            await driver.check()
        await driver.close()

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"host": "-oProxyCommand=x"}, "not an SSH host"),
            ({"host": "a b"}, "not an SSH host"),
            ({"host": "box:99999"}, "not an SSH host"),
            ({"host_key": "nonsense"}, "public key line"),
            ({"identity": "/no/such/key"}, "/no/such/key"),
        ],
    )
    async def test_options_that_mean_nothing(
        self, options: Mapping[str, Any], settings: DriverSettings, change: Mapping[str, str], words: str
    ) -> None:
        """Hosts, keys and key files that cannot be meant raise ConfigError before anything is opened."""
        with pytest.raises(ConfigError, match=words):
            SshDriver({**options, **change}, settings)

    async def test_the_host_is_required(self, settings: DriverSettings) -> None:
        """Without a host the error names the option."""
        with pytest.raises(ConfigError, match="host"):
            SshDriver({}, settings)
