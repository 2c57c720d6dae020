"""Ids of jobs: short, sortable by time, easy to read aloud; and how people name a job on the command line."""

from __future__ import annotations

import secrets
from datetime import datetime

from remote_trainer.errors import Conflict, NotFound
from remote_trainer.model import Job, JobId
from remote_trainer.ports import JobQuery, Store

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # no i, l, o, u


def new_job_id(now: datetime) -> JobId:
    """Return a fresh id: eight characters of time (seconds), five of chance."""
    stamp, text = int(now.timestamp()), ""
    for _ in range(7):
        stamp, rest = divmod(stamp, 32)
        text = _ALPHABET[rest] + text
    return JobId("j" + text + "".join(secrets.choice(_ALPHABET) for _ in range(5)))


async def find_job(store: Store, text: str) -> Job:
    """Return the job of an id, a unique beginning of one, or a name (the newest of that name). NotFound, or Conflict if unclear."""
    try:
        return await store.get(JobId(text))
    except NotFound:
        named = await store.find(JobQuery(name=text, limit=1))
    if named.jobs:
        return named.jobs[0]
    recent = (await store.find(JobQuery(limit=1000))).jobs
    matches = [job for job in recent if job.id.startswith(text)] if len(text) >= 2 else []
    if len(matches) > 1:
        raise Conflict(f"{text!r} is the beginning of {len(matches)} job ids: {', '.join(job.id for job in matches[:5])}")
    if not matches:
        raise NotFound(f"no job has the id or name {text!r}: remote-trainer list shows what there is")
    return await store.get(matches[0].id)
