"""The shared store keeps the store's contract."""

from __future__ import annotations

import secrets
from urllib.parse import urlsplit, urlunsplit

import pytest

from remote_trainer.testing.store_contract import NewUrl, StoreContract


def database_of(uri: str, name: str) -> str:
    """Return the server's URL with a database in it."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(path=f"/{name}"))


class TestMongoStore(StoreContract):
    """A database of a server that speaks MongoDB's protocol."""

    stories = 10

    @pytest.fixture
    def new_url(self, mongo_uri: str) -> NewUrl:
        return lambda: database_of(mongo_uri, f"rt_{secrets.token_hex(6)}")
