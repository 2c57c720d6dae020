"""A store is chosen by its URL; nothing is connected yet, and no password is shown."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from remote_trainer.errors import ConfigError
from remote_trainer.store.connection import journal_mode
from remote_trainer.store.open import open_store
from remote_trainer.store.sqlite import SqliteStore


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:////var/lib/jobs.db", "/var/lib/jobs.db"),
        ("sqlite:///jobs.db", "jobs.db"),
        ("sqlite:///with%20space.db", "with space.db"),
        ("/var/lib/jobs.db", "/var/lib/jobs.db"),
        ("jobs.db", "jobs.db"),
    ],
)
def test_a_path_or_a_sqlite_url_is_a_file(url: str, path: str) -> None:
    """Four slashes make a path absolute."""
    store = open_store(url)
    assert isinstance(store, SqliteStore)
    assert store._path == Path(path)


@pytest.mark.parametrize("url", ["", "sqlite://", "sqlite://host/path", "postgres://box/jobs", "sqlite:///"])
def test_what_is_no_store_is_refused(url: str) -> None:
    """The message says what can be given."""
    with pytest.raises(ConfigError, match="sqlite:///"):
        open_store(url)


@pytest.mark.parametrize(
    "url",
    [
        "mongodb://user:hun/ter2@box/jobs",
        "mongodb://user:hunter2@box:port/jobs",
        "mongodb://user:hunter2@box",
        "mongodb://u:hunter2@",
    ],
)
def test_a_bad_url_does_not_show_its_password(url: str) -> None:
    """Neither the message nor what caused it holds the password."""
    pytest.importorskip("pymongo")
    with pytest.raises(ConfigError) as caught:
        open_store(url)
    assert "ter2" not in str(caught.value)
    assert caught.value.__suppress_context__ and caught.value.__cause__ is None


def test_without_the_client_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A MongoDB URL without pymongo says which extra to install."""
    for name in [name for name in sys.modules if name.startswith("remote_trainer.store.mongo")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pymongo", None)
    with pytest.raises(ConfigError, match=r"remote-trainer\[mongo\]"):
        open_store("mongodb://box/jobs")


@pytest.mark.parametrize(
    ("version", "mode"),
    [
        ((3, 40, 1), "persist"),
        ((3, 44, 5), "persist"),
        ((3, 44, 6), "wal"),
        ((3, 45, 0), "persist"),
        ((3, 50, 6), "persist"),
        ((3, 50, 7), "wal"),
        ((3, 51, 0), "persist"),
        ((3, 51, 2), "persist"),
        ((3, 51, 3), "wal"),
        ((4, 0, 0), "wal"),
    ],
)
def test_the_write_ahead_log_only_where_it_is_safe(version: tuple[int, int, int], mode: str) -> None:
    """Versions whose write-ahead log can corrupt a database keep the rollback journal."""
    assert journal_mode(version) == mode
