"""``doctor``: does this installation have what it needs, and what is missing for the rest?

Rules for editing: one function per question; each answer is a sentence with what to do; nothing is changed on the machine, and nothing
is rented.
"""

from __future__ import annotations

import importlib.util
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import replace

from remote_trainer import plugins
from remote_trainer.config import Settings, config_file
from remote_trainer.errors import ConfigError, DriverError, HubUnreachable, RemoteTrainerError
from remote_trainer.hub.client import Hub, Refused, offline
from remote_trainer.hub.look import TOKEN
from remote_trainer.objects.open import open_objects
from remote_trainer.ports import Driver, Examiner, Finding
from remote_trainer.service.app import App
from remote_trainer.service.models import hub_url
from remote_trainer.service.offers import Candidate, Ranking, rank_offers
from remote_trainer.service.submit import Order
from remote_trainer.store.open import open_store


async def examine(settings: Settings) -> list[Finding]:
    """Return all findings."""
    kept = [await _store(settings), await _objects(settings)]
    return [*_programs(), *_packages(), _settings(), *kept, _disk(settings), await examine_hub(settings)]


def _programs() -> Iterator[Finding]:
    yield Finding("python", sys.version_info >= (3, 11), f"{sys.version.split()[0]} with SQLite {sqlite3.sqlite_version}")
    for name, use in (("ssh", "hosts over SSH"), ("rsync", "fast transfers to hosts over SSH")):
        where = shutil.which(name)
        yield Finding(name, bool(where) or None, where or f"not installed; needed for {use}")


def _packages() -> Iterator[Finding]:
    for module, extra, use in (
        ("pymongo", "mongo", "a MongoDB store"),
        ("boto3", "s3", "R2, S3 or MinIO"),
        ("torch", "train", "training on this machine (driver local)"),
    ):
        there = importlib.util.find_spec(module) is not None
        answer = "installed" if there else f"not installed; for {use}: pip install 'remote-trainer[{extra}]'"
        yield Finding(module, there or None, answer)


def _settings() -> Finding:
    path = config_file()
    return Finding("settings", True, str(path) if path.exists() else f"defaults and environment ({path} does not exist)")


async def _store(settings: Settings) -> Finding:
    try:
        store = open_store(settings.store_url)
        try:
            return Finding("store", True, await store.migrate())
        finally:
            await store.close()
    except RemoteTrainerError as error:
        return Finding("store", False, str(error))


async def _objects(settings: Settings) -> Finding:
    try:
        return Finding("objects", True, await open_objects(settings.objects_url, settings.s3).check())
    except RemoteTrainerError as error:
        return Finding("objects", False, str(error))


def _disk(settings: Settings) -> Finding:
    folder = next(path for path in (settings.data_dir, *settings.data_dir.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    return Finding("disk", free > 5 * 10**9, f"{free / 10**9:.1f} GB free at {folder}")


async def examine_hub(settings: Settings) -> Finding:
    """Return whether there is a token for the model hub, and whose it is."""
    question, token = "model hub", settings.driver_settings.find_secret(TOKEN)
    if token is None:
        return Finding(
            question, None, f"no {TOKEN}: models that ask for one cannot be had; write it to {settings.secrets_dir / TOKEN}"
        )
    if offline():
        return Finding(question, None, f"{TOKEN} is set; the hub was not asked whose it is: HF_HUB_OFFLINE is set")
    try:
        async with Hub(hub_url(settings), token) as hub:
            return await _token(hub)
    except ConfigError as error:
        return Finding(question, False, str(error))


async def _token(hub: Hub) -> Finding:
    try:
        return Finding("model hub", True, f"{TOKEN} is that of {await hub.whoami()} at {hub.url}")
    except HubUnreachable as error:
        return Finding("model hub", None, f"{TOKEN} is set; {error}")
    except Refused as refused:
        if refused.status == 401:
            return Finding("model hub", False, f"{TOKEN} is not valid: make a new one at {hub.url}/settings/tokens")
        return Finding(
            "model hub", None, f"{TOKEN} is set; the hub does not say whose it is (status {refused.status}): {refused.words}"
        )


async def examine_driver(app: App, order: Order) -> list[Finding]:
    """Return what a driver, or a profile of one, has to say of itself, and what a machine for the order's tool would cost now."""
    profile = plugins.find_one(order.driver, app.settings.drivers_path)
    driver = app.driver(profile.driver, plugins.read_options(profile.driver, {**profile.options, **order.driver_options}))
    try:
        found = await _driver(driver)
    finally:
        await driver.close()
    if driver.abilities.borrowed or any(each.ok is False for each in found):
        return found
    if not order.tool:
        return [*found, Finding("rental", None, "name a tool (--tool) to be told what renting for it would cost now")]
    return [*found, *await _rentals(app, order)]


async def _driver(driver: Driver) -> list[Finding]:
    try:
        return list(await driver.examine()) if isinstance(driver, Examiner) else [Finding("driver", True, await driver.check())]
    except RemoteTrainerError as error:
        return [Finding("driver", False, str(error))]


async def _rentals(app: App, order: Order) -> list[Finding]:
    """Return what the best runs would cost that a job could have now: on demand, and spot where there is such."""
    try:
        ranking = await rank_offers(app, replace(order, terms={"spot": True}), refused=False)
    except DriverError as error:
        return [Finding("rental", False, str(error))]
    kinds = {"rental": False, "rental, spot": True}
    best = {kind: next((each for each in ranking.candidates if each.offer.spot is spot), None) for kind, spot in kinds.items()}
    if not any(best.values()):
        nothing = f"nothing suits {ranking.plan.tool} now: remote-trainer offers says what was refused, and why"
        return [Finding("rental", None, nothing)]
    return [Finding(kind, True, _rental(ranking, each)) for kind, each in best.items() if each is not None]


def _rental(ranking: Ranking, best: Candidate) -> str:
    price = f"{best.offer.price_per_hour:.3f} $/h, {ranking.run.hours:g} h at speed 1, here {best.offer.speed:g}"
    return f"{ranking.plan.tool} for {best.cost:.2f} $ on {best.offer.description} ({price})"
