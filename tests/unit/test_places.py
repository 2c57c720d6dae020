"""Where an order may run: profiles, lists of them, and what the order says itself."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from remote_trainer import plugins
from remote_trainer.cli import options
from remote_trainer.config import Settings
from remote_trainer.errors import ConfigError, RecipeError, UsageError
from remote_trainer.model import Provision, Resources, Strategy
from remote_trainer.service.places import Places, find_places
from remote_trainer.service.submit import Order, draft, sketch

PROFILES = {
    "small": "driver: vastai\noptions: {gpu_names: [RTX 4090]}\nresources: {vram_gb: 24}\n"
    "limits: {max_hours: 12, max_cost: 3}\nprovision: {spot: true, race: 2, bid_margin: 1.5}\n",
    "large": "driver: vastai\noptions: {gpu_names: [L40S]}\nresources: {vram_gb: 48}\nlimits: {max_hours: 6, max_cost: 0}\n",
    "lab": "driver: ssh\noptions: {host: me@lab}\n",
    "any": "driver: [small, large, lab]\nprovision: {strategy: cheapest, race: 1}\n",
    "capped": "driver: [small, lab]\nlimits: {max_hours: 30}\n",
    "nested": "driver: [any, lab]\n",
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    for name, text in PROFILES.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    return Settings(drivers_path=(tmp_path,))


def found(settings: Settings, names: str, given: dict[str, Any] | None = None, **terms: Any) -> Places:
    return find_places(settings, names, given or {}, terms)


def test_a_list_stands_for_its_members_in_their_order(settings: Settings) -> None:
    """Each place keeps the driver, the options and the wishes of its own profile."""
    places = found(settings, "any").every
    assert [place.driver for place in places] == ["vastai", "vastai", "ssh"]
    assert [dict(place.options) for place in places] == [{"gpu_names": ["RTX 4090"]}, {"gpu_names": ["L40S"]}, {"host": "me@lab"}]
    assert [place.resources for place in places] == [Resources(vram_gb=24), Resources(vram_gb=48), Resources()]
    assert [place.options for place in found(settings, "small, lab").every] == [places[0].options, places[2].options]


def test_how_machines_are_got_is_said_by_the_order_then_the_list_then_the_profile(settings: Settings) -> None:
    """What nobody names is as everywhere."""
    places = found(settings, "any").every
    assert places[0].provision == Provision(strategy=Strategy.CHEAPEST, race=1, spot=True, bid_margin=Decimal("1.5"))
    assert places[1].provision == Provision(strategy=Strategy.CHEAPEST, race=1)
    ordered = found(settings, "any", spot=False, strategy=Strategy.QUEUE).every
    assert [(place.provision.spot, place.provision.strategy) for place in ordered] == [(False, Strategy.QUEUE)] * 3


def test_of_the_limits_the_strictest_counts(settings: Settings) -> None:
    """No member lets a job spend more than another one would; a list's own word counts more."""
    assert found(settings, "any").limits == {"max_hours": 6.0, "max_cost": Decimal(3)}
    assert found(settings, "capped").limits == {"max_hours": 30.0, "max_cost": Decimal(3)}


def test_options_of_the_order_go_where_they_are_known(settings: Settings) -> None:
    """A host is for the driver that connects to one; what nobody knows is left to the first, which refuses it."""
    places = found(settings, "any", {"host": "me@box", "min_cuda": "12.8"}).every
    assert [place.options.get("host") for place in places] == [None, None, "me@box"]
    assert [place.options.get("min_cuda") for place in places] == [12.8, 12.8, None]
    assert found(settings, "any", {"hots": "x"}).first.options["hots"] == "x"


@pytest.mark.parametrize("name", ["nested", ",", "any,lab,nested"])
def test_a_list_is_flat_and_not_empty(settings: Settings, name: str) -> None:
    """A list of lists says nobody knows what first."""
    with pytest.raises(ConfigError, match=r"is a list itself|no driver is named"):
        found(settings, name)


def test_what_looks_at_one_driver_asks_for_one(settings: Settings) -> None:
    """A list cannot be checked or surveyed as a whole."""
    with pytest.raises(ConfigError, match="name one of small, large, lab"):
        plugins.find_one("any", settings.drivers_path)


@pytest.mark.parametrize(
    "text",
    [
        "driver: [one]\n",
        "driver: [one, one]\n",
        "driver: [one, two]\noptions: {a: 1}\n",
        "driver: ssh\nprovision: {strategy: luckiest}\n",
        "driver: ssh\nprovision: {race: 0}\n",
        "driver: ssh\nprovision: {bid_margin: 0.9}\n",
        "driver: ssh\nprovision: {spots: true}\n",
    ],
)
def test_a_profile_that_makes_no_sense_is_refused(tmp_path: Path, text: str) -> None:
    """A list has at least two members and nothing of a single driver; a provision has known fields with sane values."""
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(RecipeError):
        plugins.find_profile("bad", [tmp_path])


def test_among_several_places_the_plan_is_the_tools_own(settings: Settings) -> None:
    """What one profile wishes for would bind the others; with one place it is asked for as part of the plan."""
    alone, among = (sketch(settings, Order(tool="hello@1", driver=name)).plan.resources for name in ("large", "any"))
    assert (alone.vram_gb, among.vram_gb) == (48, 0)


@pytest.mark.parametrize("terms", [{"spot": True}, {"race": 2}])
async def test_what_no_place_can_do_is_refused(settings: Settings, terms: dict[str, Any]) -> None:
    """Nothing is rented from a machine that is lent."""
    with pytest.raises(UsageError, match=r"--spot|--race"):
        await draft(settings, Order(tool="hello@1", driver="lab,local", terms=terms))


def test_the_command_line_names_strategies() -> None:
    """What was not said is left to the profiles."""
    assert options.terms(strategy=None, spot=None, race=None) == {}
    assert options.terms(strategy="fastest", spot=False, race=2) == {"strategy": Strategy.FASTEST, "spot": False, "race": 2}
    with pytest.raises(UsageError, match="preferred, cheapest, fastest, queue"):
        options.terms(strategy="best", spot=None, race=None)
