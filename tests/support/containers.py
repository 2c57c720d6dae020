"""Machines of the tests' own: containers with an address, an SSH server, and a plug that can be pulled.

Rules for editing: one network per run; what cuts a container off lives in its own network namespace and goes with it, so that
nothing has to be undone on this machine.
"""

from __future__ import annotations

import contextlib
import itertools
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import engine as engines
from tests.support import image, network
from tests.support.engine import Engine
from tests.support.patience import PATIENCE_S
from tests.support.sshtarget import SshTarget, make_keys

_TAG = f"remote-trainer-test-host:{image.KEY}"

# Runs at each start of a container, hence idempotent. BARE is a host on which nobody has installed anything.
_BOOT = """\
set -eu
mkdir -p /run/sshd
for home in /root /home/trainer; do
    mkdir -p "$home/.ssh"
    printf '%s\\n' "$AUTHORIZED" > "$home/.ssh/authorized_keys"
done
(umask 077; printf '%s\\n' "$HOST_KEY" > /etc/ssh/host_key)
[ -z "${BARE:-}" ] || rm -f /usr/bin/rsync /usr/bin/python3*
unset AUTHORIZED HOST_KEY BARE
exec /usr/sbin/sshd -D -e -h /etc/ssh/host_key -o StrictModes=no -o UsePAM=no -o MaxStartups=200 -o MaxSessions=100
"""


def missing() -> str | None:
    """Why no container can be started here, or None."""
    return engines.missing() or image.missing()


@dataclass
class ContainerHost(SshTarget):
    """One container. It keeps its address, its key and its disk until `remove()`."""

    docker: Engine
    name: str

    def exec(self, *command: str) -> str:
        """Run a command inside, without SSH and without the network; returns what it printed."""
        return self.docker("exec", self.name, *command)

    def cut(self) -> None:
        """Drop every packet in both directions, silently; what runs inside goes on. A restart heals."""
        for rule in _RULES:
            self._iptables("-I", *rule)

    def heal(self) -> None:
        """Let packets through again."""
        for rule in _RULES:
            self._iptables("-D", *rule)

    def restart(self) -> None:
        """Everything inside is killed and the host comes back with the same disk."""
        self.docker("restart", "--time", "0", self.name)
        self.wait_until_ready()

    def kill(self) -> None:
        """The host is off: every process dies at once. `start()` brings it back."""
        self.docker("kill", self.name)

    def start(self) -> None:
        """Boot after `kill()`."""
        self.docker("start", self.name)
        self.wait_until_ready()

    def remove(self) -> None:
        """The host is gone for good, with its disk."""
        self.docker("rm", "--force", "--volumes", self.name, check=False)

    def wait_until_ready(self) -> None:
        """Until its SSH server greets."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.answers():
            if time.monotonic() > deadline:
                raise RuntimeError(f"container {self.name} was not ready:\n{self.docker('logs', self.name, check=False)}")
            time.sleep(0.02)

    def _iptables(self, *arguments: str) -> None:
        pid = self.docker("inspect", "--format", "{{.State.Pid}}", self.name)
        iptables = shutil.which("iptables", path="/usr/sbin:/sbin:/usr/bin") or "iptables"
        subprocess.run(
            ["nsenter", "--target", pid, "--net", iptables, "-w", *arguments], check=True, capture_output=True, timeout=PATIENCE_S
        )


_RULES = (("INPUT", "!", "-i", "lo", "-j", "DROP"), ("OUTPUT", "!", "-o", "lo", "-j", "DROP"))


@dataclass
class Fleet:
    """The containers of one run, in a network of their own."""

    docker: Engine
    network: str
    prefix: str
    folder: Path
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(10))

    def launch(self, *, user: str = "root", bare: bool = False, options: tuple[str, ...] = ()) -> ContainerHost:
        """A new host, ready to be logged in to as root or trainer. `bare`: no rsync, no Python. `options` go to `docker run`."""
        number = next(self._numbers)
        folder = self.folder / str(number)
        make_keys(folder)
        host = ContainerHost(folder, f"{self.prefix}.{number}", 22, user, self.docker, f"{self.network}-{number}")
        secrets_in = {"AUTHORIZED": (folder / "authorized_keys").read_text(), "HOST_KEY": (folder / "host_key").read_text()}
        variables = {**secrets_in, "BARE": "1" if bare else ""}
        environment = itertools.chain.from_iterable(("--env", f"{key}={value}") for key, value in variables.items())
        where = ("--name", host.name, "--hostname", f"host{number}", "--network", self.network, "--ip", host.host)
        self.docker("run", "--detach", *where, *environment, *options, _TAG, "/bin/sh", "-c", _BOOT)
        try:
            host.wait_until_ready()
        except BaseException:
            host.remove()
            raise
        return host


@contextlib.contextmanager
def fleet(folder: Path) -> Iterator[Fleet]:
    """An engine, the image, and an empty network; all containers are gone afterwards."""
    with engines.engine() as docker:
        with engines.alone():
            if not docker("images", "--quiet", _TAG):
                with image.ARCHIVE.open("rb") as archive:
                    docker("import", "-", _TAG, stdin=archive)
        name, prefix = _make_network(docker)
        network.allow(f"{prefix}.0/24")
        try:
            yield Fleet(docker, name, prefix, folder)
        finally:
            for container in docker("ps", "--all", "--quiet", "--filter", f"network={name}").split():
                docker("rm", "--force", "--volumes", container)
            docker("network", "rm", name)


def _make_network(docker: Engine) -> tuple[str, str]:
    """A subnet nobody uses: addresses can only be fixed, and so survive a restart, where the subnet was chosen by us."""
    for _ in range(20):
        name, prefix = f"rt-{secrets.token_hex(4)}", f"10.213.{secrets.randbelow(256)}"
        with contextlib.suppress(RuntimeError):
            docker("network", "create", "--subnet", f"{prefix}.0/24", name)
            return name, prefix
    raise RuntimeError("no free subnet for the tests' containers")
