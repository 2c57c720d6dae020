"""A real OpenSSH server on a loopback port, for the current user, that tests may stop, cut, re-key and restart.

Its sessions get an empty home of their own: a developer's `.bashrc` costs up to 90 ms per command and makes results personal.

Rules for editing: no root needed; nothing outside `folder` is written (but `/run/sshd`, which sshd itself demands of root); what
a session started is found again by a variable in its environment, so that no test leaves a process behind.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.process import free_port
from tests.support.sshtarget import SshTarget, make_keys, new_key

READY_WITHIN_S = 20
_MARK = "REMOTE_TRAINER_TEST_SSHD"

_CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
PidFile none
AuthorizedKeysFile {folder}/authorized_keys
AuthenticationMethods publickey
PermitRootLogin yes
StrictModes no
UsePAM no
PrintMotd no
PrintLastLog no
MaxStartups {max_startups}
MaxSessions {max_sessions}
Subsystem sftp internal-sftp -d {home}
SetEnv {environment}
"""


@dataclass
class SshdServer(SshTarget):
    """One server; `start()` it before use, `close()` it after."""

    max_sessions: int = 2000
    max_startups: int = 3000
    environment: Mapping[str, str] = field(default_factory=dict)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def home(self) -> Path:
        """HOME and working folder of every session."""
        return self.folder / "home"

    @property
    def log(self) -> str:
        """What the server has written so far."""
        return (self.folder / "log").read_text(errors="replace")

    def start(self) -> None:
        """Listen; returns once the server has sent its banner."""
        if self._process is not None:
            return
        (self.folder / "sshd_config").write_text(self._config())
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        command = [_sshd_program(), "-D", "-e", "-f", str(self.folder / "sshd_config")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._wait_until_ready(self._process)

    def stop(self) -> None:
        """Stop listening and end all connections; what their users detached goes on. `start()` uses the same port."""
        if self._process is None:
            return
        process, self._process = self._process, None
        _signal_tree(process.pid)
        process.wait(READY_WITHIN_S)

    def restart(self) -> None:
        """Stop, then start with the same key and port."""
        self.stop()
        self.start()

    def kill_sessions(self) -> int:
        """End every open connection as a crash would, and go on listening; returns how many sshd processes were killed."""
        assert self._process is not None, "the server is not running"
        return _signal_tree(self._process.pid, listener_too=False)

    def change_host_key(self) -> None:
        """Become another machine at the same address: a new host key, all connections closed."""
        running = self._process is not None
        self.stop()
        new_key(self.folder / "host_key")
        if running:
            self.start()

    def programs(self) -> list[int]:
        """Process ids of everything that sessions of this server started and that still runs."""
        wanted = f"{_MARK}={self.folder}".encode()
        return [pid for pid in _all_pids() if wanted in _read(f"/proc/{pid}/environ").split(b"\0")]

    def close(self) -> None:
        """Stop the server and whatever its sessions left behind."""
        self.stop()
        while left := self.programs():
            for pid in left:
                _kill(pid)
            time.sleep(0.01)

    def _config(self) -> str:
        variables = {"HOME": str(self.home), _MARK: str(self.folder), **self.environment}
        return _CONFIG.format(
            port=self.port,
            folder=self.folder,
            home=self.home,
            max_startups=self.max_startups,
            max_sessions=self.max_sessions,
            environment=" ".join(f'"{name}={value}"' for name, value in variables.items()),
        )

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise RuntimeError(f"sshd ended with {process.returncode}:\n{self.log}")
            if self.answers():
                return
            time.sleep(0.005)
        raise RuntimeError(f"sshd was not ready within {READY_WITHIN_S} s:\n{self.log}")


def prepare(
    folder: Path, *, max_sessions: int = 2000, max_startups: int = 3000, environment: Mapping[str, str] | None = None
) -> SshdServer:
    """Lay out a server's folder: keys, an empty home, a free port. `environment` is added to each session's."""
    make_keys(folder)
    (folder / "home").mkdir()
    # sshd enters the account's real home; a shell that starts in HOME is what a test would take for granted.
    (folder / "home" / ".bashrc").write_text('cd "$HOME"\n')
    return SshdServer(folder, "127.0.0.1", free_port(), getpass.getuser(), max_sessions, max_startups, environment or {})


@contextlib.contextmanager
def running(server: SshdServer) -> Iterator[SshdServer]:
    """Start the server, and leave nothing of it behind."""
    try:
        server.start()
        yield server
    finally:
        server.close()


def missing() -> str | None:
    """Why no server can be started here, or None."""
    if not Path(_sshd_program()).exists():
        return "OpenSSH's server is not installed (Debian: openssh-server)"
    absent = [name for name in ("ssh", "ssh-keygen", "rsync") if shutil.which(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


def _sshd_program() -> str:
    """Absolute, because sshd starts itself again by that name for each connection; sbin is not on every user's PATH."""
    return shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin") or "/usr/sbin/sshd"


def _signal_tree(listener: int, *, listener_too: bool = True) -> int:
    """Kill the listener's descendants that are sshd themselves; users' programs are not sshd's to take along."""
    parents = {pid: _parent(pid) for pid in _all_pids() if _read(f"/proc/{pid}/comm").strip() == b"sshd"}
    doomed, grew = {listener}, True
    while grew:
        children = {pid for pid, parent in parents.items() if parent in doomed} - doomed
        doomed |= children
        grew = bool(children)
    # The listener first, or it could fork once more.
    ordered = ([listener] if listener_too else []) + sorted(doomed - {listener})
    for pid in ordered:
        _kill(pid)
    return len(ordered)


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _parent(pid: int) -> int:
    stat = _read(f"/proc/{pid}/stat")
    return int(stat.rpartition(b")")[2].split()[1]) if stat else 0


def _read(path: str) -> bytes:
    """A file of /proc, empty where the process has gone or is not ours."""
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
