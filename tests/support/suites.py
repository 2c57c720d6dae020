"""Which suites this machine can run: a suite is a marker whose tests need one real part.

A missing part leaves the whole suite out, for one reason that is told at the end of the run. With REMOTE_TRAINER_REQUIRE_ALL=1, as
in continuous integration, a suite that was left out fails the run.

Rules for editing: a check costs milliseconds and starts nothing; it is made only when the suite has tests in this run.
"""

from __future__ import annotations

import functools
import importlib.util
import shutil
from collections.abc import Callable, Iterable

from tests.support import containers, mongo, s3, sshd, venvs
from tests.support.environment import ORIGINAL

REQUIRE_ALL = ORIGINAL.get("REMOTE_TRAINER_REQUIRE_ALL") == "1"

_FIXTURES = {
    "sshd": ("sshd", "start_sshd"),
    "containers": ("container_fleet",),
    "mongo": ("mongo_uri", "mongo_server", "own_mongo"),
    "s3": ("s3_server", "start_s3"),
}


def _lacking_programs(*names: str) -> str | None:
    absent = [name for name in names if shutil.which(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


def _lacking_modules(*names: str) -> str | None:
    absent = [name for name in names if importlib.util.find_spec(name) is None]
    return f"not installed in this Python: {', '.join(absent)}" if absent else None


CHECKS: dict[str, Callable[[], str | None]] = {
    "sshd": sshd.missing,
    "containers": containers.missing,
    "mongo": mongo.missing,
    "s3": s3.missing,
    "vastai": lambda: venvs.missing("vastai"),
    "train": lambda: _lacking_modules("torch", "diffusers", "peft", "transformers"),
    "shells": lambda: _lacking_programs("dash", "bash", "busybox"),
    "systemd": lambda: _lacking_programs("systemd-analyze"),
    "node": lambda: _lacking_programs("node"),
}
"""Per marker: why its part is missing, or None."""


@functools.cache
def missing(suite: str) -> str | None:
    """Why the suite is left out, or None; asked once."""
    return CHECKS[suite]()


def needed_by(fixtures: Iterable[str]) -> set[str]:
    """The suites that a test belongs to by the fixtures it asks for, so that no marker can be forgotten."""
    wanted = set(fixtures)
    return {suite for suite, names in _FIXTURES.items() if wanted.intersection(names)}


def not_asked_for() -> str | None:
    """Why tests that spend money at a real provider do not run, or None. They are nobody's duty: nothing is missing without them."""
    if ORIGINAL.get("REMOTE_TRAINER_TEST_LIVE") != "1":
        return "spends money: only with REMOTE_TRAINER_TEST_LIVE=1"
    return None if ORIGINAL.get("VAST_API_KEY") else "VAST_API_KEY is not set"
