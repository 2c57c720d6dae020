"""What an order's dataset is: examined before it is used, and counted for the presets. Nothing is read that is known already.

Rules for editing: reads and never writes; a dry run is all of it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from remote_trainer.config import Settings
from remote_trainer.dataset.cache import Cache
from remote_trainer.dataset.inspect import Report, inspect
from remote_trainer.dataset.sources import Source, open_source
from remote_trainer.model import Facts


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """A dataset that can be used."""

    facts: Facts | None = None  # None: there is no dataset, or it lies in a bucket and nobody asks
    report: Report | None = None  # of a local one that was not examined before in the state it is in
    signature: str = ""  # that state; empty for data in a bucket
    listed: Source | None = None  # a bucket, which need not be listed again


async def examine(settings: Settings, source: str | None, *, wants_facts: bool) -> Examined:
    """Look into a dataset on this machine; list a bucket if its facts are wanted. DatasetError if it cannot be used."""
    if source is None:
        return Examined()
    if "://" in source:
        bucket = open_source(source) if wants_facts else None
        return Examined(facts=await asyncio.to_thread(bucket.facts) if bucket else None, listed=bucket)
    signature = await asyncio.to_thread(open_source(source).signature)
    known = await asyncio.to_thread(Cache(settings.cache_dir).known_facts, source, signature)
    if known is not None:
        return Examined(facts=known, signature=signature)
    report = await inspect(source)
    report.check()
    return Examined(facts=report.facts, report=report, signature=signature)


async def count(settings: Settings, source: str) -> Facts:
    """Return what a dataset holds without looking into its files. DatasetError if it cannot be read."""
    return await asyncio.to_thread(_count, settings, source)


def _count(settings: Settings, source: str) -> Facts:
    opened = open_source(source)
    known = None if "://" in source else Cache(settings.cache_dir).known_facts(source, opened.signature())
    return known or opened.facts()
