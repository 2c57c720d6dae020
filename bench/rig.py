"""A whole installation to measure: OpenSSH host on loopback, embedded store in a scratch folder, a worker in a process of its own.

Rules for editing: what is measured runs as users run it (the worker is the real command); this module only builds and removes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from remote_trainer import config
from remote_trainer.service.app import App
from tests.support import sshd as servers
from tests.support.sshd import SshdServer
from tests.support.sshtarget import make_keys

_XDG = ("XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")


class Rig:
    """Use as a context manager. ``tool`` writes a tool; ``worker`` starts one; ``app`` opens the store."""

    def __init__(self, *, lease_s: float = 10.0, max_jobs: int = 64, max_sessions: int = 2000) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rt-bench-"))
        for name in _XDG:
            os.environ[name] = str(self.folder / name.lower())
        os.environ["REMOTE_TRAINER_TOOLS_PATH"] = str(self.folder / "tools")
        os.environ["REMOTE_TRAINER_LEASE_S"] = str(lease_s)
        os.environ["REMOTE_TRAINER_MAX_JOBS"] = str(max_jobs)
        self._max_sessions = max_sessions
        self._stack = contextlib.ExitStack()
        self.workers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Rig:
        self.sshd: SshdServer = self._stack.enter_context(
            servers.running(servers.prepare(self.folder / "sshd", max_sessions=self._max_sessions))
        )
        return self

    def __exit__(self, *exc: object) -> None:
        if exc[0] is not None:
            for log in self.folder.glob("worker*.log"):
                print(log.read_text()[-3000:], file=sys.stderr)  # why it did not get there
        for process in self.workers:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(60)
        self._stack.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def driver_options(self) -> dict[str, str]:
        """What the ssh driver needs to reach the host with its pinned key."""
        server = self.sshd
        return {
            "host": f"{server.user}@{server.host}:{server.port}",
            "identity": str(server.key_path),
            "host_key": server.host_key_public,
            "root": str(self.folder / "host"),
        }

    def tool(self, name: str, script: str, extra: str = "") -> str:
        """Write a tool of one step and return its reference."""
        folder = self.folder / "tools" / name / "1"
        folder.mkdir(parents=True)
        body = "".join(f"      {line}\n" for line in script.splitlines())
        (folder / "tool.yaml").write_text(
            f"name: {name}\nversion: 1\ndescription: a benchmark\nsteps:\n  - name: run\n    run: |\n{body}{extra}"
        )
        return f"{name}@1"

    def worker(self, *, wait: bool = True, machine: str = "") -> subprocess.Popen[bytes]:
        """Start a worker and return once it takes jobs, or at once; ``machine`` names another one that it believes to be on."""
        log_file = self.folder / f"worker{len(self.workers)}.log"
        with log_file.open("ab") as log:
            command = [*_on(machine), sys.executable, "-m", "remote_trainer", "worker"]
            process = subprocess.Popen(command, stdout=log, stderr=log)
        self.workers.append(process)
        until = time.monotonic() + 20
        while wait and b'"started"' not in log_file.read_bytes() and time.monotonic() < until:
            time.sleep(0.02)
        return process

    def app(self) -> App:
        """Open the installation, to be entered."""
        return App(config.load())


def _on(machine: str) -> list[str]:
    """The words in front of a command that let it run under another host name, as the same process."""
    if not machine:
        return []
    rights = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", "--uts", *rights, "sh", "-c", 'hostname "$0" && exec "$@"', machine]


class StandIn:
    """The hosts of standin.py in a process of their own. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self._keys = folder / "standin"

    def __enter__(self) -> StandIn:
        make_keys(self._keys)
        command = [sys.executable, "-m", "bench.standin", str(self._keys)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._port = int(self._read())
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    def driver_options(self, number: int) -> dict[str, str]:
        """What the ssh driver needs to reach one of 60,000 hosts."""
        return {
            "host": f"bench@127.1.{number // 250}.{number % 250 + 1}:{self._port}",
            "identity": str(self._keys / "client_key"),
            "host_key": " ".join((self._keys / "host_key.pub").read_text().split()[:2]),
            "root": "/standin",
        }

    def rate(self, lines_per_s: float) -> None:
        """Let every step write so often."""
        self._write(f"rate {lines_per_s}")

    def follows(self) -> tuple[int, int, int]:
        """Return how many steps are followed, how many follows were begun so far, how many execs there were."""
        self._write("follows")
        opened, begun, execs = self._read().split()
        return int(opened), int(begun), int(execs)

    def _write(self, line: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _read(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline()


class Usage:
    """What a process takes of the machine, by /proc."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")

    def cpu_s(self) -> float:
        """User and system time so far."""
        fields = (self._folder / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mb(self) -> float:
        """Resident, in MB (10⁶ bytes)."""
        status = (self._folder / "status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024 / 1e6

    async def percent(self, seconds: float) -> float:
        """Return the CPU of the next so many seconds, in per cent of one core."""
        before, began = self.cpu_s(), time.monotonic()
        await asyncio.sleep(seconds)
        return (self.cpu_s() - before) / (time.monotonic() - began) * 100


@contextlib.contextmanager
def timer() -> Iterator[list[float]]:
    """Yield a list that holds the seconds the block took once it is over."""
    took: list[float] = []
    began = time.perf_counter()
    yield took
    took.append(time.perf_counter() - began)
