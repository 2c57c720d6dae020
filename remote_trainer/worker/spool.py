"""The folder of files on their way through this machine: one below it for each job, gone when the job has ended.

What a killed worker leaves behind lies below its job's folder, too. So it goes with the job, whoever drives that to its end on this
machine, or when the next worker begins here.

Rules for editing: a job that this store does not know may be another installation's: its folder stays.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from remote_trainer.errors import DocumentTooNew, NotFound
from remote_trainer.model import JobId
from remote_trainer.ports import Store
from remote_trainer.threads import to_end


def folder_of(spool: Path, job_id: JobId) -> Path:
    """Return where the files of a job lie, or would."""
    return spool / job_id


async def forget(spool: Path, job_id: JobId) -> None:
    """Remove the files of a job that has ended."""
    await to_end(lambda: shutil.rmtree(folder_of(spool, job_id), ignore_errors=True))


async def sweep(store: Store, spool: Path) -> None:
    """Remove the files of jobs that have ended while no worker was here to notice."""
    for name in await asyncio.to_thread(_names, spool):
        try:
            job = await store.get(JobId(name))
        except (NotFound, DocumentTooNew):
            continue
        if job.phase.terminal:
            await forget(spool, job.id)


def _names(spool: Path) -> list[str]:
    return [path.name for path in spool.iterdir()] if spool.is_dir() else []
