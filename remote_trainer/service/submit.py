"""From what a user asks for to a queued job: everything that can be wrong is found here, before a machine is touched.

Rules for editing: ``draft`` reads and never writes (the dry run is exactly that); ``submit`` packs the inputs and stores the job.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from remote_trainer import plugins
from remote_trainer.config import Settings
from remote_trainer.dataset.cache import Cache
from remote_trainer.dataset.inspect import Report
from remote_trainer.dataset.pack import pack
from remote_trainer.dataset.sources import Source
from remote_trainer.errors import ConfigError, DatasetError, RemoteTrainerError, UsageError
from remote_trainer.model import Facts, Input, Job, Limits, Plan, Resources
from remote_trainer.policy import needs
from remote_trainer.recipe.load import load_recipe, override_presets
from remote_trainer.recipe.parameters import parse_settings
from remote_trainer.recipe.plan import make_plan, plan_digest
from remote_trainer.recipe.presets import AUTO, PARAMETER, wants_facts
from remote_trainer.recipe.recipe import Recipe
from remote_trainer.service.app import App
from remote_trainer.service.data import examine
from remote_trainer.service.ledger import enqueue
from remote_trainer.service.models import ask_models, drives, with_disk
from remote_trainer.service.names import new_job_id
from remote_trainer.service.places import Places, find_places
from remote_trainer.service.preview import transfers


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a user asks for, as it was typed."""

    tool: str
    driver: str = "local"
    dataset: str | None = None
    base: str | None = None
    settings: Sequence[str] = ()  # key=value
    presets: str | None = None  # a file, in place of the tool's own
    driver_options: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None
    tenant: str = "default"
    priority: int = 0
    max_hours: float | None = None
    max_cost: Decimal | None = None
    max_attempts: int | None = None
    terms: Mapping[str, Any] = field(default_factory=dict)  # fields of model.Provision that the order names itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A checked order: what would be submitted. Nothing has been packed, stored or connected to, but for a bucket that was listed."""

    order: Order
    recipe: Recipe
    plan: Plan
    places: Places
    sources: Mapping[str, str]  # input name → path or URL
    limits: Limits
    report: Report | None  # of a local dataset that was not examined before in the state it is in
    signature: str  # that state; empty for data in a bucket
    listed: Source | None  # a dataset in a bucket, if it was listed
    notes: tuple[str, ...]  # what the user should know, and nothing is wrong with


@dataclass(frozen=True, slots=True, kw_only=True)
class Sketch:
    """The part of an order that says what machine it wants, and for how long. The data may be missing."""

    recipe: Recipe
    given: Mapping[str, Any]  # the parameters that the user has set
    plan: Plan  # as it is while nothing is known of the data
    places: Places
    limits: Limits


def sketch(settings: Settings, order: Order) -> Sketch:
    """Read tool, parameters, profile and limits of an order. Raises UsageError kinds; touches nothing."""
    recipe = load_recipe(plugins.find_tool(order.tool, settings.tools_path))
    if order.presets is not None:
        recipe = override_presets(recipe, Path(order.presets).expanduser())
    places = find_places(settings, order.driver, order.driver_options, order.terms)
    given = parse_settings(recipe, [*order.settings, *([f"base={order.base}"] if order.base is not None else [])])
    plan = _with_wishes(make_plan(recipe, given), places)
    return Sketch(recipe=recipe, given=given, plan=plan, places=places, limits=_limits(settings, places.limits, order))


def plan_for(sketched: Sketch, facts: Facts | None) -> Plan:
    """Return the plan that the order becomes with such data; None is no data, for which only a preset that is named is taken.

    RecipeError if no plan comes of it.
    """
    if not wants_facts(sketched.recipe, sketched.given) or (facts is None and sketched.given.get(PARAMETER, AUTO) == AUTO):
        return sketched.plan
    return _with_wishes(make_plan(sketched.recipe, sketched.given, facts or Facts()), sketched.places)


async def draft(settings: Settings, order: Order) -> Draft:
    """Check an order completely. Raises UsageError kinds; touches nothing, not even the store."""
    sketched = sketch(settings, order)
    recipe = sketched.recipe
    rents = await _check_places(settings, sketched.places, order)
    _check_secrets(settings, sketched.plan)
    dataset = find_sources(recipe, sketched.plan, order).get("dataset")
    examined = await examine(settings, dataset, wants_facts=wants_facts(recipe, sketched.given))
    plan = plan_for(sketched, examined.facts)
    _check_secrets(settings, plan)
    sources = find_sources(recipe, plan, order)
    asked = await ask_models(settings, recipe, plan, sources, rents=rents)
    fitted = with_disk(asked.plan, {each.name: each.size or 0 for each in await transfers(recipe, sources)})
    return Draft(
        order=order,
        recipe=recipe,
        plan=fitted.plan,
        places=sketched.places,
        sources=sources,
        limits=sketched.limits,
        report=examined.report,
        signature=examined.signature,
        listed=examined.listed,
        notes=(*asked.notes, *fitted.notes),
    )


async def submit(app: App, order: Order, *, tell: Callable[[str], None] = lambda note: None) -> Job:
    """Check, pack and queue an order; returns the queued job. ``tell`` gets what the user should know before anything is packed."""
    checked = await draft(app.settings, order)
    for note in checked.notes:
        tell(note)
    await _check_driver(app, checked)
    inputs = await _pack_inputs(app, checked)
    fitted = with_disk(checked.plan, {given.name: given.size for given in inputs})  # now of archives and buckets, too
    for note in fitted.notes:
        tell(note)
    now = app.clock.now()
    job_id = new_job_id(now)
    first, *others = checked.places.every
    job = Job(
        id=job_id,
        name=order.name or job_id,
        plan=fitted.plan,
        driver=first.driver,
        driver_options=first.options,
        wishes=first.resources if others else Resources(),
        provision=first.provision,
        fallbacks=tuple(others),
        created_at=now,
        since=now,
        tenant=order.tenant,
        inputs=inputs,
        limits=checked.limits,
        priority=order.priority,
    )
    return await enqueue(app, job)


async def _check_driver(app: App, checked: Draft) -> None:
    """Try the machines before anything is packed: one that answers will do. Where a service drives the jobs, this machine need not even
    reach them.
    """
    if not drives(app.settings):
        return
    errors: list[RemoteTrainerError] = []
    for place in checked.places.every:
        driver = app.driver(place.driver, place.options)
        try:
            await driver.check()
            return
        except RemoteTrainerError as error:
            errors.append(error)
        finally:
            await driver.close()
    raise errors[0]


async def _check_places(settings: Settings, places: Places, order: Order) -> bool:
    """Make every driver, which raises on bad options, and see whether any can do what the order names; returns whether any rents."""
    spot = rents = False
    for place in places.every:
        driver = plugins.make_driver(place.driver, place.options, settings.driver_settings)
        spot, rents = spot or driver.abilities.spot, rents or not driver.abilities.borrowed
        await driver.close()
    if order.terms.get("spot") and not spot:
        raise UsageError(f"--spot: {order.driver} has no machines that a provider may take back")
    if order.terms.get("race", 1) > 1 and not rents:
        raise UsageError(f"--race: {order.driver} rents no machines")
    return rents


def _with_wishes(plan: Plan, places: Places) -> Plan:
    """Return the plan that also asks for what the only profile wants of a machine; among several, each place has its own wishes."""
    if len(places.every) > 1:
        return plan
    merged = replace(plan, resources=needs(plan, places.first))
    return replace(merged, digest=plan_digest(merged))


async def _pack_inputs(app: App, checked: Draft) -> tuple[Input, ...]:
    cache = Cache(app.settings.cache_dir)
    linked = {rule.name for rule in checked.recipe.inputs if rule.outside_links}
    sources: dict[str, str | Source] = {**checked.sources, **({"dataset": checked.listed} if checked.listed else {})}
    inputs = [await pack(source, cache, name=name, outside_links=name in linked) for name, source in sources.items()]
    if checked.report is not None:
        await asyncio.to_thread(cache.note_sound, checked.sources["dataset"], checked.signature, checked.report.facts)
    return (*inputs, *await pack_tool(cache, checked.recipe))


async def pack_tool(cache: Cache, recipe: Recipe) -> tuple[Input, ...]:
    """Return the files that come with a tool as its one input, if there are any."""
    if not recipe.files:
        return ()
    with tempfile.TemporaryDirectory(prefix="remote-trainer-") as folder:
        tree = Path(folder) / "tool"
        await asyncio.to_thread(plugins.copy_tool_files, recipe, tree)
        packed = await pack(str(tree), cache, name="tool", fleeting=True)
    return (replace(packed, source=recipe.tool),)


def find_sources(recipe: Recipe, plan: Plan, order: Order, *, partial: bool = False) -> dict[str, str]:
    """Return what has to be shipped besides the tool's files: the dataset, and parameters that name local trees.

    DatasetError if something is missing, unless ``partial``.
    """
    sources: dict[str, str] = {}
    for rule in recipe.inputs:
        value = order.dataset if rule.name == "dataset" else plan.parameters.get(rule.parameter or rule.name)
        if value and (rule.name == "dataset" or Path(str(value)).expanduser().exists()):
            sources[rule.name] = str(value) if "://" in str(value) else str(Path(str(value)).expanduser().absolute())
        elif rule.required and not partial:
            raise DatasetError(f"{recipe.tool} needs the input {rule.name}: {rule.description or 'give a folder'}")
    if order.dataset and "dataset" not in {rule.name for rule in recipe.inputs}:
        raise UsageError(f"{recipe.tool} takes no dataset: leave --dataset out")
    return sources


def _check_secrets(settings: Settings, plan: Plan) -> None:
    missing = []
    for name in plan.required_secrets:
        try:
            settings.secret(name)
        except ConfigError as error:
            missing.append(str(error))
    if missing:
        raise ConfigError("\n".join([f"{plan.tool} needs secrets that are not set:", *(f"  {line}" for line in missing)]))


def _limits(settings: Settings, profile: Mapping[str, Any], order: Order) -> Limits:
    """Return what bounds the job: the order's own wishes, else the profile's, else the installation's."""
    base = replace(settings.job_limits, **profile)
    return checked_limits(
        Limits(
            max_hours=base.max_hours if order.max_hours is None else order.max_hours,
            max_cost=base.max_cost if order.max_cost is None else order.max_cost,
            max_attempts=base.max_attempts if order.max_attempts is None else order.max_attempts,
        )
    )


def checked_limits(limits: Limits) -> Limits:
    """Return the limits. UsageError if nothing can be done within them."""
    if limits.max_hours <= 0 or limits.max_cost < 0 or limits.max_attempts < 1:
        raise UsageError("limits must be positive: --max-hours above 0, --max-cost 0 (no cap) or more, --max-attempts 1 or more")
    return limits
