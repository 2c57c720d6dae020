"""An OpenSSH server on 127.0.0.1, run as the current user, and the processes of this machine that belong to it.

Its sessions get the home and the variables that are given, and nothing of the user's own.

Rules for editing: needs no root; nothing outside the server's folder is written, but ``/run/sshd``, which sshd demands of root. Every
function for processes takes one that has gone meanwhile for one that is not there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

WITHIN_S = 300.0  # a server that is this slow to start or to end hangs

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
MaxStartups {max_startups}
MaxSessions {max_sessions}
Subsystem sftp internal-sftp -d {folder}/home
SetEnv {environment}
"""


def missing() -> str | None:
    """Return why no server can be started here, or None."""
    if not Path(program()).exists():
        return "OpenSSH's server is not installed (Debian: openssh-server)"
    return None if shutil.which("ssh-keygen") else "ssh-keygen is not installed (Debian: openssh-client)"


def program() -> str:
    """Return sshd's absolute path: it starts itself again by that name, and sbin is not on every user's PATH."""
    return shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin") or "/usr/sbin/sshd"


def lay_out(folder: Path) -> None:
    """Make a server's folder, with its home."""
    (folder / "home").mkdir(parents=True)
    # sshd enters the account's real home; a shell that starts in HOME is what everybody takes for granted.
    (folder / "home" / ".bashrc").write_text('cd "$HOME"\n')


def new_key(path: Path, comment: str = "") -> None:
    """Make a pair of keys, `path` and `path.pub`, in place of what is there."""
    for old in (path, path.with_suffix(".pub")):
        old.unlink(missing_ok=True)
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)]
    subprocess.run(command, check=True, timeout=WITHIN_S)


def config(folder: Path, port: int, environment: Mapping[str, str], *, max_startups: int = 200, max_sessions: int = 100) -> str:
    """Return a server's configuration; ``host_key``, ``authorized_keys`` and ``home`` lie in its folder."""
    return _CONFIG.format(
        port=port,
        folder=folder,
        environment=" ".join(f'"{name}={value}"' for name, value in environment.items()),
        max_startups=max_startups,
        max_sessions=max_sessions,
    )


def start(folder: Path, port: int, text: str, *, before: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    """Start a server with that configuration; return once it greets. ``before`` is put in front of the command; it writes to ``log``."""
    (folder / "sshd_config").write_text(text)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with (folder / "log").open("ab") as log:
        command = [*before, program(), "-D", "-e", "-f", str(folder / "sshd_config")]
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + WITHIN_S
    while not greets("127.0.0.1", port):
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"sshd in {folder} did not start:\n{(folder / 'log').read_text(errors='replace')}")
        time.sleep(0.005)
    return server


def greets(host: str, port: int) -> bool:
    """Return whether an SSH server greets at an address."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), 2) as connection:
        return connection.recv(4) == b"SSH-"
    return False


def silence(server: subprocess.Popen[bytes]) -> None:
    """Stop listening and end every connection; what users detached goes on."""
    doomed = sessions(server)
    server.kill()  # first, or it could fork once more
    server.wait(WITHIN_S)
    kill(doomed)


def sessions(server: subprocess.Popen[bytes]) -> list[int]:
    """Return the server's processes that hold a connection; users' programs are not among them."""
    return [pid for pid in tree(server.pid) - {server.pid} if read(pid, "comm").startswith(b"sshd")]


# -- processes


def pids() -> list[int]:
    """Return every process but this one."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]


def tree(root: int) -> set[int]:
    """Return a process and all that descend from it."""
    parents = {pid: _parent(pid) for pid in pids()}
    found, grew = {root}, True
    while grew:
        children = {pid for pid, parent in parents.items() if parent in found} - found
        found |= children
        grew = bool(children)
    return found


def has(pid: int, variable: str) -> bool:
    """Return whether a process has `NAME=value` in its environment."""
    return variable.encode() in read(pid, "environ").split(b"\0")


def ended(pid: int) -> bool:
    """Return whether a process is gone, or only waits to be noticed."""
    stat = _stat(pid)
    return not stat or stat[0] in (b"Z", b"X")


def kill(doomed: Iterable[int]) -> None:
    """End processes at once."""
    for pid in doomed:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def read(pid: int, name: str) -> bytes:
    """Return a file of /proc, empty where the process has gone or is not ours."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _stat(pid: int) -> list[bytes]:
    return read(pid, "stat").rpartition(b")")[2].split()


def _parent(pid: int) -> int:
    stat = _stat(pid)
    return int(stat[1]) if stat else 0
