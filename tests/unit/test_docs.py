"""The documentation says what the code does."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from docs.generate import PAGES
from remote_trainer.model import Phase, Reason, Verdict
from remote_trainer.ports import Abilities

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", PAGES)
def test_generated_pages_are_up_to_date(name: str) -> None:
    """A page made from the code equals what ``make docs`` would write now."""
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name](), "run: make docs"


def test_every_phase_verdict_and_reason_is_documented() -> None:
    """A new enum member cannot go undocumented."""
    text = (DOCS / "lifecycle.md").read_text(encoding="utf-8")
    missing = [member for kind in (Phase, Verdict, Reason) for member in kind if f"`{member}`" not in text]
    assert missing == []


def test_every_driver_ability_is_documented() -> None:
    """A new ability of drivers cannot go undocumented."""
    text = (DOCS / "drivers.md").read_text(encoding="utf-8")
    assert [each.name for each in dataclasses.fields(Abilities) if f"| `{each.name}` |" not in text] == []
