"""Chooses a store by its URL; the only place that imports a database's client library.

Rules for editing: a URL may carry a password: say only what `described` leaves of it.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from remote_trainer.errors import ConfigError
from remote_trainer.ports import Store

_MONGO = ("mongodb://", "mongodb+srv://")


def open_store(url: str) -> Store:
    """Return the store of a URL: ``sqlite:///path``, a plain path, ``mongodb://host/database``, ``mongodb+srv://…``.

    Opens no connection yet. ConfigError if the URL cannot be understood or the client library is not installed.
    """
    if url.startswith(_MONGO):
        return _open_mongo(url)
    scheme, separator, rest = url.partition("://")
    if not separator:
        return _open_sqlite(url)
    if scheme == "sqlite":
        host, slash, path = rest.partition("/")
        if host or not slash or not path:
            raise ConfigError("a SQLite store is written sqlite:///path (relative) or sqlite:////path (absolute)")
        return _open_sqlite(unquote(path))
    raise ConfigError(f"a store cannot be opened by {scheme!r}: use sqlite:///path, a plain path, mongodb:// or mongodb+srv://")


def _open_sqlite(path: str) -> Store:
    from remote_trainer.store.sqlite import SqliteStore

    if not path:
        raise ConfigError("the store's path is empty: give a file, sqlite:///path or mongodb://host/database")
    return SqliteStore(Path(path).expanduser())


def _open_mongo(url: str) -> Store:
    try:
        from remote_trainer.store.mongo import MongoStore
    except ModuleNotFoundError as error:
        if error.name not in ("pymongo", "bson"):
            raise
        raise ConfigError("a MongoDB store needs pymongo: pip install 'remote-trainer[mongo]'") from error
    return MongoStore(url)
