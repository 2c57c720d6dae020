"""Where an order may run: what its profiles, their lists and the order itself say of machines, put together.

Each place keeps the options, the wishes for machines and the provision of its own profile; a list's provision counts more than that of
its members, the order's more than both. Limits are the job's: those of the list, else the strictest of the members'.

Rules for editing: reads profiles and raises UsageError kinds; no driver is made here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from remote_trainer import plugins
from remote_trainer.config import Settings
from remote_trainer.model import Place, Provision
from remote_trainer.plugins import Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where a job may run, first choice first, and what bounds it there."""

    every: tuple[Place, ...]
    limits: Mapping[str, Any]  # fields of model.Limits that the profiles name

    @property
    def first(self) -> Place:
        """The first choice."""
        return self.every[0]


def find_places(settings: Settings, names: str, options: Mapping[str, Any], terms: Mapping[str, Any]) -> Places:
    """Return what ``--driver`` stands for; ``options`` and ``terms`` are the order's own."""
    profiles = plugins.find_places(names, settings.drivers_path)
    whole = plugins.find_profile(names, settings.drivers_path) if len(profiles) > 1 and "," not in names else None
    above = {**(whole.provision if whole else {}), **terms}
    mine = _dealt(profiles, options)
    places = tuple(
        Place(
            driver=profile.driver,
            options=plugins.read_options(profile.driver, {**profile.options, **given}),
            resources=profile.resources,
            provision=Provision(**{**profile.provision, **above}),
        )
        for profile, given in zip(profiles, mine, strict=True)
    )
    strictest = _strictest([profile.limits for profile in profiles])
    return Places(every=places, limits={**strictest, **(whole.limits if whole else {})})


def _dealt(profiles: Sequence[Profile], options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the order's options by place: each goes wherever the driver knows it; to the first, which will refuse it, if none does."""
    if len(profiles) == 1:
        return [dict(options)]
    known = [plugins.driver_options(profile.driver) for profile in profiles]
    dealt: list[dict[str, Any]] = [{key: value for key, value in options.items() if key in schema} for schema in known]
    dealt[0] |= {key: value for key, value in options.items() if not any(key in schema for schema in known)}
    return dealt


def _strictest(limits: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return of each limit the lowest that any profile names; a cost of 0 is no cap."""
    named: dict[str, list[Any]] = {}
    for given in limits:
        for key, value in given.items():
            named.setdefault(key, []).append(value)
    return {key: min([value for value in values if value] or values) for key, values in named.items()}
