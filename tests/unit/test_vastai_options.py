"""What a profile may say of Vast.ai's machines, and the profiles that come along."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path

import pytest

from remote_trainer import plugins
from remote_trainer.drivers.vastai.choose import Wishes
from remote_trainer.drivers.vastai.driver import VastDriver
from remote_trainer.drivers.vastai.options import SCHEMA, wishes
from remote_trainer.errors import ConfigError
from remote_trainer.ports import DriverSettings

PAGE = (Path(__file__).parents[2] / "docs" / "vastai.md").read_text(encoding="utf-8")
PROFILES = sorted(file.stem for file in (plugins.bundled() / "drivers").glob("vastai*.yaml"))


def test_without_options_the_defaults_are_those_of_the_wishes() -> None:
    """Options that are no wishes change nothing of a machine."""
    assert wishes({"url": "http://x", "image": "i", "user": "u", "visibility_lag_s": 1}) == Wishes()


def test_options_become_wishes() -> None:
    """Money as money, lists as what is compared with."""
    found = wishes({"gpu_names": ["A100"], "max_price": 1.1, "blocked_machines": [7, 7], "gpu_speeds": {"A100": 3}})
    assert (found.gpu_names, found.max_price, found.blocked_machines) == (("A100",), Decimal("1.1"), frozenset({7}))
    assert found.gpu_speeds == {"A100": 3}


@pytest.mark.parametrize("bad", [{"gpu_speeds": {"A100": 0}}, {"min_reliability": 2}, {"max_price": -1}, {"gpu_names": "A100"}])
def test_nonsense_is_refused(bad: dict[str, object], tmp_path: Path) -> None:
    """Before anything is asked."""
    with pytest.raises(ConfigError, match=next(iter(bad))):
        VastDriver(bad, DriverSettings(state_dir=tmp_path))


def test_every_option_is_documented() -> None:
    """One row each, in the table of the page."""
    table = PAGE.partition("## Options")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(SCHEMA["properties"])


@pytest.mark.parametrize("name", PROFILES)
def test_the_profiles_that_come_along_can_be_used(name: str, tmp_path: Path) -> None:
    """Read, accepted by the driver, named on the page; and none without a limit, as such a machine would not end by itself."""
    profile = plugins.find_profile(name)
    plugins.make_driver(profile.driver, plugins.read_options(profile.driver, profile.options), DriverSettings(state_dir=tmp_path))
    assert profile.limits.get("max_hours") and profile.description
    assert f"`{name}`" in PAGE
