"""``doctor``: does this installation have what it needs, and what is missing for the rest?

Rules for editing: one function per question; each answer is a sentence with what to do; nothing is changed on the machine.
"""

from __future__ import annotations

import importlib.util
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from remote_trainer.config import Settings, config_file
from remote_trainer.errors import RemoteTrainerError
from remote_trainer.objects.open import open_objects
from remote_trainer.store.open import open_store


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer to one question; ``ok`` None means "not needed unless …"."""

    question: str
    ok: bool | None
    answer: str


async def examine(settings: Settings) -> list[Finding]:
    """Return all findings."""
    return [*_programs(), *_packages(), _settings(), await _store(settings), await _objects(settings), _disk(settings)]


def _programs() -> Iterator[Finding]:
    yield Finding("python", sys.version_info >= (3, 11), f"{sys.version.split()[0]} with SQLite {sqlite3.sqlite_version}")
    for name, use in (("ssh", "hosts over SSH"), ("rsync", "fast transfers to hosts over SSH")):
        where = shutil.which(name)
        yield Finding(name, bool(where) or None, where or f"not installed; needed for {use}")


def _packages() -> Iterator[Finding]:
    for module, extra, use in (
        ("pymongo", "mongo", "a MongoDB store"),
        ("boto3", "s3", "R2, S3 or MinIO"),
        ("torch", "train", "training on this machine (driver local)"),
    ):
        there = importlib.util.find_spec(module) is not None
        answer = "installed" if there else f"not installed; for {use}: pip install 'remote-trainer[{extra}]'"
        yield Finding(module, there or None, answer)


def _settings() -> Finding:
    path = config_file()
    return Finding("settings", True, str(path) if path.exists() else f"defaults and environment ({path} does not exist)")


async def _store(settings: Settings) -> Finding:
    try:
        store = open_store(settings.store_url)
        try:
            return Finding("store", True, await store.migrate())
        finally:
            await store.close()
    except RemoteTrainerError as error:
        return Finding("store", False, str(error))


async def _objects(settings: Settings) -> Finding:
    try:
        return Finding("objects", True, await open_objects(settings.objects_url, settings.s3).check())
    except RemoteTrainerError as error:
        return Finding("objects", False, str(error))


def _disk(settings: Settings) -> Finding:
    folder = next(path for path in (settings.data_dir, *settings.data_dir.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    return Finding("disk", free > 5 * 10**9, f"{free / 10**9:.1f} GB free at {folder}")
