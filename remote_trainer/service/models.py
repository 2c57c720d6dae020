"""Models of the hub that an order names: looked up, pinned to a commit, and their size added to the disk that the machine needs.

Rules for editing: asks and never fetches. What the hub says no to is refused here; what cannot be found out is a note for the user, for
the worker asks again before it rents (worker/models.py).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from remote_trainer.config import HUB_URL, Settings
from remote_trainer.errors import ConfigError, HubUnreachable, ModelRefused, UsageError
from remote_trainer.hub.client import Hub, offline
from remote_trainer.hub.look import TOKEN, check, pin
from remote_trainer.hub.names import split_name
from remote_trainer.model import HubModel, Plan
from remote_trainer.recipe.plan import plan_digest
from remote_trainer.recipe.recipe import HubRule, InputRule, Recipe

_GB = 10**9
_TOLD = _GB // 20  # bytes; what takes less is not worth a word
_URL = re.compile(HUB_URL)


@dataclass(frozen=True, slots=True)
class Asked:
    """A plan that knows its models, and what the user should know of them."""

    plan: Plan
    notes: tuple[str, ...] = ()


def hub_url(settings: Settings) -> str:
    """Return the model hub's URL; empty for the public one. ConfigError if the environment has something else."""
    if settings.hub_endpoint:
        return settings.hub_endpoint
    found = os.environ.get("HF_ENDPOINT", "")
    if not _URL.fullmatch(found):
        raise ConfigError(
            "HF_ENDPOINT is no URL of a model hub: it must be http(s)://host, without user, password, spaces or braces"
        )
    return found


def drives(settings: Settings) -> bool:
    """Are jobs driven from this machine, rather than by a service?"""
    return settings.store_url.startswith("sqlite")


async def ask_models(settings: Settings, recipe: Recipe, plan: Plan, sources: Mapping[str, str], *, rents: bool) -> Asked:
    """Return the plan with the models that its steps will fetch. ModelRefused if one cannot be had.

    ``rents``: the machine comes without a token of its own. One that another token than ours may open is left to who may have one: a
    service, or a machine that is borrowed.
    """
    named, notes = _named(settings, recipe, plan, sources)
    models: list[HubModel] = []
    for model in named:
        found, note = await _ask(settings, plan, model, rents=rents)
        models.append(found)
        notes += [note] if note else []
    return Asked(_with(plan, models=tuple(models)), tuple(notes))


def _named(settings: Settings, recipe: Recipe, plan: Plan, sources: Mapping[str, str]) -> tuple[list[HubModel], list[str]]:
    models: list[HubModel] = []
    notes: list[str] = []
    for rule in recipe.inputs:
        value = str(plan.parameters.get(rule.parameter) or "")
        if rule.hub is None or not value or rule.name in sources:
            continue
        if model := _model(settings, rule, rule.hub, value):
            models.append(model)
        elif value.startswith(("/", "~")):
            notes.append(f"{rule.parameter}={value} is not on this machine: the machine that trains must have it")
        else:
            raise UsageError(f"{rule.parameter}={value} names nothing on this machine, and is no model of the hub (owner/model)")
    return models, notes


def _model(settings: Settings, rule: InputRule, hub: HubRule, value: str) -> HubModel | None:
    if (name := split_name(value)) is None:
        return None
    return HubModel(
        input=rule.name,
        name=name[0],
        revision=name[1],
        folders=hub.folders,
        pipelines=hub.pipelines,
        endpoint=hub_url(settings),
    )


async def _ask(settings: Settings, plan: Plan, model: HubModel, *, rents: bool) -> tuple[HubModel, str]:
    """Return the model as the hub knows it, or as it was named and why no more is known."""
    if offline():
        return model, f"{model} was not looked up: HF_HUB_OFFLINE is set"
    async with Hub(model.endpoint, _token(settings, plan)) as hub:
        try:
            model = await pin(hub, model)
            await check(hub, model)
            return model, ""
        except HubUnreachable as error:
            return model, f"{model} was not looked up: {error}; the machine that trains may reach the hub"
        except ModelRefused as error:
            if not (error.closed if not drives(settings) else error.tokenless and not rents):
                raise
            return model, f"{error}. Unless the worker or the machine has a token for it, the job will fail"


def _token(settings: Settings, plan: Plan) -> str | None:
    """Return the token that the steps would be given, if it is here."""
    if not any(TOKEN in step.secrets for step in plan.steps):
        return None
    return settings.driver_settings.find_secret(TOKEN)


def with_disk(plan: Plan, sizes: Mapping[str, int]) -> Asked:
    """Return the plan that asks for a disk on which inputs (bytes by name), models and what the steps write have room together."""
    parts = {**{model.input: model.size for model in plan.models}, **sizes}
    if not plan.writes_gb or not any(parts.values()):
        return Asked(plan)
    needed = -(-sum(parts.values()) // _GB) + plan.writes_gb
    if needed <= plan.resources.disk_gb:
        return Asked(plan)
    words = _sum(parts, plan.writes_gb)
    note = f"the machine needs {needed} GB of disk, rather than {plan.resources.disk_gb}: {words}"
    return Asked(_with(plan, resources=replace(plan.resources, disk_gb=needed)), (note,))


def _sum(parts: Mapping[str, int], writes_gb: int) -> str:
    known = [f"{name} {size / _GB:.1f} GB" for name, size in parts.items() if size >= _TOLD]
    return ", ".join([*known, f"{writes_gb} GB for what the steps write"])


def _with(plan: Plan, **changes: object) -> Plan:
    changed = replace(plan, **changes)  # type: ignore[arg-type]
    return replace(changed, digest=plan_digest(changed))
