"""docs/tools.md tells of everything a recipe can say."""

from __future__ import annotations

import re
from pathlib import Path

from remote_trainer.model import Facts
from remote_trainer.plugins import find_tool
from remote_trainer.recipe.load import load_recipe, override_presets
from remote_trainer.recipe.plan import make_plan
from remote_trainer.recipe.render import _FILTERS
from remote_trainer.recipe.schema import load_schema

TEXT = (Path(__file__).parent.parent.parent / "docs" / "tools.md").read_text(encoding="utf-8")


def test_every_field_is_documented() -> None:
    """Each field of a recipe and of a step has its word."""
    schema = load_schema("schema.json")
    fields = {*schema["properties"], *schema["$defs"]["step"]["properties"], *schema["$defs"]["retries"]["properties"]}
    assert {field for field in fields if f"`{field}`" not in TEXT and f"{field}:" not in TEXT} == set()


def test_every_filter_is_documented() -> None:
    """Each filter of the template language has its word."""
    assert {name for name in (*_FILTERS, "raw", "json", "without", "given") if not re.search(rf"`{name}[`(]", TEXT)} == set()


def test_the_example_works(tmp_path: Path) -> None:
    """The recipe of the page is valid and makes a plan."""
    example = re.search(r"```yaml\n(name:.*?)```", TEXT, re.DOTALL)
    assert example
    file = tmp_path / "example.yaml"
    file.write_text(example[1])
    assert "-name '*.md' -exec" in make_plan(load_recipe(file), {"pattern": "*.md"}).steps[0].run


def test_the_example_of_presets_works(tmp_path: Path) -> None:
    """The presets of the page can stand in for those of the tool that they are told of."""
    example = re.search(r"```yaml\n(presets:.*?)```", TEXT, re.DOTALL)
    assert example
    file = tmp_path / "mine.yaml"
    file.write_text(example[1])
    recipe = override_presets(load_recipe(find_tool("sdxl-lora@1")), file)
    parameters = make_plan(recipe, {"rank": 6, "targets": "locon"}, Facts(images=40)).parameters
    assert (parameters["preset"], parameters["alpha"], parameters["conv_rank"]) == ("small", 3.0, 8)
