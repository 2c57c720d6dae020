"""The two programs as a user runs them: as processes, in a home of their own, with the embedded store.

Rules for editing: nothing of the product is imported; what a user cannot see is not looked at. A home ends everything started in it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.patience import PATIENCE_S


@dataclass(frozen=True, slots=True)
class Home:
    """An empty home folder and the commands run in it. ``run_training`` and ``remote_trainer`` wait for the end of the program."""

    path: Path

    def run_training(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
        return self._run("remote_trainer.cli.run", arguments, environment)

    def remote_trainer(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
        return self._run("remote_trainer.cli.main", arguments, environment)

    def document(self, *arguments: str) -> dict[str, Any]:
        """What a command of remote-trainer prints with --json, when it succeeds."""
        done = self.remote_trainer(*arguments, "--json")
        assert done.returncode == 0, (done.stdout, done.stderr)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def submit(self, *arguments: str) -> str:
        """Submit a job of the hello tool and return its id."""
        done = self.run_training("--tool", "hello@1", *arguments, "--detach")
        assert done.returncode == 0, done.stderr
        return done.stdout.decode().strip()

    def start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a program and return at once."""
        return subprocess.Popen(
            _command(module, arguments),
            cwd=self.path,
            env=self._environment({}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def _run(self, module: str, arguments: tuple[str, ...], more: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            _command(module, arguments),
            cwd=self.path,
            env=self._environment(more),
            stdin=subprocess.DEVNULL,  # no command may ever ask
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        return {**os.environ, "HOME": str(self.path), **more}


def _command(module: str, arguments: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-c", f"from {module} import main; main()", *arguments]


@contextlib.contextmanager
def installed(path: Path) -> Iterator[Home]:
    """A home; leaving ends the background worker and all jobs that were begun in it."""
    path.mkdir(parents=True)
    try:
        yield Home(path)
    finally:
        deadline = time.monotonic() + 10
        while (left := _processes_of(path)) and time.monotonic() < deadline:
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.02)


def _processes_of(home: Path) -> list[int]:
    """All processes whose environment names that home."""
    wanted = b"HOME=" + os.fsencode(home)
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
    return found


def read_until(process: subprocess.Popen[bytes], text: bytes) -> bytes:
    """What a program prints until some text has come."""
    assert process.stdout is not None
    seen = b""
    deadline = time.monotonic() + PATIENCE_S
    while text not in seen:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
            raise AssertionError(f"{text!r} did not come within {PATIENCE_S:g} s: {seen!r}")
        data = os.read(process.stdout.fileno(), 65536)
        assert data, (seen, process.stderr and process.stderr.read())
        seen += data
    return seen
