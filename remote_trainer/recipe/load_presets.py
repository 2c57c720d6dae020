"""The presets of a recipe, or of a file that stands in for them: what is wrong with them, and the values they are.

Rules for editing: as in load.py. A fault lies in the document that holds the presets, whosever the parameters are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from remote_trainer.errors import Fault
from remote_trainer.recipe.doubtful import items, mapping, meant, twice
from remote_trainer.recipe.parameters import value_problems
from remote_trainer.recipe.presets import AUTO, FACTS, NONE, PARAMETER, is_template
from remote_trainer.recipe.recipe import Advice, Preset, PresetValue
from remote_trainer.recipe.render import check_expression, check_template
from remote_trainer.recipe.source import Source, pointer_part


def preset_faults(source: Source, declared: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield what is wrong with a document's presets for a tool with these parameters."""
    presets = items(source.data.get("presets"))
    for name in (PARAMETER, *FACTS) if presets else ():
        if name in declared:
            yield source.fault("/presets", f"there is a parameter {name!r}, which means something else beside presets: rename it")
    names = [*declared, *FACTS]
    seen: dict[str, int] = {}
    for index, preset in enumerate(map(mapping, presets)):
        pointer = f"/presets/{index}"
        yield from twice(source, f"{pointer}/name", preset.get("name"), seen)
        if preset.get("name") in (AUTO, NONE):
            yield source.fault(
                f"{pointer}/name", f"{preset['name']!r} is what --set {PARAMETER}= takes besides names: choose another"
            )
        yield from _when_faults(source, pointer, preset, names)
        for name, rule in mapping(preset.get("values")).items():
            place = f"{pointer}/values{pointer_part(name)}"
            if name not in declared:
                yield source.fault(place, f"{name!r} is not a parameter{meant(name, declared)}")
            yield from _value_faults(source, f"{place}/value", mapping(rule).get("value"), mapping(declared.get(name)), names)
            yield from _when_faults(source, place, mapping(rule), names)
        for number, advice in enumerate(items(preset.get("advice"))):
            yield from _when_faults(source, f"{pointer}/advice/{number}", mapping(advice), names)


def build_presets(data: Mapping[str, Any]) -> tuple[Preset, ...]:
    """Return the presets of a correct document."""
    return tuple(
        Preset(
            **{
                **preset,
                "values": {name: PresetValue(**rule) for name, rule in preset["values"].items()},
                "advice": tuple(Advice(**each) for each in preset.get("advice", ())),
            }
        )
        for preset in data.get("presets", ())
    )


def _when_faults(source: Source, pointer: str, holder: Mapping[str, Any], names: Collection[str]) -> Iterator[Fault]:
    if isinstance(when := holder.get("when"), str):
        for line, message in check_expression(when, names):
            yield source.fault(f"{pointer}/when", message, text_line=line)


def _value_faults(source: Source, pointer: str, value: Any, schema: Mapping[str, Any], names: Collection[str]) -> Iterator[Fault]:
    if is_template(value):
        for line, message in check_template(value, names, quoted=False):
            yield source.fault(pointer, message, text_line=line)
        return
    if value is None or not schema:
        return
    try:
        problems = value_problems(schema, value)
    except (TypeError, ValueError, KeyError):
        return  # the parameter's own rules are wrong, which is told there
    for problem in problems:
        yield source.fault(pointer, problem)
