"""Parameters: text from the command line or values from a request, to complete, typed, checked values; all faults at once.

Rules for editing: a parameter's schema says all that is checked; nothing here knows a tool. Messages show the allowed values, never
a value that might be secret: secrets are not parameters. Pure.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from remote_trainer.errors import Fault, RecipeError
from remote_trainer.recipe.recipe import Recipe

MAX_VALUE = 64 * 1024  # characters of one value as JSON
MAX_ITEMS = 1000

_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")
_ARTICLE = {"string": "text", "integer": "a whole number", "number": "a number", "boolean": "true or false", "array": "a list"}


def parse_settings(recipe: Recipe, settings: Sequence[str]) -> dict[str, Any]:
    """Return the values that ``key=value`` texts set, typed.

    RecipeError lists every fault: of the texts, of the values, and parameters that are required and missing.
    """
    values: dict[str, Any] = {}
    faults: list[Fault] = []
    for setting in settings:
        name, equals, text = setting.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            faults.append(Fault(f"{setting!r} is not of the form key=value"))
        elif name in values:
            faults.append(_fault(name, "is set twice"))
        elif name not in recipe.parameters:
            faults.append(_unknown(recipe, name))
            continue
        else:
            values[name] = parse_value(recipe.parameters[name], text)
    faults += parameter_faults(recipe, values)
    if faults:
        raise _error(recipe, faults)
    return values


def resolve(recipe: Recipe, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return every parameter of the recipe with its value, its default, or None. RecipeError lists all faults."""
    if faults := parameter_faults(recipe, values):
        raise _error(recipe, faults)
    return {name: unified(schema, values.get(name, schema.get("default"))) for name, schema in recipe.parameters.items()}


def parameter_faults(recipe: Recipe, values: Mapping[str, Any]) -> list[Fault]:
    """Return everything wrong with the values given for a recipe."""
    faults = [_unknown(recipe, name) for name in values if name not in recipe.parameters]
    for name, schema in recipe.parameters.items():
        if name in values:
            faults += [_fault(name, problem) for problem in value_problems(schema, values[name])]
        elif schema.get("required"):
            faults.append(_fault(name, f"must be given: {allowed(schema)}; {schema['description']}"))
    return faults


def value_problems(schema: Mapping[str, Any], value: Any) -> list[str]:
    """Return what is wrong with one value, each as the rest of a sentence."""
    kind = schema["type"]
    if not _is(kind, value):
        return [f"must be {allowed(schema)}, not {_shown(value)}"]
    if len(json.dumps(value)) > MAX_VALUE:
        return [f"is longer than {MAX_VALUE} characters"]
    if "\\u0000" in json.dumps(value):
        return ["holds a NUL character"]
    if kind == "array":
        return _array_problems(schema, value)
    if not _within(schema, value):
        return [f"must be {allowed(schema)}, not {_shown(value)}"]
    return []


def allowed(schema: Mapping[str, Any]) -> str:
    """Return in words what a parameter takes: ``a whole number, 1 to 64 px``."""
    if "enum" in schema:
        return "one of " + ", ".join(_shown(choice) for choice in schema["enum"])
    kind = schema["type"]
    words = [_ARTICLE[kind]]
    if kind == "array":
        words = [f"a list of {schema.get('items', {}).get('type', 'string')}s"]
        words += _bounds(schema.get("minItems"), schema.get("maxItems"), " items")
    low = _edge(schema, "minimum", "exclusiveMinimum", "above ")
    high = _edge(schema, "maximum", "exclusiveMaximum", "below ")
    words += _bounds(low, high, f" {schema['x-unit']}" if "x-unit" in schema else "")
    words += _bounds(schema.get("minLength"), schema.get("maxLength"), " characters")
    if "multipleOf" in schema:
        words.append(f"a multiple of {schema['multipleOf']}")
    if "pattern" in schema:
        words.append(f"matching {schema['pattern']}")
    return ", ".join(words)


def _edge(schema: Mapping[str, Any], inclusive: str, exclusive: str, word: str) -> Any:
    if exclusive in schema:
        return f"{word}{schema[exclusive]:g}"
    return f"{schema[inclusive]:.15g}" if inclusive in schema else None


def _bounds(low: Any, high: Any, unit: str) -> list[str]:
    if low is None and high is None:
        return [unit.strip()] if unit and "item" not in unit and "character" not in unit else []
    if high is None:
        return [f"{low}{unit} or more"]
    return [f"{low} to {high}{unit}" if low is not None else f"at most {high}{unit}"]


def _is(kind: str, value: Any) -> bool:
    match kind:
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "array":
            return isinstance(value, list | tuple)
        case _:
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            # Beyond 2^53 a JSON reader may round: refuse rather than train with another seed than was asked for.
            return number and abs(value) <= 2**53 and (kind == "number" or value == int(value))


def _within(schema: Mapping[str, Any], value: Any) -> bool:
    from jsonschema import Draft202012Validator  # slow to import, and not every command needs it

    rules = {key: rule for key, rule in schema.items() if key not in ("default", "required", "description", "multipleOf")}
    step = schema.get("multipleOf")
    # Decimal steps (0.1) never divide floats exactly.
    fits = step is None or math.isclose(value / step, round(value / step), rel_tol=1e-9)
    return fits and Draft202012Validator(rules).is_valid(value)


def _array_problems(schema: Mapping[str, Any], items: Sequence[Any]) -> list[str]:
    if len(items) > MAX_ITEMS:
        return [f"has {len(items)} items, more than {MAX_ITEMS} are not allowed"]
    if not schema.get("minItems", 0) <= len(items) <= schema.get("maxItems", MAX_ITEMS):
        return [f"must be {allowed(schema)}, not {len(items)}"]
    if schema.get("uniqueItems") and len({json.dumps(item) for item in items}) < len(items):
        return ["has an item twice"]
    inner = schema.get("items", {"type": "string"})
    return [f"item {number} {problem}" for number, item in enumerate(items, 1) for problem in value_problems(inner, item)]


def parse_value(schema: Mapping[str, Any], text: str) -> Any:
    """Return the value a text means for this schema; text that means none stays text and fails the check with it."""
    kind = schema["type"]
    if kind == "string":
        return text
    if kind == "array":
        return _parse_array(schema, text)
    if kind == "boolean":
        lower = text.strip().lower()
        return True if lower in _TRUE else False if lower in _FALSE else text
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text


def _parse_array(schema: Mapping[str, Any], text: str) -> Any:
    if text.lstrip().startswith("["):
        try:
            return json.loads(text)
        except ValueError:
            return text
    items = schema.get("items", {"type": "string"})
    return [parse_value(items, part.strip()) for part in text.split(",")] if text.strip() else []


def unified(schema: Mapping[str, Any], value: Any) -> Any:
    """Return equal values as one, so that 1 and 1.0 make the same plan."""
    match schema["type"]:
        case _ if value is None:
            return None
        case "integer":
            return int(value)
        case "number":
            return float(value)
        case "array":
            return [unified(schema.get("items", {"type": "string"}), item) for item in value]
    return value


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else text[:57] + "…"


def _unknown(recipe: Recipe, name: str) -> Fault:
    if name.upper() in {secret.name for secret in recipe.secrets}:
        return _fault(
            name, f"is the secret {name.upper()}: secrets are set in the environment or the configuration, never as parameters"
        )
    near = get_close_matches(name, recipe.parameters, n=1)
    known = ", ".join(recipe.parameters) or "none"
    return _fault(name, "is not a parameter; " + (f"did you mean {near[0]!r}?" if near else f"there are: {known}"))


def _fault(name: str, problem: str) -> Fault:
    return Fault(problem, field=f"/{name}")


def _error(recipe: Recipe, faults: list[Fault]) -> RecipeError:
    return RecipeError(f"the parameters do not fit {recipe.tool} (see `remote-trainer tools show {recipe.tool}`):", tuple(faults))
