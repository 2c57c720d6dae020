"""Everything at once, by seed: the storm of `make storm`, small enough for every run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.rig import heavy

ROOT = Path(__file__).parents[2]


@pytest.mark.containers
@pytest.mark.timeout(300)
def test_nothing_is_lost_doubled_stuck_or_left_behind() -> None:
    """Twenty jobs, three workers killed six times, and all else that goes wrong meanwhile: 20 DONE, each byte and artifact in its place."""
    _storm("sqlite")


@heavy
@pytest.mark.containers
@pytest.mark.mongo
@pytest.mark.timeout(300)
def test_the_same_on_the_mongo_protocol() -> None:
    """The same, with the database server killed and started again."""
    _storm("mongo")


def _storm(store: str) -> None:
    command = [sys.executable, "-m", "tests.storm", "--jobs", "20", "--kills", "6", "--store", store]
    seed = os.environ.get("RT_SEED", "7")
    done = subprocess.run([*command, "--seed", seed], cwd=ROOT, capture_output=True, text=True, timeout=290, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "   20  jobs DONE" in done.stdout
