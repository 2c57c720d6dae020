"""A Docker engine for the tests: the machine's own where one answers, else one started here and stopped by whoever leaves last.

`python -m tests.support.engine` stops an engine that a killed run left behind.

Rules for editing: several test runs share the engine, so it is counted by file locks, which the kernel gives back when a run dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tests.support.environment import CACHE, ORIGINAL
from tests.support.patience import PATIENCE_S

_RUN = Path("/run/remote-trainer-tests")  # short: the engine's sockets below it may have 108 bytes at most
_OWN = f"unix://{_RUN}/docker.sock"
_SYSTEM = "unix:///var/run/docker.sock"


def missing() -> str | None:
    """Why no engine can be had, or None."""
    if os.geteuid() != 0:
        return "needs root, to cut containers off from the network"
    absent = [name for name in ("docker", "nsenter", "iptables") if _program(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    if _program("dockerd") is None and not _answers(_SYSTEM):
        return "no Docker engine answers and none is installed"
    return None


class Engine:
    """The `docker` command line against one engine."""

    def __init__(self, address: str) -> None:
        self.address = address

    def __call__(self, *arguments: str, stdin: IO[bytes] | None = None, check: bool = True) -> str:
        """Run a docker command and return what it printed; a failure says what docker said."""
        command = ["docker", "-H", self.address, *arguments]
        done = subprocess.run(
            command, stdin=stdin or subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        if check and done.returncode:
            raise RuntimeError(f"docker {arguments[0]} failed: {done.stderr.strip()}")
        return done.stdout.strip()


@contextlib.contextmanager
def engine() -> Iterator[Engine]:
    """An engine for as long as the block lasts."""
    if _answers(_SYSTEM):
        yield Engine(_SYSTEM)
        return
    _RUN.mkdir(mode=0o700, exist_ok=True)
    with (_RUN / "users.lock").open("w") as users:
        with alone():
            if not _answers(_OWN):
                _start()
            fcntl.flock(users, fcntl.LOCK_SH)
        try:
            yield Engine(_OWN)
        finally:
            _stop_if_unused(users)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """What runs that share an engine must do one after the other."""
    _RUN.mkdir(mode=0o700, exist_ok=True)
    with (_RUN / "change.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _stop_if_unused(users: IO[str]) -> None:
    """Whoever gets the lock for itself alone was the last."""
    with alone(), contextlib.suppress(BlockingIOError):
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _stop()


def _start() -> None:
    """Its own bridge-less engine: containers get networks of their own, and a second engine is not disturbed."""
    data = CACHE / "docker"
    data.mkdir(parents=True, exist_ok=True)
    program = _program("dockerd")
    assert program is not None
    places = ["--data-root", str(data), "--exec-root", str(_RUN / "exec"), "--pidfile", str(_RUN / "dockerd.pid"), "-H", _OWN]
    environment = {**ORIGINAL, "PATH": ORIGINAL.get("PATH", "") + ":/usr/sbin:/sbin"}
    with (_RUN / "dockerd.log").open("wb") as log:
        # Forked away: it serves other runs after this one has ended.
        command = ["setsid", "--fork", program, *places, "--bridge", "none"]
        subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True, timeout=PATIENCE_S)
    deadline = time.monotonic() + PATIENCE_S
    while not _answers(_OWN):
        if time.monotonic() > deadline:
            raise RuntimeError(f"the Docker engine did not start:\n{(_RUN / 'dockerd.log').read_text()[-4000:]}")
        time.sleep(0.1)
    # What a killed run left behind.
    docker = Engine(_OWN)
    docker("container", "prune", "--force")
    docker("network", "prune", "--force")


def _stop() -> None:
    pid_file = _RUN / "dockerd.pid"
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        os.kill(int(pid_file.read_text()), 15)
        deadline = time.monotonic() + PATIENCE_S
        while pid_file.exists() and time.monotonic() < deadline:
            time.sleep(0.05)


def _answers(address: str) -> bool:
    if not Path(address.removeprefix("unix://")).exists():
        return False
    command = ["docker", "-H", address, "version", "--format", "{{.Server.Version}}"]
    return subprocess.run(command, capture_output=True, timeout=PATIENCE_S, check=False).returncode == 0


def _program(name: str) -> str | None:
    return shutil.which(name, path=ORIGINAL.get("PATH", "") + ":/usr/sbin:/sbin")


if __name__ == "__main__" and _RUN.exists():
    # A run that was killed could not do it itself.
    with (_RUN / "users.lock").open("w") as lock:
        _stop_if_unused(lock)
