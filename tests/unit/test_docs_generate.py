"""The parts of the documentation that are made from code agree with the code."""

from __future__ import annotations

import runpy
from pathlib import Path

GENERATE = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "generate.py"))


def test_pages_agree_with_the_code() -> None:
    """No page differs from what `make docs` would write."""
    assert list(GENERATE["stale"]()) == []


def test_only_the_part_between_the_marks_is_made_anew() -> None:
    """What a person wrote around a generated part stays."""
    page = "# Settings\n\n<!-- from remote_trainer.config:table -->\nold\n<!-- end -->\nthe rest\n"
    made = GENERATE["filled_in"](page)
    assert made.startswith("# Settings\n\n<!-- from remote_trainer.config:table -->\n| setting |")
    assert made.endswith("\n<!-- end -->\nthe rest\n")
    assert "old\n" not in made
