"""What the evaluation of a training is made of: the training's plan, limits and what it kept, and what the user says."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import TypeVar

import pytest

from remote_trainer import plugins
from remote_trainer.config import Settings
from remote_trainer.dataset.cache import Cache
from remote_trainer.dataset.pack import pack
from remote_trainer.errors import Conflict, UsageError
from remote_trainer.model import Artifact, Job, JobId, Limits, OutputKind, Phase, Resources
from remote_trainer.ports import Change
from remote_trainer.recipe.load import load_recipe
from remote_trainer.recipe.plan import make_plan
from remote_trainer.service.app import App
from remote_trainer.service.evaluation import evaluate
from remote_trainer.service.jobs import again
from remote_trainer.worker.records import Record, write
from tests.unit.life import NOW

T = TypeVar("T")
SIZE = "checkpoints/step-00000010/size.txt"


@pytest.fixture
def inside(tmp_path: Path) -> Callable[[Callable[[App], Awaitable[T]]], T]:
    """Does something with a fresh installation in which a training has ended."""
    places = {name: tmp_path / name for name in ("data_dir", "state_dir", "cache_dir", "secrets_dir")}
    settings = Settings(**places)

    def inside(work: Callable[[App], Awaitable[T]]) -> T:
        async def main() -> T:
            async with App(settings) as app:
                await app.store.submit(trained(settings))
                [lease] = await app.store.claim("w1", lease_s=60, limit=1)
                ended = replace(lease.job, phase=Phase.DONE, finished_at=NOW)
                await app.store.save([Change(job_id=ended.id, token=lease.token, job=ended)])
                for attempt in (9, 10):
                    await keep(app, attempt, tmp_path / f"a{attempt}")
                return await work(app)

        return asyncio.run(main())

    return inside


def trained(settings: Settings) -> Job:
    """A training that has ended, on a machine with more memory than it asked for, and less disk than an evaluation needs."""
    recipe = load_recipe(plugins.find_tool("sd15-lora", settings.tools_path))
    plan = make_plan(recipe, {"base": "acme/sd15", "vram_gb": 12})
    plan = replace(plan, resources=Resources(gpus=2, vram_gb=30, ram_gb=64, disk_gb=1))
    limits = Limits(max_hours=9, max_cost=Decimal(5))
    return Job(id=JobId("j1"), name="j1", plan=plan, driver="local", created_at=NOW, limits=limits)


async def keep(app: App, attempt: int, file: Path) -> None:
    """Record a checkpoint, the same step in every attempt, that holds the attempt's number."""
    await asyncio.to_thread(file.write_text, str(attempt))
    digest = hashlib.sha256(str(attempt).encode()).hexdigest()
    key = f"default/j1/a{attempt}/size"
    await app.objects.put(key, file, sha256=digest)
    kind = OutputKind.CHECKPOINT
    artifact = Artifact(path=SIZE, size=len(str(attempt)), sha256=digest, output="checkpoints", kind=kind, key=key)
    record = Record(attempt=attempt, output="checkpoints", kind=kind, unit="step-00000010", mtime=1, artifacts=(artifact,))
    await write(app.objects, f"default/j1/records/a{attempt}/unit-1.json", record)


def test_an_evaluation_has_the_trainings_base_and_machine(inside: Callable[..., Job]) -> None:
    """One GPU with what the training's had, unless the user says how much is enough, and room for what either of the two needs."""
    job = inside(lambda app: evaluate(app, JobId("j1")))
    assert (job.plan.parameters["base"], job.plan.parameters["family"]) == ("acme/sd15", "sd15")
    assert job.plan.resources == Resources(gpus=1, vram_gb=30, ram_gb=64, disk_gb=40)
    assert job.limits == Limits(max_hours=9, max_cost=Decimal(5))
    job = again(job, NOW)
    assert job.evaluation_of == "j1", "a retry of it is an evaluation, too"


def test_what_the_user_says_of_an_evaluation_counts(inside: Callable[..., Job]) -> None:
    """Memory and limits; without a GPU none of its memory is asked for."""
    job = inside(lambda app: evaluate(app, JobId("j1"), ["vram_gb=8"], max_hours=1, max_cost=Decimal(0)))
    assert (job.plan.resources.vram_gb, job.limits) == (8, Limits(max_hours=1, max_cost=Decimal(0)))


def test_an_evaluation_draws_with_the_newest_version_of_a_checkpoint(inside: Callable[..., Job], tmp_path: Path) -> None:
    """That of the tenth attempt, not of the ninth, whose name sorts behind it."""
    job = inside(lambda app: evaluate(app, JobId("j1"), ["gpus=0"]))
    file = tmp_path / "expected" / SIZE
    file.parent.mkdir(parents=True)
    file.write_text("10")
    expected = asyncio.run(pack(str(tmp_path / "expected"), Cache(tmp_path / "other"), name="trained"))
    assert {given.name: given.digest for given in job.inputs}["trained"] == expected.digest
    assert job.plan.resources.vram_gb == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["base=acme/other", "steps=3"], "base: that is what job j1 was trained with; it cannot be set"),
        (["trained=/tmp", "family=flux"], "family, trained: that is what job j1 was trained with"),
    ],
)
def test_what_was_trained_cannot_be_set(inside: Callable[..., Job], settings: list[str], words: str) -> None:
    """The checkpoints fit no other base."""
    with pytest.raises(UsageError, match=words):
        inside(lambda app: evaluate(app, JobId("j1"), settings))


def test_one_evaluation_of_a_job_goes_on_at_a_time(inside: Callable[..., Job]) -> None:
    """Another one is refused, with the id of the first; limits that allow nothing are, too."""

    async def twice(app: App) -> Job:
        with pytest.raises(UsageError, match="limits must be positive"):
            await evaluate(app, JobId("j1"), max_hours=0)
        first = await evaluate(app, JobId("j1"))
        with pytest.raises(Conflict, match=f"job j1 is being evaluated by job {first.id}"):
            await evaluate(app, JobId("j1"))
        return first

    inside(twice)
