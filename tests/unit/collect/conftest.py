"""A host, an object store, and collectors between them, for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from remote_trainer.worker.collect import Collector
from tests.unit.collect.ground import CHECKPOINTS, JOB, LORA, SAMPLES, FlakyObjects, FolderHost


@pytest.fixture
def host(tmp_path: Path) -> FolderHost:
    (tmp_path / "host").mkdir()
    return FolderHost(tmp_path / "host")


@pytest.fixture
def objects(tmp_path: Path) -> Iterator[FlakyObjects]:
    found = FlakyObjects(tmp_path / "objects")
    yield found
    found.goes_on.set()


@pytest.fixture
def make(host: FolderHost, objects: FlakyObjects, tmp_path: Path) -> Callable[..., Collector]:
    def collector(**changes: Any) -> Collector:
        """A collector as a worker that was just started makes it."""
        known = {
            "host": host,
            "objects": objects,
            "outputs": (SAMPLES, LORA, CHECKPOINTS),
            "tenant": "t",
            "job_id": JOB,
            "attempt": 1,
        }
        return Collector(**(known | {"label": "rt-x-j1-a1", "spool": tmp_path / "spool"} | changes))

    return collector
