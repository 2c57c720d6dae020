"""The embedded store keeps the store's contract."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from remote_trainer.testing.store_contract import NewUrl, StoreContract


class TestSqliteStore(StoreContract):
    """One file of SQLite."""

    @pytest.fixture
    def new_url(self, tmp_path: Path) -> NewUrl:
        numbers = itertools.count()
        return lambda: f"sqlite:///{tmp_path}/store/{next(numbers)}.db"
