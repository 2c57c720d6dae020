"""Checks a YAML document against a JSON Schema and says what is wrong in words, each fault at its line.

Rules for editing: messages are for people who never saw a JSON Schema; a validator without a sentence of its own here keeps the
library's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from remote_trainer.errors import Fault
from remote_trainer.recipe.source import Source, pointer_part

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator

_Error = Any  # jsonschema's ValidationError, whose types promise nothing about the fields that each validator fills

_KINDS = {
    "string": "text", "integer": "a whole number", "number": "a number", "boolean": "true or false", "array": "a list",
    "object": "a mapping", "null": "nothing",
}  # fmt: skip
_PATTERNS = {
    "hyphenated": "lower-case words joined by hyphens",
    "identifier": "a lower-case name of letters, digits and _",
    "variable": "an upper-case variable name that does not begin with RT_",
    "relative": "a plain relative path",
}


@cache
def load_schema(name: str) -> Mapping[str, Any]:
    """Return a published schema of this package by its file name."""
    schema: dict[str, Any] = json.loads(files("remote_trainer.recipe").joinpath(name).read_text(encoding="utf-8"))
    return schema


@cache
def _validator(name: str) -> Draft202012Validator:
    from jsonschema import Draft202012Validator  # slow to import; most commands never need it
    from referencing import Registry, Resource

    recipe: Resource[Any] = Resource.from_contents(load_schema("schema.json"))  # of which others use parts
    return Draft202012Validator(load_schema(name), registry=recipe @ Registry())


def schema_faults(source: Source, schema: str) -> list[Fault]:
    """Return every fault of the document against the schema of this file name, in order of lines."""
    found = [fault for error in _validator(schema).iter_errors(source.data) for fault in _faults(source, error)]
    return sorted(found, key=lambda fault: (fault.line, fault.field))


def _faults(source: Source, error: _Error) -> Iterator[Fault]:
    pointer = "".join(pointer_part(part) for part in error.absolute_path)
    match error.validator:
        case "oneOf" | "anyOf" if error.context:
            yield from _best_branch(source, error, pointer)
        case "additionalProperties":
            known = error.schema.get("properties", {})
            for key in error.instance:
                if key not in known:
                    yield source.fault(pointer + pointer_part(key), f"there is no such field{_meant(key, list(known))}")
        case "propertyNames":
            key = next((part.instance for part in [error, *(error.context or ())]), "")
            yield source.fault(pointer + pointer_part(str(key)), f"the name {key!r} must be {_pattern(error)}")
        case _:
            yield source.fault(_place(pointer, error), _sentence(error))


def _best_branch(source: Source, error: _Error, pointer: str) -> Iterator[Fault]:
    """Speak of the branch that fits the value's kind; if none does, of all of them."""
    inner = [branch for branch in error.context or () if branch.validator not in ("type", "const")]
    if inner:
        for branch in inner:
            yield from _faults(source, branch)
    else:
        yield source.fault(
            pointer, f"{_shown(error.instance)} is none of: " + ", ".join(_branch(b) for b in error.validator_value)
        )


def _branch(schema: Mapping[str, Any]) -> str:
    if "const" in schema:
        return _shown(schema["const"])
    return "a mapping with " + ", ".join(schema.get("required", schema.get("properties", ())))


def _place(pointer: str, error: _Error) -> str:
    """A key that breaks a rule for names is the place, not the mapping around it."""
    in_names = "propertyNames" in error.absolute_schema_path
    return pointer + pointer_part(str(error.instance)) if in_names else pointer


def _sentence(error: _Error) -> str:
    value, rule = error.instance, error.validator_value
    match error.validator:
        case "type":
            kinds = [rule] if isinstance(rule, str) else rule
            return f"must be {' or '.join(_KINDS[kind] for kind in kinds)}, not {_shown(value)}"
        case "required":
            missing = [key for key in rule if key not in value]
            return f"the field {missing[0]!r} is missing" if len(missing) == 1 else f"the fields {', '.join(missing)} are missing"
        case "enum":
            return f"must be one of {', '.join(map(_shown, rule))}, not {_shown(value)}"
        case "pattern":
            return f"{_shown(value)} must be {_pattern(error)}"
        case "minimum" | "exclusiveMinimum":
            return f"must be {'at least' if error.validator == 'minimum' else 'above'} {rule}, not {value}"
        case "maximum" | "exclusiveMaximum":
            return f"must be {'at most' if error.validator == 'maximum' else 'below'} {rule}, not {value}"
        case "minLength" | "minItems" if not value:
            return "must not be empty"
        case "maxLength":
            return f"has {len(value)} characters, at most {rule} are allowed"
        case "maxItems" | "maxProperties":
            return f"has {len(value)} items, at most {rule} are allowed"
        case "uniqueItems":
            return "has an item twice"
    return str(error.message)[:200]


def _pattern(error: _Error) -> str:
    """Return in words what the named pattern of the schema asks for."""
    names = load_schema("schema.json")["$defs"]
    rule = next((_PATTERNS[name] for name in _PATTERNS if names[name]["pattern"] == error.schema.get("pattern")), "")
    return rule or f"text that matches {error.schema.get('pattern')}"


def _meant(key: str, known: list[str]) -> str:
    near = get_close_matches(key, known, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; there are: {', '.join(known)}" if known else ""


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else text[:57] + "…"
