"""Failpoints: every change of the world has them, and the product has none of them."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest

from remote_trainer.effects import Effect
from remote_trainer.lifecycle.rules import TRANSITIONS
from remote_trainer.testing import failpoints
from tests.support.patience import PATIENCE_S

_ASK = """\
import sys
import remote_trainer.cli.main, remote_trainer.cli.run
from remote_trainer.service import background
from remote_trainer import plugins
plugins.load_drivers()
import remote_trainer.store.sqlite, remote_trainer.store.mongo, remote_trainer.objects.s3, remote_trainer.objects.local
import remote_trainer.worker.perform
found = [name for name in sys.modules if "failpoints" in name]
mortal = [
    f"{module.__name__}:{owner.__name__}.{name}"
    for module in list(sys.modules.values()) if (module.__name__ or "").startswith("remote_trainer.")
    for owner in vars(module).values() if isinstance(owner, type)
    for name, verb in vars(owner).items() if getattr(verb, "__code__", None) and verb.__code__.co_name == "mortal"
]
print(found, mortal)
"""


def test_the_product_has_none() -> None:
    """With everything of the program loaded, no failpoint is there: no module of theirs, no function of ours that was wrapped."""
    done = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert done.stdout == "[] []\n"


@pytest.mark.parametrize("port", failpoints.PORTS)
def test_every_verb_of_a_port_is_known(port: str) -> None:
    """A new verb of a port is a place to die at, or somebody said why not."""
    there = {name for name in vars(failpoints.PORTS[port]) if not name.startswith("_")}
    assert there - set(failpoints.PORTS[port].__annotations__) == failpoints.verbs(port)


def test_every_effect_and_every_move_is_a_place() -> None:
    """What a decision may wish for, and each phase it may save, are places to die at."""
    places = set(failpoints.places())
    assert {f"effect.{kind.__name__}" for kind in get_args(Effect)} <= places
    assert {f"save.{before}-{after}" for before, after in TRANSITIONS} <= places


def test_each_place_is_met_from_both_sides() -> None:
    """Every place has a point before and a point after it."""
    points = set(failpoints.points())
    assert {f"{place}:{when}" for place in failpoints.places() for when in ("before", "after")} <= points
