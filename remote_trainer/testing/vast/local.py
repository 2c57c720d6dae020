"""Instances as OpenSSH servers on this machine: one each on 127.0.0.1, with its own port, host key, keys let in, and HOME.

They run as the current user and are no sandbox: what is run in them can reach whatever the user can. Everything an instance started
carries its folder in the environment, or works in it, or descends from its server: so it is found again and ended.

Rules for editing: nothing outside the folder is written, as ``remote_trainer.testing.openssh`` says.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import resource
import secrets
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from remote_trainer.errors import ConfigError
from remote_trainer.testing import openssh
from remote_trainer.testing.vast.machines import Address, Harm, Order

_MARK = "SIM_VAST_INSTANCE"
_PORTS = range(10_000, 32_768)  # below those the kernel gives to outgoing connections

#: Nothing started here dies of writing to a disk that is full (`Harm.FILL`): it is told.
_UNHURT = ("/bin/sh", "-c", 'trap "" XFSZ; exec "$@"', "sh")
_NVIDIA_SMI = """\
#!/bin/sh
# Stands in for the real one: this machine's GPUs are made up.
if [ -e {broken} ]; then
    echo 'Unable to determine the device handle for GPU0: Unknown Error' >&2
    exit 15
fi
cat {gpus}
"""


@dataclass
class _Host:
    order: Order
    folder: Path
    port: int
    server: subprocess.Popen[bytes] | None = None
    onstart: subprocess.Popen[bytes] | None = None
    environment: dict[str, str] = field(default_factory=dict)


class LocalMachines:
    """One OpenSSH server for each instance, all below one folder."""

    instant = False

    def __init__(self, folder: Path) -> None:
        if (reason := openssh.missing()) is not None:
            raise ConfigError(reason)
        self._folder = folder
        self._hosts: dict[int, _Host] = {}

    @property
    def user(self) -> str:
        """Return the only user who can log in."""
        return getpass.getuser()

    def start(self, order: Order) -> Address:
        host = self._hosts[order.instance] = _Host(order, self._folder / str(order.instance), _free_port())
        openssh.lay_out(host.folder)
        openssh.new_key(host.folder / "host_key")
        for name in ("tmp", "bin"):
            (host.folder / name).mkdir()
        home = host.folder / "home"
        for name, text in order.files.items():
            (home / name).write_text(text)
            (home / name).chmod(0o600)
        (host.folder / "gpus").write_text("".join(f"{line}\n" for line in order.gpus))
        fake = host.folder / "bin" / "nvidia-smi"
        quoted = {name: shlex.quote(str(host.folder / name)) for name in ("broken", "gpus")}
        fake.write_text(_NVIDIA_SMI.format(**quoted))
        fake.chmod(0o755)
        host.environment = {
            "HOME": str(home),
            "TMPDIR": str(host.folder / "tmp"),
            "PATH": f"{host.folder / 'bin'}:{os.environ.get('PATH', os.defpath)}",
            _MARK: str(host.folder),
        }
        self.let_in(order.instance, order.keys)
        return self.boot(order.instance)

    def boot(self, instance: int, *, moved: bool = False) -> Address:
        host = self._hosts[instance]
        if moved:
            host.port = _free_port()
        shutil.rmtree(host.folder / "tmp")
        (host.folder / "tmp").mkdir()
        self._listen(host)
        if host.order.onstart:
            script = host.folder / "home" / "onstart.sh"
            script.write_text(host.order.onstart)
            with (host.folder / "log").open("ab") as log:
                host.onstart = subprocess.Popen(
                    [*_UNHURT, "/bin/sh", str(script)],
                    cwd=host.folder / "home",
                    env={**host.order.env, **host.environment},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        return "127.0.0.1", host.port

    def halt(self, instance: int) -> None:
        host = self._hosts[instance]
        deadline = time.monotonic() + openssh.WITHIN_S
        while left := list(self._processes(host)):
            openssh.kill(left)
            if time.monotonic() > deadline:
                raise RuntimeError(f"processes of instance {instance} do not end: {left}")
            time.sleep(0.01)
        for child in (host.server, host.onstart):
            if child is not None:
                child.wait(openssh.WITHIN_S)
        host.server = host.onstart = None

    def remove(self, instance: int) -> None:
        if instance in self._hosts:
            self.halt(instance)
            shutil.rmtree(self._hosts.pop(instance).folder)

    def let_in(self, instance: int, keys: Sequence[str]) -> None:
        path = self._hosts[instance].folder / "authorized_keys"
        new = path.with_suffix(".new")
        new.write_text("".join(f"{key.strip()}\n" for key in keys))
        new.replace(path)

    def harm(self, instance: int, how: Harm) -> None:
        host = self._hosts[instance]
        match how:
            case Harm.DROP:
                if host.server is not None:
                    openssh.kill(openssh.sessions(host.server))
            case Harm.CUT:
                if host.server is not None:
                    openssh.silence(host.server)
                    host.server = None
            case Harm.HEAL:
                self._listen(host)
            case Harm.FILL:  # nothing can be appended to any file, by nobody who was or will be started here
                for pid in self._processes(host):
                    with contextlib.suppress(ProcessLookupError):
                        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, 0))
            case Harm.BREAK_GPU:
                (host.folder / "broken").touch()

    def programs(self, instance: int) -> list[int]:
        """Return the process ids of everything that runs in an instance."""
        return list(self._processes(self._hosts[instance])) if instance in self._hosts else []

    def log(self, instance: int) -> str:
        """Return what its server and its onstart script have written."""
        return (self._hosts[instance].folder / "log").read_text(errors="replace")

    def _listen(self, host: _Host) -> None:
        text = openssh.config(host.folder, host.port, host.environment)
        host.server = openssh.start(host.folder, host.port, text, before=_UNHURT)

    def _processes(self, host: _Host) -> Iterator[int]:
        mark, inside = f"{_MARK}={host.folder}", f"{host.folder}/"
        tree = openssh.tree(host.server.pid) if host.server is not None and host.server.poll() is None else set()
        for pid in openssh.pids():
            known = pid in tree or openssh.has(pid, mark)
            if (known or f"{_works_in(pid)}/".startswith(inside)) and not openssh.ended(pid):
                yield pid


def _works_in(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return ""


def _free_port() -> int:
    while True:
        port = secrets.choice(_PORTS)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
