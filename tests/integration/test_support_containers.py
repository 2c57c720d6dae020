"""A container host is a machine of its own: it can be cut off, killed and restarted, and keeps its address, key and disk."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from tests.support.containers import ContainerHost
from tests.support.patience import PATIENCE_S


def over_ssh(host: ContainerHost, command: str) -> str:
    full = [*host.ssh_command("-o", "ConnectTimeout=1"), command]
    return subprocess.run(full, capture_output=True, text=True, check=True, timeout=PATIENCE_S).stdout.strip()


def test_host_has_an_address_and_what_a_host_needs(container_host: ContainerHost) -> None:
    """Root logs in with the pinned key and finds rsync and Python."""
    assert over_ssh(container_host, "id -un; command -v rsync python3").split() == ["root", "/usr/bin/rsync", "/usr/bin/python3"]


def test_user_without_rights_can_log_in(start_container: Callable[..., ContainerHost]) -> None:
    """A host can be used by an ordinary user with a home."""
    assert over_ssh(start_container(user="trainer"), "id -un; pwd").split() == ["trainer", "/home/trainer"]


def test_bare_host_has_neither_rsync_nor_python(start_container: Callable[..., ContainerHost]) -> None:
    """A bare host has a shell and nothing else to rely on."""
    assert over_ssh(start_container(bare=True), "command -v rsync python3 || echo none") == "none"


def test_cut_host_is_silent_but_works_on(container_host: ContainerHost) -> None:
    """A host that is cut off answers nothing and refuses nothing, and its programs go on."""
    container_host.exec("sh", "-c", "setsid sleep 600 & echo $! > /pid")
    container_host.cut()
    assert not container_host.answers()
    assert container_host.exec("sh", "-c", "kill -0 $(cat /pid) && echo alive") == "alive"
    container_host.heal()
    assert over_ssh(container_host, "echo back") == "back"


def test_restarted_host_keeps_address_key_and_disk_but_no_program(container_host: ContainerHost) -> None:
    """After a restart the same host answers at the same address, with its files and without its processes."""
    container_host.exec("sh", "-c", "setsid sleep 600 & echo kept > /kept")
    container_host.restart()
    assert over_ssh(container_host, "cat /kept; pgrep -x sleep || echo none").split() == ["kept", "none"]


def test_killed_host_comes_back(container_host: ContainerHost) -> None:
    """A killed host answers nothing until it is started again."""
    container_host.kill()
    with pytest.raises(subprocess.CalledProcessError):
        over_ssh(container_host, "true")
    container_host.start()
    assert over_ssh(container_host, "echo back") == "back"
