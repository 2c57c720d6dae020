"""The folder of files on their way: what belongs to a job goes when the job has ended, whoever left it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

from remote_trainer.errors import NotFound
from remote_trainer.model import Job, JobId, Phase
from remote_trainer.ports import Store
from remote_trainer.worker.spool import folder_of, forget, sweep
from tests.unit.life import a_job


class _Known:
    """A store that knows some jobs."""

    def __init__(self, *jobs: Job) -> None:
        self._jobs = {job.id: job for job in jobs}

    async def get(self, job_id: JobId) -> Job:
        if job_id not in self._jobs:
            raise NotFound(f"there is no job {job_id}")
        return self._jobs[job_id]


def _left(spool: Path, name: str) -> None:
    folder = folder_of(spool, JobId(name)) / "a1" / "restore"
    folder.mkdir(parents=True)
    (folder / "0").write_bytes(b"half")


async def test_only_what_has_ended_is_swept(tmp_path: Path) -> None:
    """Files of a job that has ended go; those of a running one stay, and those of a job that only another store knows."""
    running, ended = replace(a_job(), id=JobId("jrunning")), replace(a_job(), id=JobId("jended"), phase=Phase.FAILED)
    for name in ("jrunning", "jended", "jforeign"):
        _left(tmp_path, name)
    await sweep(cast(Store, _Known(running, ended)), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["jforeign", "jrunning"]


async def test_a_job_is_forgotten(tmp_path: Path) -> None:
    """Nothing of a job that has ended stays; that nothing is there is fine."""
    _left(tmp_path, "jended")
    await forget(tmp_path, JobId("jended"))
    await forget(tmp_path, JobId("jended"))
    assert list(tmp_path.iterdir()) == []
    await sweep(cast(Store, _Known()), tmp_path / "absent")
