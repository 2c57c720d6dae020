"""The environment tests run in, and the one they were started from.

Rules for editing: import this first and import nothing of ours here, so that `scrub()` runs before a library reads the environment.
What prepares real parts (pip, debootstrap) needs `ORIGINAL`; everything a test starts gets the scrubbed one.
"""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

ORIGINAL: dict[str, str] = dict(os.environ)


def _cache_root() -> Path:
    chosen = ORIGINAL.get("REMOTE_TRAINER_TEST_CACHE")
    if chosen:
        return Path(chosen)
    return Path(ORIGINAL.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "remote-trainer-tests"


CACHE = _cache_root()
"""Where prepared parts stay between runs: virtual environments of test servers, the container image, the engine's data."""

_KEPT = {
    "PATH",
    "LANG",
    "LC_ALL",
    "TERM",
    "TMPDIR",
    "USER",
    "LOGNAME",
    "SHELL",
    "COLUMNS",
    "CI",
    "VIRTUAL_ENV",
    "PYTHONPATH",
    "RT_SEED",
    "RT_ROUNDS",
}
_KEPT_PREFIXES = ("REMOTE_TRAINER_TEST_", "REMOTE_TRAINER_REQUIRE_", "PYTEST_", "COVERAGE_")


def scrub() -> Path:
    """Drop what could make a test depend on who runs it, and give it an empty home; returns that home."""
    home = Path(tempfile.mkdtemp(prefix="rt-home-"))
    _hear_signals()
    for name in list(os.environ):
        if name not in _KEPT and not name.startswith(_KEPT_PREFIXES):
            del os.environ[name]
    os.environ.update(
        HOME=str(home),
        # Pytest's processes side by side begin in this environment, and look for the same parts.
        REMOTE_TRAINER_TEST_CACHE=str(CACHE),
        TZ="UTC",
        NO_COLOR="1",
        HF_HUB_OFFLINE="1",
        # Idle OpenMP threads that spin would take the core away from the other half of a test.
        OMP_WAIT_POLICY="PASSIVE",
        # Real credentials must be out of reach even if a test forgets to pass its own.
        AWS_EC2_METADATA_DISABLED="true",
    )
    return home


def _hear_signals() -> None:
    """Undo what nohup and a shell's background leave: every program that is started would ignore these, too."""
    for number, usual in (
        (signal.SIGHUP, signal.SIG_DFL),
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGQUIT, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)
