"""Presets in words: those a tool has, and what the one that was chosen did to an order and why.

Rules for editing: made from the documents that ``--json`` prints. A reason is shown wherever there is room for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from remote_trainer.cli import out


def brief(chosen: Mapping[str, Any] | None) -> list[str]:
    """Return a line or two for who has just submitted; none without a preset."""
    if chosen is None:
        return []
    lines = [f"preset {_head(chosen)}"]
    if chosen["set"]:
        lines[0] += f": {out.settings({name: each['value'] for name, each in chosen['set'].items()})}"
    if chosen["kept"]:
        lines.append(f"left as you set it: {out.settings({name: each['value'] for name, each in chosen['kept'].items()})}")
    return lines


def fact(chosen: Mapping[str, Any] | None) -> str:
    """Return which parameters of a job come from a preset; empty without one."""
    if chosen is None:
        return ""
    by = [(f"set {', '.join(chosen['set'])}", chosen["set"]), (f"left {', '.join(chosen['kept'])}", chosen["kept"])]
    return "; ".join([_head(chosen), *(words for words, any_of in by if any_of)])


def explain(chosen: Mapping[str, Any] | None) -> None:
    """Print what a preset has set and why, what the user had set, and its advice."""
    if chosen is None:
        return
    out.line(f"preset      {_head(chosen)}")
    for name, each in chosen["set"].items():
        out.line(f"  {name}={out.value(each['value'])}: {each['because']}")
    for name, each in chosen["kept"].items():
        out.line(f"  {name}={out.value(each['value'])} stays as you set it; the preset has {out.value(each['preset'])}")
    for sentence in chosen["advice"]:
        out.line(f"  advice: {sentence}")


def describe(preset: Mapping[str, Any]) -> None:
    """Print a preset of a tool."""
    when = f" (when {preset['when']})" if preset["when"] else ""
    about = f": {preset['description']}" if preset["description"] else ""
    out.line(f"preset {preset['name']}{when}{about}")
    for name, each in preset["values"].items():
        out.line(f"  {name} = {_source(each['value'])}{_condition(each)}: {each['because']}")
    for each in preset["advice"]:
        out.line(f"  advice{_condition(each)}: {each['text']}")


def _source(value: Any) -> str:
    """Return a value, or what it is computed from."""
    text = out.value(value)
    inner = text.removeprefix("{{").removesuffix("}}")
    return inner.strip() if len(inner) == len(text) - 4 and "{" not in inner else text


def _condition(each: Mapping[str, Any]) -> str:
    return f" (when {each['when']})" if each["when"] else ""


def _head(chosen: Mapping[str, Any]) -> str:
    facts = chosen["facts"]
    data = out.plural(facts["images"], "image") if facts["images"] else out.plural(facts["files"], "file")
    return f"none: no preset is for {data}" if chosen["name"] == "none" else f"{chosen['name']} for {data}"
