"""A user's home for the command line's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commandline import Home, installed


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A home with the embedded store, shared by the tests of a module: jobs do not know of each other."""
    with installed(tmp_path_factory.mktemp("cli") / "home") as home:
        yield home


@pytest.fixture
def own_home(tmp_path: Path) -> Iterator[Home]:
    """An empty home that nobody has used."""
    with installed(tmp_path / "home") as home:
        yield home
