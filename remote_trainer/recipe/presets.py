"""Presets: values for what a user has not set, by what is known of the data, each with its reason.

Rules for editing: pure. What a user has set always stays; what a preset says of it is told. Values are set in the order of the recipe, so
a template sees what stands above it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from remote_trainer.errors import Fault, RecipeError
from remote_trainer.model import ChosenPreset, Facts
from remote_trainer.recipe.parameters import parse_value, resolve, unified, value_problems
from remote_trainer.recipe.recipe import Preset, PresetValue, Recipe
from remote_trainer.recipe.render import RenderError, evaluate, render_text

#: A tool with presets has this parameter, too. Templates do not know it: they see what came of it.
PARAMETER = "preset"
AUTO, NONE = "auto", "none"
#: What expressions and templates of presets may name besides the parameters.
FACTS = tuple(item.name for item in dataclasses.fields(Facts))


def is_template(value: Any) -> bool:
    """Is a preset's value computed?"""
    return isinstance(value, str) and ("{{" in value or "{%" in value)


def with_parameter(parameters: Mapping[str, Any], presets: Sequence[Preset]) -> Mapping[str, Any]:
    """Return the parameters of a tool that has these presets."""
    if not presets:
        return parameters
    about = "Values for what is not set: chosen by the dataset (auto), those of a preset by its name, or none"
    names = [AUTO, NONE, *(preset.name for preset in presets)]
    return {**parameters, PARAMETER: {"type": "string", "default": AUTO, "enum": names, "description": about}}


def wants_facts(recipe: Recipe, given: Mapping[str, Any]) -> bool:
    """Does it matter for these parameters what is known of the data?"""
    return bool(recipe.presets) and given.get(PARAMETER) != NONE


def complete(recipe: Recipe, given: Mapping[str, Any], facts: Facts | None) -> tuple[dict[str, Any], ChosenPreset | None]:
    """Return a value for every parameter, and which preset has had a part in it.

    Without facts, none is taken yet. RecipeError lists all faults: of the given values, or of the preset's.
    """
    values = resolve(recipe, given)
    if not recipe.presets:
        return values, None
    if facts is None or not wants_facts(recipe, given):
        return {**values, PARAMETER: NONE}, None
    work = _Choice(recipe, given, values, facts)
    chosen = work.choose(values[PARAMETER])
    if work.faults:
        raise RecipeError(f"the presets of {recipe.tool} cannot be used with these parameters:", tuple(work.faults))
    return {**work.values, PARAMETER: chosen.name}, chosen


class _Choice:
    """Chooses a preset for one order, sets its values, and collects what goes wrong."""

    def __init__(self, recipe: Recipe, given: Mapping[str, Any], values: Mapping[str, Any], facts: Facts) -> None:
        self.recipe, self.given, self.facts = recipe, given, facts
        self.values = dict(values)
        self.faults: list[Fault] = []

    def choose(self, wanted: str) -> ChosenPreset:
        for index, preset in enumerate(self.recipe.presets):
            if preset.name == wanted or (wanted == AUTO and self.holds(preset.when, f"/presets/{index}/when")):
                return self.take(preset, f"/presets/{index}")
        return ChosenPreset(name=NONE, facts=self.facts)

    def take(self, preset: Preset, pointer: str) -> ChosenPreset:
        reasons: dict[str, str] = {}
        kept: dict[str, Any] = {}
        for name, rule in preset.values.items():
            place = f"{pointer}/values/{name}"
            if not self.holds(rule.when, f"{place}/when"):
                continue
            value, problems = self.value(name, rule)
            if name not in self.given:
                self.values[name], reasons[name] = value, rule.because
                self.faults += [self.recipe.fault(f"{place}/value", f"{problem}; set {name} yourself") for problem in problems]
            elif not problems:
                kept[name] = value
        advice = [each.text for n, each in enumerate(preset.advice) if self.holds(each.when, f"{pointer}/advice/{n}/when")]
        return ChosenPreset(name=preset.name, facts=self.facts, reasons=reasons, kept=kept, advice=tuple(advice))

    def seen(self) -> dict[str, Any]:
        """Return what an expression or template may name, as it is by now."""
        parameters = {name: value for name, value in self.values.items() if name != PARAMETER}
        return {**parameters, **dataclasses.asdict(self.facts)}

    def holds(self, when: str, pointer: str) -> bool:
        try:
            return evaluate(when, self.seen()) if when else True
        except RenderError as error:
            self.faults.append(self.recipe.fault(pointer, str(error)))
            return False

    def value(self, name: str, rule: PresetValue) -> tuple[Any, list[str]]:
        """Return a value and what is wrong with it."""
        schema, value = self.recipe.parameters[name], rule.value
        if is_template(value):
            try:
                value = parse_value(schema, render_text(value, self.seen()).strip())
            except RenderError as error:
                return None, [str(error)]
        problems = value_problems(schema, value)
        return (None, problems) if problems else (unified(schema, value), [])
