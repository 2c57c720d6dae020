"""What this installation has rented, by whose order, and giving back by hand what is nobody's.

Rules for editing: whose a machine is, is judged in ``worker.holdings`` as for the reaper of every worker; nothing is destroyed here that
was not judged a moment before.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from remote_trainer import plugins
from remote_trainer.errors import ConfigError, DriverError, RemoteTrainerError, UsageError
from remote_trainer.ports import Driver
from remote_trainer.service.app import App
from remote_trainer.worker.holdings import Holding, learn_drivers, look, renting
from remote_trainer.worker.reaper import give_back
from remote_trainer.worker.shop import Shop


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """What was found; complete only without faults."""

    drivers: Sequence[str]  # that were asked, by name
    found: Sequence[Holding]
    faults: Sequence[RemoteTrainerError] = ()  # of drivers that could not be asked, or refused to end a machine


async def look_around(app: App, names: Sequence[str] = ()) -> Holdings:
    """Return every machine of this installation at the named drivers or profiles, or at all that jobs of the store used."""
    async with _market(app, names) as (shop, faults):
        return await _look(shop, faults)


async def give_back_unclaimed(app: App, names: Sequence[str], labels: frozenset[str], *, at_once: bool) -> Holdings:
    """Look again, and ask for the end of what is due and has one of these labels; returns what was asked for."""
    async with _market(app, names) as (shop, faults):
        seen = await _look(shop, faults)
        asked: list[Holding] = []
        refusals = list(seen.faults)
        for holding in due(app, seen.found, at_once=at_once):
            if holding.instance.label not in labels:
                continue
            try:
                await give_back(holding)
            except DriverError as error:
                refusals.append(error)
            else:
                asked.append(holding)
        return Holdings(drivers=seen.drivers, found=asked, faults=refusals)


def due(app: App, found: Sequence[Holding], *, at_once: bool) -> list[Holding]:
    """Return what is to be given back: nobody's, and for as long as it must be, unless ``at_once``."""
    now = app.clock.now()
    return [each for each in found if not each.claimed and (at_once or each.due(now))]


async def _look(shop: Shop, faults: Mapping[str, str]) -> Holdings:
    """Ask every driver; those of one account that differ in their options see the same machines."""
    found: dict[tuple[str, str, str], Holding] = {}
    errors: dict[str, RemoteTrainerError] = {text: ConfigError(f"{name} was not asked: {text}") for name, text in faults.items()}
    drivers = renting(shop.drivers())
    for driver in drivers:
        try:
            for holding in await look(shop, driver):
                found.setdefault((driver.name, holding.instance.id, holding.instance.label), holding)
        except (DriverError, UsageError) as error:
            errors[str(error)] = error
    ordered = sorted(found.values(), key=lambda each: each.instance.label)
    return Holdings(drivers=list(dict.fromkeys(driver.name for driver in drivers)), found=ordered, faults=list(errors.values()))


@asynccontextmanager
async def _market(app: App, names: Sequence[str]) -> AsyncIterator[tuple[Shop, Mapping[str, str]]]:
    """Open the drivers that are meant; gives those that cannot be opened by name, and why."""
    shop = await app.shop()
    try:
        if names:
            for name in names:
                _open(app, shop, name)
            yield shop, {}
        else:
            yield shop, await learn_drivers(shop)
    finally:
        await shop.close()


def _open(app: App, shop: Shop, name: str) -> Driver:
    profile = plugins.find_one(name, app.settings.drivers_path)
    driver = shop.driver(profile.driver, plugins.read_options(profile.driver, profile.options))
    if driver.abilities.borrowed:
        raise UsageError(f"{name} borrows machines: there is nothing rented to list or to give back")
    return driver
