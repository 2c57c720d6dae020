"""Parameters: from text or values to checked, typed, complete values."""

from __future__ import annotations

from typing import Any

import pytest

from remote_trainer.errors import RecipeError
from remote_trainer.recipe.parameters import allowed, parse_settings, resolve
from remote_trainer.recipe.recipe import Recipe, SecretRule, Step

SCHEMAS: dict[str, dict[str, Any]] = {
    "steps": {"type": "integer", "default": 10, "minimum": 1, "maximum": 1000, "x-unit": "steps", "description": "Steps"},
    "rate": {"type": "number", "default": 0.1, "exclusiveMinimum": 0, "maximum": 1, "description": "Rate"},
    "fine": {"type": "number", "default": 0.3, "multipleOf": 0.1, "description": "Fine"},
    "mode": {"type": "string", "default": "fast", "enum": ["fast", "good"], "description": "Mode"},
    "loud": {"type": "boolean", "default": False, "description": "Loud"},
    "tags": {
        "type": "array",
        "default": [],
        "maxItems": 3,
        "uniqueItems": True,
        "items": {"type": "string"},
        "description": "Tags",
    },
    "sizes": {"type": "array", "items": {"type": "integer", "minimum": 8}, "description": "Sizes"},
    "note": {"type": "string", "maxLength": 5, "description": "Note"},
}
RECIPE = Recipe(
    name="t",
    version=1,
    description="",
    steps=(Step(name="s", run="true"),),
    parameters=SCHEMAS,
    secrets=(SecretRule(name="HF_TOKEN"),),
)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("steps=12", {"steps": 12}),
        ("steps=12.0", {"steps": 12.0}),
        ("rate=1e-4", {"rate": 1e-4}),
        ("rate=1", {"rate": 1}),
        ("fine=0.7", {"fine": 0.7}),
        ("mode=good", {"mode": "good"}),
        ("loud=true", {"loud": True}),
        ("loud=NO", {"loud": False}),
        ("tags=a, b", {"tags": ["a", "b"]}),
        ("tags=", {"tags": []}),
        ('tags=["a,b", "c"]', {"tags": ["a,b", "c"]}),
        ("sizes=8,16", {"sizes": [8, 16]}),
        ("note=a=b", {"note": "a=b"}),
        ("note=", {"note": ""}),
        ("note=12", {"note": "12"}),
    ],
)
def test_text_is_read_by_the_type_of_its_parameter(setting: str, value: dict[str, Any]) -> None:
    """key=value means what the parameter's schema says it can mean."""
    assert parse_settings(RECIPE, [setting]) == value


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("steps=0", "/steps: must be a whole number, 1 to 1000 steps, not 0"),
        ("steps=1.5", "/steps: must be a whole number, 1 to 1000 steps, not 1.5"),
        ("steps=many", '/steps: must be a whole number, 1 to 1000 steps, not "many"'),
        ("rate=0", "/rate: must be a number, above 0 to 1, not 0"),
        ("rate=nan", "/rate: must be a number, above 0 to 1, not NaN"),
        ("fine=0.75", "/fine: must be a number, a multiple of 0.1, not 0.75"),
        ("mode=god", '/mode: must be one of "fast", "good", not "god"'),
        ("loud=loud", '/loud: must be true or false, not "loud"'),
        ("tags=a,b,c,d", "/tags: must be a list of strings, at most 3 items, not 4"),
        ("tags=a,a", "/tags: has an item twice"),
        ("tags=[1]", "/tags: item 1 must be text, not 1"),
        ("sizes=8,4,x", "/sizes: item 2 must be a whole number, 8 or more, not 4"),
        ("note=toolong", '/note: must be text, at most 5 characters, not "toolong"'),
        ("stpes=3", "/stpes: is not a parameter; did you mean 'steps'?"),
        ("zzz=3", "/zzz: is not a parameter; there are: steps, rate, fine, mode, loud, tags, sizes, note"),
        ("hf-token=abc", "/hf_token: is the secret HF_TOKEN: secrets are set in the environment"),
        ("steps", "'steps' is not of the form key=value"),
        ("=3", "/: is not a parameter"),
    ],
)
def test_what_does_not_fit_is_explained(setting: str, problem: str) -> None:
    """A wrong value is told with what is allowed, a wrong name with the nearest right one."""
    with pytest.raises(RecipeError) as caught:
        parse_settings(RECIPE, [setting])
    assert problem in str(caught.value)


def test_all_faults_are_listed_at_once() -> None:
    """Four mistakes on one command line are one error with four faults; the secret's value is not shown."""
    with pytest.raises(RecipeError) as caught:
        parse_settings(RECIPE, ["steps=0", "steps=3", "stpes=1", "loud=maybe", "hf_token=sesame"])
    assert [fault.field for fault in caught.value.faults] == ["/steps", "/stpes", "/hf_token", "/steps", "/loud"]
    assert "sesame" not in str(caught.value)


def test_required_parameters_must_be_given() -> None:
    """What is required and missing is a fault that says what it is."""
    recipe = Recipe(
        name="t",
        version=1,
        description="",
        steps=RECIPE.steps,
        parameters={"a": {"type": "string", "required": True, "description": "An A"}},
    )
    with pytest.raises(RecipeError, match="/a: must be given: text; An A"):
        resolve(recipe, {})


def test_resolving_completes_and_unifies() -> None:
    """Every parameter gets its default or None, and 12.0 steps are 12 steps."""
    values = resolve(RECIPE, {"steps": 12.0, "rate": 1})
    assert values == {
        "steps": 12,
        "rate": 1.0,
        "fine": 0.3,
        "mode": "fast",
        "loud": False,
        "tags": [],
        "sizes": None,
        "note": None,
    }
    assert type(values["steps"]) is int and type(values["rate"]) is float


def test_values_of_requests_are_not_parsed() -> None:
    """A typed value must have its type already: text is no number, a bool is no number, huge whole numbers are refused."""
    for value in ("12", True, 2**60, float("inf"), None, [1]):
        with pytest.raises(RecipeError, match="/steps"):
            resolve(RECIPE, {"steps": value})
    with pytest.raises(RecipeError, match="NUL"):
        resolve(RECIPE, {"note": "a\0"})


def test_what_is_allowed_is_told_in_words() -> None:
    """The words of `tools show` and of errors."""
    assert allowed(SCHEMAS["steps"]) == "a whole number, 1 to 1000 steps"
    assert allowed({"type": "number", "x-unit": "s"}) == "a number, s"
