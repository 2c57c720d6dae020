"""How a MongoDB store hears of other connections' writes: by a change stream, or by looking where the server has none.

Rules for editing: a write is news if it sets ``by``; our own rang already and are skipped. Ring all once the feed has begun.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

from pymongo import DESCENDING
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import OperationFailure

from remote_trainer.model import JobId
from remote_trainer.store.mongo_layout import NEVER, Document
from remote_trainer.store.watchers import Watchers

_NEWS = [{"$match": {"$or": [{"operationType": "insert"}, {"updateDescription.updatedFields.by": {"$exists": True}}]}}]
_NO_CHANGE_STREAMS = 40573  # a single server without a replica set
_AWAIT_MS = 10_000  # how long the server keeps a request that has no news
_POLL_S = 0.05
#: Writes may become readable in another order than their times: so far back is looked again.
_OVERLAP = timedelta(seconds=2)


async def follow(jobs: AsyncCollection[Document], watchers: Watchers, me: str) -> None:
    """Wake watchers for ever; ``me`` begins the ``by`` of our own writes."""
    try:
        async with await jobs.watch(_NEWS, max_await_time_ms=_AWAIT_MS) as stream:
            watchers.ring_all()
            async for change in stream:
                fields = change.get("fullDocument") or change["updateDescription"]["updatedFields"]
                _tell(watchers, change["documentKey"]["_id"], fields["by"], me)
    except OperationFailure as error:
        if error.code != _NO_CHANGE_STREAMS:
            raise
        await _look(jobs, watchers, me)


async def _look(jobs: AsyncCollection[Document], watchers: Watchers, me: str) -> None:
    newest = await jobs.find_one({}, {"changed": 1}, sort=[("changed", DESCENDING)])
    since = newest["changed"] if newest else NEVER
    known: set[tuple[str, str]] | None = None
    while True:
        rows = await jobs.find({"changed": {"$gte": since - _OVERLAP}}, {"by": 1, "changed": 1}).to_list()
        seen = {(row["_id"], row["by"]) for row in rows}
        if known is None:
            watchers.ring_all()
        else:
            for job_id, by in seen - known:
                _tell(watchers, job_id, by, me)
        known = seen
        since = max([since, *(row["changed"] for row in rows)])
        await asyncio.sleep(_POLL_S)


def _tell(watchers: Watchers, job_id: str, by: str, me: str) -> None:
    if not by.startswith(me):
        watchers.ring([JobId(job_id)], queue=True)
