"""A whole installation to measure: OpenSSH host on loopback, embedded store in a scratch folder, a worker in a process of its own.

Rules for editing: what is measured runs as users run it (the worker is the real command); this module only builds and removes it.
"""

from __future__ import annotations

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
        for process in self.workers:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(30)
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

    def worker(self) -> subprocess.Popen[bytes]:
        """Start a worker and return once it takes jobs."""
        with (self.folder / f"worker{len(self.workers)}.log").open("ab") as log:
            process = subprocess.Popen([sys.executable, "-m", "remote_trainer", "worker"], stdout=log, stderr=log)
        self.workers.append(process)
        log_file = self.folder / f"worker{len(self.workers) - 1}.log"
        until = time.monotonic() + 20
        while b'"started"' not in log_file.read_bytes() and time.monotonic() < until:
            time.sleep(0.02)
        return process

    def app(self) -> App:
        """Open the installation, to be entered."""
        return App(config.load())


@contextlib.contextmanager
def timer() -> Iterator[list[float]]:
    """Yield a list that holds the seconds the block took once it is over."""
    took: list[float] = []
    began = time.perf_counter()
    yield took
    took.append(time.perf_counter() - began)
