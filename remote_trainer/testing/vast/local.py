"""Instances as OpenSSH servers on this machine: one each on 127.0.0.1, with its own port, host key, keys let in, and HOME.

They run as the current user and are no sandbox: what is run in them can reach whatever the user can. Everything an instance started
carries its folder in the environment, or works in it, or descends from its server: so it is found again and ended.

Rules for editing: needs no root; nothing outside the folder is written, but ``/run/sshd``, which sshd demands of root.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import resource
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from remote_trainer.errors import ConfigError
from remote_trainer.testing.vast.machines import Address, Harm, Order

_WITHIN_S = 60.0  # a machine that is this slow to boot or to end hangs
_MARK = "SIM_VAST_INSTANCE"
_PORTS = range(10_000, 32_768)  # below those the kernel gives to outgoing connections

_CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
PidFile none
AuthorizedKeysFile {folder}/authorized_keys
AuthenticationMethods publickey
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
PrintMotd no
PrintLastLog no
MaxStartups 200
MaxSessions 100
Subsystem sftp internal-sftp -d {folder}/home
SetEnv {environment}
"""
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


def missing() -> str | None:
    """Return why no instance can be made here, or None."""
    if not Path(_sshd()).exists():
        return "OpenSSH's server is not installed (Debian: openssh-server)"
    return None if shutil.which("ssh-keygen") else "ssh-keygen is not installed (Debian: openssh-client)"


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
        if (reason := missing()) is not None:
            raise ConfigError(reason)
        self._folder = folder
        self._hosts: dict[int, _Host] = {}

    @property
    def user(self) -> str:
        """Return the only user who can log in."""
        return getpass.getuser()

    def start(self, order: Order) -> Address:
        host = self._hosts[order.instance] = _Host(order, self._folder / str(order.instance), _free_port())
        for name in ("home", "tmp", "bin"):
            (host.folder / name).mkdir(parents=True)
        generate = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(host.folder / "host_key")]
        subprocess.run(generate, check=True, timeout=_WITHIN_S)
        home = host.folder / "home"
        (home / ".bashrc").write_text('cd "$HOME"\n')  # sshd enters the account's real home
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
        deadline = time.monotonic() + _WITHIN_S
        while left := list(self._processes(host)):
            _kill(left)
            if time.monotonic() > deadline:
                raise RuntimeError(f"processes of instance {instance} do not end: {left}")
            time.sleep(0.01)
        for child in (host.server, host.onstart):
            if child is not None:
                child.wait(_WITHIN_S)
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
                _kill(_sessions(host))
            case Harm.CUT:
                self._silence(host)
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
        variables = " ".join(f'"{name}={value}"' for name, value in host.environment.items())
        config = host.folder / "sshd_config"
        config.write_text(_CONFIG.format(port=host.port, folder=host.folder, environment=variables))
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        with (host.folder / "log").open("ab") as log:
            command = [*_UNHURT, _sshd(), "-D", "-e", "-f", str(config)]
            host.server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + _WITHIN_S
        while not _greets(host.port):
            if host.server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"sshd of instance {host.order.instance} did not start:\n{self.log(host.order.instance)}")
            time.sleep(0.01)

    def _silence(self, host: _Host) -> None:
        if host.server is not None:
            doomed = _sessions(host)
            host.server.kill()  # first, or it could fork once more
            host.server.wait(_WITHIN_S)
            _kill(doomed)
            host.server = None

    def _processes(self, host: _Host) -> Iterator[int]:
        mark, inside = f"{_MARK}={host.folder}".encode(), f"{host.folder}/"
        tree = _tree(host.server.pid) if host.server is not None and host.server.poll() is None else set()
        for pid in _pids():
            known = pid in tree or mark in _read(pid, "environ").split(b"\0")
            if (known or f"{_works_in(pid)}/".startswith(inside)) and not _ended(pid):
                yield pid


def _sessions(host: _Host) -> list[int]:
    """Return the server's processes that hold a connection; users' programs are not among them."""
    if host.server is None:
        return []
    return [pid for pid in _tree(host.server.pid) - {host.server.pid} if _read(pid, "comm").startswith(b"sshd")]


def _tree(root: int) -> set[int]:
    parents = {pid: _parent(pid) for pid in _pids()}
    found, grew = {root}, True
    while grew:
        children = {pid for pid, parent in parents.items() if parent in found} - found
        found |= children
        grew = bool(children)
    return found


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]


def _stat(pid: int) -> list[bytes]:
    return _read(pid, "stat").rpartition(b")")[2].split()


def _parent(pid: int) -> int:
    stat = _stat(pid)
    return int(stat[1]) if stat else 0


def _ended(pid: int) -> bool:
    stat = _stat(pid)
    return not stat or stat[0] in (b"Z", b"X")


def _works_in(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return ""


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _kill(pids: Sequence[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _free_port() -> int:
    while True:
        port = secrets.choice(_PORTS)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def _greets(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 2) as connection:
        return connection.recv(4) == b"SSH-"
    return False


def _sshd() -> str:
    """Return its absolute path: sshd starts itself again by that name, and sbin is not on every user's PATH."""
    return shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin") or "/usr/sbin/sshd"
