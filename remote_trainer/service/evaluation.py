"""The evaluation of an ended training's checkpoints: a job of the tool ``evaluate-lora``, where the training ran.

It is shipped what the training kept in the object store, and of the training's own inputs the dataset and the base.

Rules for editing: the training is only read. What an evaluation does is the tool's; here only its parameters are filled in.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from remote_trainer import plugins
from remote_trainer.dataset.cache import Cache
from remote_trainer.dataset.pack import pack
from remote_trainer.errors import Conflict, NotFound, UsageError
from remote_trainer.model import Artifact, Input, Job, JobId, OutputKind, Plan, Resources
from remote_trainer.ports import JobQuery
from remote_trainer.recipe.load import load_recipe
from remote_trainer.recipe.parameters import parse_settings
from remote_trainer.recipe.plan import make_plan, plan_digest
from remote_trainer.recipe.recipe import Recipe
from remote_trainer.service.app import App
from remote_trainer.service.jobs import again, download, ended_job
from remote_trainer.service.ledger import enqueue
from remote_trainer.service.submit import checked_limits, pack_tool
from remote_trainer.worker.records import records

TOOL = "evaluate-lora"
SUMMARY = "final/training.json"
_SHARED = ("dataset", "base")
_FIXED = ("family", "base", "trained")


async def evaluate(
    app: App, job_id: JobId, settings: Sequence[str] = (), *, max_hours: float | None = None, max_cost: Decimal | None = None
) -> Job:
    """Queue the evaluation of a training; ``settings`` are key=value of the tool, limits that are not given are the training's.

    Conflict, NotFound or UsageError if there is none.
    """
    old = await ended_job(app, job_id)
    await _check_free(app, old)
    limits = checked_limits(
        replace(
            old.limits,
            max_hours=old.limits.max_hours if max_hours is None else max_hours,
            max_cost=old.limits.max_cost if max_cost is None else max_cost,
        )
    )
    recipe = load_recipe(plugins.find_tool(TOOL, app.settings.tools_path))
    plan = _plan(recipe, old, settings)
    inputs = tuple(given for given in old.inputs if given.name in _SHARED)
    fresh = replace(
        again(old, app.clock.now()),
        name=evaluation_name(old.id),
        plan=plan,
        inputs=(*inputs, *await _pack(app, old, recipe, plan)),
        limits=limits,
        evaluation_of=old.id,
    )
    return await enqueue(app, fresh)


async def _check_free(app: App, old: Job) -> None:
    """Raise Conflict while another evaluation of the job goes on, before anything is downloaded for a job that the store would refuse."""
    found = await app.store.find(JobQuery(name=evaluation_name(old.id), tenant=old.tenant))
    if going := next((each for each in found.jobs if not each.phase.terminal), None):
        raise Conflict(f"job {old.id} is being evaluated by job {going.id} ({going.phase}): wait for it, or cancel it first")


async def evaluations(app: App, job: Job) -> list[JobId]:
    """Return the jobs that evaluate a job, the newest first."""
    found = await app.store.find(JobQuery(name=evaluation_name(job.id)))
    return [each.id for each in found.jobs if each.evaluation_of == job.id]


def evaluation_name(job_id: JobId) -> str:
    """Return the name under which a job's evaluations are found."""
    return f"{job_id}-evaluation"


def _plan(recipe: Recipe, old: Job, settings: Sequence[str]) -> Plan:
    """Return the plan, with the training's own machine, base and name where the user does not say otherwise."""
    families = recipe.parameters["family"]["enum"]
    tool = old.plan.tool.partition("@")[0]
    if tool not in {f"{family}-lora" for family in families}:
        raise UsageError(
            f"job {old.id} ran {old.plan.tool}: only what {', '.join(f'{family}-lora' for family in families)} trained can be evaluated"
        )
    given = parse_settings(recipe, settings)
    if fixed := [name for name in _FIXED if name in given]:
        raise UsageError(f"{', '.join(fixed)}: that is what job {old.id} was trained with; it cannot be set")
    plan = make_plan(recipe, {**_known(recipe, old.plan.parameters, tool.removesuffix("-lora")), **given})
    wanted = _wanted(plan.resources, old.plan.resources, vram_named="vram_gb" in given)
    # A base of a hub is the very commit that was trained on.
    changed = replace(plan, resources=wanted, models=old.plan.models)
    return replace(changed, digest=plan_digest(changed))


def _wanted(own: Resources, trained: Resources, *, vram_named: bool) -> Resources:
    """Return what the evaluation needs, and at least what the training's machine had: that has its profile's wishes in it."""
    alone = vram_named or not own.gpus
    return Resources(
        gpus=own.gpus,
        vram_gb=own.vram_gb if alone else max(own.vram_gb, trained.vram_gb),
        ram_gb=max(own.ram_gb, trained.ram_gb),
        disk_gb=max(own.disk_gb, trained.disk_gb),
    )


def _known(recipe: Recipe, trained: Mapping[str, Any], family: str) -> dict[str, Any]:
    """Return what the training's parameters say of its evaluation: those of the same name, and those behind ``evaluate_``."""
    behind = {name.removeprefix("evaluate_"): value for name, value in trained.items() if name.startswith("evaluate_")}
    same = {name: trained[name] for name in ("python", "vram_gb", "base", "name") if name in trained}
    found = {**same, **behind, "family": family, "gpus": min(1, trained.get("gpus", 1))}
    return {name: value for name, value in found.items() if name in recipe.parameters}


async def _pack(app: App, old: Job, recipe: Recipe, plan: Plan) -> tuple[Input, ...]:
    """Return what the training has left, a CLIP model of this machine, and the tool, as inputs."""
    kept, cache = await _kept(app, old), Cache(app.settings.cache_dir)
    with tempfile.TemporaryDirectory(prefix="remote-trainer-") as folder:
        for artifact in kept:
            await download(app, artifact, Path(folder))
        trained = replace(await pack(folder, cache, name="trained", fleeting=True), source=f"job {old.id}")
    clip = await asyncio.to_thread(_folder, str(plan.parameters["clip"]))
    local = [await pack(clip, cache, name="clip")] if clip else []
    return (trained, *local, *await pack_tool(cache, recipe))


def _folder(text: str) -> str:
    """Return the folder of this machine that a parameter names, or nothing."""
    path = Path(text).expanduser()
    return str(path.absolute()) if path.is_dir() else ""


async def _kept(app: App, old: Job) -> list[Artifact]:
    """Return the files of the checkpoints that are in the object store, and the training's summary. NotFound without a checkpoint."""
    found: dict[str, Artifact] = {}
    every = [record async for record in records(app.objects, f"{old.tenant}/{old.id}/records")]
    for record in sorted(every, key=lambda record: record.attempt):  # by name a10 came before a9
        if record.kind is OutputKind.CHECKPOINT:
            found |= {artifact.path: artifact for artifact in record.artifacts}
    if not found:
        raise NotFound(f"job {old.id} ({old.phase}) has kept no checkpoints: there is nothing to compare")
    for attempt in old.attempts:
        if attempt.manifest is not None:
            found |= {artifact.path: artifact for artifact in attempt.manifest.artifacts if artifact.path == SUMMARY}
    return list(found.values())
