"""An installation with an account at the simulated Vast.ai, whose commands run in this process.

Rules for editing: what a user cannot see is looked at only in the simulated provider; requests never wait their turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from remote_trainer.config import load
from remote_trainer.drivers.vastai import pace
from remote_trainer.model import Attempt, Job, JobId, Phase
from remote_trainer.ports import Change
from remote_trainer.service.app import App
from remote_trainer.testing.vast import demo
from remote_trainer.testing.vast.server import SimVast
from tests.support.inprocess import Outcome, runner
from tests.unit.life import a_job

NOW = datetime.now(UTC)
DEPLOYMENT = "abc123"
MARKET = [
    demo.offer(100, dph_base=0.40),
    demo.offer(101, dph_base=0.41),
    demo.offer(102, dph_base=0.80),
    demo.offer(103, dph_base=0.10),
    demo.offer(104, dph_base=0.20, reliability=0.9),
    demo.offer(105, dph_base=0.21, reliability=0.9),
    demo.offer(106, dph_base=0.22, cuda_max_good=12.0),
]


@dataclass(frozen=True, slots=True)
class Office:
    """An installation with an account; commands run in this process."""

    sim: SimVast
    run: Callable[..., Outcome]

    def document(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        """What a command prints with --json."""
        returned, shown, message = self.run(*arguments, "--json")
        assert (returned, message) == (code, "")
        found: dict[str, Any] = json.loads(shown)
        return found

    def store(self, *jobs: Job) -> None:
        """Have these jobs in the store."""

        async def submit() -> None:
            async with App(load()) as app:
                for job in jobs:
                    await app.store.submit(replace(job, phase=Phase.QUEUED, attempts=(), finished_at=None))
                tokens = {each.job.id: each.token for each in await app.store.claim("w", lease_s=60, limit=len(jobs))}
                await app.store.save([Change(job_id=job.id, token=tokens[job.id], job=job) for job in jobs])

        asyncio.run(submit())

    def rent(self, *labels: str) -> None:
        """Have an instance under each label."""
        for number, label in enumerate(labels):
            self.sim.create(100 + number, {"image": "i", "disk": 20.0, "label": label, "env": {}})

    @property
    def there(self) -> set[str]:
        """What has not been asked to end."""
        gone = [path.split("/")[-2] for method, path in self.sim.requests if method == "DELETE"]
        return {each.label for each in self.sim.live.values() if str(each.id) not in gone}


@contextlib.contextmanager
def opened(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Office]:
    """A fresh installation and a small market; requests need not wait their turn."""
    for kind in pace.INTERVALS_S:
        monkeypatch.setitem(pace.INTERVALS_S, kind, 0.0)  # type: ignore[misc]

    with SimVast(MARKET) as sim:
        for name, value in {
            "HOME": home,
            "REMOTE_TRAINER_DEPLOYMENT": DEPLOYMENT,
            "VAST_URL": sim.url,
            "VAST_API_KEY": sim.key,
        }.items():
            monkeypatch.setenv(name, str(value))
        yield Office(sim, runner(monkeypatch, capsys))


def label(job: str, attempt: int = 1) -> str:
    return f"rt-{DEPLOYMENT}-{job}-a{attempt}"


def on_vast(job_id: str, phase: Phase, **changes: Any) -> Job:
    """A job at its first attempt."""
    attempt = Attempt(number=1, label=label(job_id), started_at=NOW, requested_at=NOW)
    job = replace(a_job(), id=JobId(job_id), name=job_id, driver="vastai", phase=phase, attempts=(attempt,))
    return replace(job, **changes)
