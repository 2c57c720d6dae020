"""Fixtures of tests that run commands in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import office as offices
from tests.support.office import Office


@pytest.fixture
def office(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Office]:
    """A fresh installation and a small market."""
    with offices.opened(tmp_path, monkeypatch, capsys) as office:
        yield office
