"""Recipes as files: the good ones load, the bad ones give every fault with its line. Cases are data in tests/fixtures/recipes.

A case of ``bad/`` is NAME.yaml and NAME.faults, one fault a line: its line, its field (``-``: the whole), its message.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from remote_trainer.errors import NotFound, RecipeError
from remote_trainer.model import OutputKind
from remote_trainer.recipe.load import load_recipe, validate
from remote_trainer.recipe.schema import load_schema
from remote_trainer.recipe.source import MAX_BYTES, read_source

CASES = Path(__file__).parent.parent / "fixtures" / "recipes"


@pytest.mark.parametrize("file", sorted((CASES / "bad").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_fault_of_a_bad_recipe_is_listed(file: Path) -> None:
    """All faults come at once, each with file, line, field and words."""
    faults = validate(file)
    assert [f"{fault.line} {fault.field or '-'} {fault.message}" for fault in faults] == (
        file.with_suffix(".faults").read_text(encoding="utf-8").splitlines()
    )
    assert {fault.file for fault in faults} == {str(file)}


@pytest.mark.parametrize("file", sorted((CASES / "bad").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_bad_recipe_is_refused(file: Path) -> None:
    """Loading raises one RecipeError that carries the same faults."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(file)
    assert list(caught.value.faults) == validate(file)
    assert all(str(fault) in str(caught.value) for fault in caught.value.faults)


@pytest.mark.parametrize("file", sorted((CASES / "good").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_good_recipe_has_no_fault(file: Path) -> None:
    """Each case of good/ passes."""
    assert validate(file) == []


def test_every_field_arrives() -> None:
    """A recipe that uses every field is read into values of ours."""
    recipe = load_recipe(CASES / "good" / "everything.yaml")
    assert recipe.tool == "every-thing@12"
    assert recipe.image == "pytorch/pytorch:2.9"
    assert recipe.environment == {"COUNT": "3", "FLAG": "true", "RATE": "{{ rate }}"}
    assert [rule.name for rule in recipe.inputs] == ["dataset", "base", "spare"]
    assert (recipe.inputs[0].required, recipe.inputs[1].parameter) == (True, "base")
    assert recipe.secrets[0].required and recipe.secrets[1].name == "OTHER"
    few, empty = recipe.presets
    assert (few.name, few.values["size"].when, few.advice[0].when) == ("few", "images > 1", "images < 3")
    assert (empty.when, empty.values, recipe.parameters["preset"]["enum"]) == ("", {}, ["auto", "none", "few", "empty"])
    assert recipe.steps[1].retries.on_exit == (75,) and recipe.steps[1].timeout_s == 60.0
    assert [output.kind for output in recipe.outputs] == [OutputKind.CHECKPOINT, OutputKind.FINAL, OutputKind.ARTIFACT]


def test_numbers_are_those_of_json() -> None:
    """The scalars on which YAML versions differ mean what their writer sees."""
    text = b"{a: 1e-4, b: yes, c: 12:30, d: 2024-01-01, e: 0x10, f: null, g: true, h: '1', i: 1_000, j: -3, k: .5, l: ''}"
    assert read_source(text, "x").data == {
        "a": 1e-4, "b": "yes", "c": "12:30", "d": "2024-01-01", "e": "0x10", "f": None, "g": True, "h": "1",
        "i": "1_000", "j": -3, "k": 0.5, "l": "",
    }  # fmt: skip


def test_an_oversized_file_is_not_read(tmp_path: Path) -> None:
    """What is no recipe by its size alone is refused before it is parsed."""
    file = tmp_path / "big.yaml"
    file.write_bytes(b"#" * (MAX_BYTES + 10))
    assert "more than" in validate(file)[0].message


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    """No file, no faults: NotFound."""
    with pytest.raises(NotFound, match="No such file"):
        load_recipe(tmp_path / "tool.yaml")


def test_name_and_version_must_be_those_of_the_folders(tmp_path: Path) -> None:
    """tools/<name>/<version>/tool.yaml says the same name and version."""
    folder = tmp_path / "other" / "2"
    folder.mkdir(parents=True)
    (folder / "tool.yaml").write_text((CASES / "good" / "smallest.yaml").read_text())
    assert [fault.field for fault in validate(folder)] == ["/name", "/version"]


@pytest.mark.parametrize("name", ["schema.json", "profile.schema.json", "presets.schema.json"])
def test_every_field_of_a_schema_is_explained(name: str) -> None:
    """The published schemas are documentation: each field has a title and a description."""

    def walk(node: object, path: str) -> list[str]:
        if isinstance(node, list):
            return [found for item in node for found in walk(item, path)]
        if not isinstance(node, dict):
            return []
        bare = [
            f"{path}/{key}"
            for key, field in node.get("properties", {}).items()
            if isinstance(field, dict) and not {"title", "description"} <= set(field) and not field.get("$ref", "").endswith(
                ("resources", "retries")
            )
        ]  # fmt: skip
        explained_elsewhere = ("if", "then", "else")  # conditions narrow fields that are explained where they are declared
        inner = ((key, item) for key, item in node.items() if key not in explained_elsewhere)
        return bare + [found for key, item in inner for found in walk(item, f"{path}/{key}")]

    schema = json.loads(json.dumps(load_schema(name)))
    assert walk(schema, "") == []
