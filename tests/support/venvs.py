"""Virtual environments of the servers that tests talk to.

The servers are other people's programs, one of them under the GPL: each lives in an environment of its own, runs as a separate
process, and is never imported or shipped.

Rules for editing: standard library only (runs before anything is installed); tests use what is ready and never install.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.environment import CACHE, ORIGINAL

_PINS = Path(__file__).parents[2] / ".ci" / "servers"
NAMES = tuple(sorted(path.stem for path in _PINS.glob("*.txt")))


def folder(name: str) -> Path:
    """Where the environment lies; the name changes with its pinned versions."""
    recipe = (_PINS / f"{name}.txt").read_bytes()
    return CACHE / "venvs" / f"{name}-{hashlib.sha256(recipe).hexdigest()[:12]}"


def program(name: str, command: str) -> str:
    """The path of a command in a server's environment."""
    return str(folder(name) / "bin" / command)


def missing(name: str) -> str | None:
    """Why the server cannot be started, or None."""
    return None if _is_ready(name) else f"{name} is not prepared (make servers)"


def prepare(name: str) -> None:
    """Make the environment unless it is there; a half-made one is made again."""
    target = folder(name)
    if _is_ready(name):
        return
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(target)], check=True, env=ORIGINAL)
    install = [str(target / "bin" / "pip"), "install", "-q", "--disable-pip-version-check", "-r", str(_PINS / f"{name}.txt")]
    subprocess.run(install, check=True, env=ORIGINAL)
    (target / "ready").touch()


def _is_ready(name: str) -> bool:
    """Made to the end, and with a Python that is still there."""
    return (folder(name) / "ready").exists() and Path(program(name, "python")).exists()
