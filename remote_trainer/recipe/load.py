"""tool.yaml to a Recipe, or every fault in it at once.

First the file is read (source.py), then checked against schema.json (schema.py), then for what a schema cannot say: templates,
regular expressions, names used twice or not declared, defaults that break their own rules. Rules for editing: a check yields faults
and never raises; it must bear a document that an earlier check found wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from remote_trainer.errors import Fault, NotFound, RecipeError
from remote_trainer.model import Output, OutputKind, Pattern, Retries
from remote_trainer.recipe.doubtful import items, mapping, meant, twice
from remote_trainer.recipe.load_presets import build_presets, preset_faults
from remote_trainer.recipe.parameters import value_problems
from remote_trainer.recipe.plan import glob_problem
from remote_trainer.recipe.presets import PARAMETER, with_parameter
from remote_trainer.recipe.recipe import InputRule, Recipe, SecretRule, Step
from remote_trainer.recipe.render import RESERVED, check_expression, check_template
from remote_trainer.recipe.schema import schema_faults
from remote_trainer.recipe.source import MAX_BYTES, Source, pointer_part, read_source

RECIPE_FILE = "tool.yaml"


def load_recipe(path: Path) -> Recipe:
    """Return the checked recipe of a file. RecipeError lists all its faults; NotFound if there is no such file."""
    source, faults = _check(path)
    if faults:
        raise RecipeError(
            f"the recipe {path} cannot be used ({len(faults)} fault{'s' if len(faults) > 1 else ''}):", tuple(faults)
        )
    return _build(source)


def validate(path: Path) -> list[Fault]:
    """Return everything wrong with a recipe: a tool.yaml, or the folder it lies in."""
    return _check(path / RECIPE_FILE if path.is_dir() else path)[1]


def override_presets(recipe: Recipe, path: Path) -> Recipe:
    """Return the recipe with the presets of a file in place of its own. RecipeError lists all faults of the file; NotFound."""
    own = {name: schema for name, schema in recipe.parameters.items() if name != PARAMETER or not recipe.presets}
    source = read_source(read_limited(path), str(path))
    faults = [*source.faults, *(schema_faults(source, "presets.schema.json") if source.data is not None else ())]
    if isinstance(source.data, dict):
        wrong = {fault.field for fault in faults}
        faults += [fault for fault in preset_faults(source, own) if fault.field not in wrong]
    if faults:
        faults.sort(key=lambda fault: (fault.line, fault.field))
        raise RecipeError(f"the presets {path} cannot be used with {recipe.tool}:", tuple(faults))
    presets = build_presets(source.data)
    lines = {**{pointer: line for pointer, line in recipe.lines.items() if not pointer.startswith("/presets")}, **source.lines}
    parameters = with_parameter(own, presets)
    return replace(recipe, presets=presets, parameters=parameters, lines=lines, presets_file=source.file)


def read_limited(path: Path) -> bytes:
    """Return the file's bytes, up to one more than is ever accepted. NotFound if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise NotFound(f"cannot read {path}: {error.strerror or error}") from error


def _check(path: Path) -> tuple[Source, list[Fault]]:
    source = read_source(read_limited(path), str(path))
    faults = list(source.faults)
    if source.data is not None:
        faults += schema_faults(source, "schema.json")
    if isinstance(source.data, dict):
        wrong = {fault.field for fault in faults}
        # What the schema already refused is not refused again in other words.
        faults += [fault for fault in _meaning_faults(source, path) if fault.field not in wrong]
    return source, sorted(faults, key=lambda fault: (fault.line, fault.field))


def _meaning_faults(source: Source, path: Path) -> Iterator[Fault]:
    data = source.data
    yield from _name_faults(source, path)
    yield from _parameter_faults(source)
    yield from _step_faults(source)
    yield from _template_faults(source)
    yield from _pattern_faults(source)
    yield from _output_faults(source)
    yield from preset_faults(source, mapping(data.get("parameters")))
    for index, name in enumerate(items(data.get("files"))):
        if isinstance(name, str) and ".." in name.split("/"):
            yield source.fault(f"/files/{index}", f"{name!r} must not leave its folder")
    for name, amount in mapping(data.get("resources")).items():
        if isinstance(amount, str) and "{" not in amount:
            yield source.fault(f"/resources/{name}", f"must be a whole number, or a template that gives one, not {amount!r}")
    for name, rule in mapping(data.get("inputs")).items():
        parameter = mapping(rule).get("parameter")
        if isinstance(parameter, str) and parameter not in mapping(data.get("parameters")):
            names = mapping(data.get("parameters"))
            yield source.fault(f"/inputs/{name}/parameter", f"{parameter!r} is not a parameter{meant(parameter, names)}")


def _name_faults(source: Source, path: Path) -> Iterator[Fault]:
    """A tool's place must agree with what it says of itself."""
    if path.name != RECIPE_FILE:
        return
    folder = path.resolve().parent
    for key, place in (("name", folder.parent.name), ("version", folder.name)):
        said = source.data.get(key)
        if said is not None and str(said) != place:
            yield source.fault(
                f"/{key}", f"is {said!r}, but the folder is named {place!r} (tools/<name>/<version>/{RECIPE_FILE})"
            )


def _parameter_faults(source: Source) -> Iterator[Fault]:
    for name, schema in mapping(source.data.get("parameters")).items():
        pointer = f"/parameters{pointer_part(name)}"
        if name in RESERVED:
            yield source.fault(pointer, f"the name {name!r} has a meaning in templates: choose another")
        if re.search(r"(password|passwd|secret|api_key|access_key|private_key)$", str(name)):
            yield source.fault(
                pointer, f"{name!r} looks like a secret: declare it under secrets; parameters are stored and shown"
            )
        if not isinstance(schema, dict) or schema.get("type") not in ("string", "integer", "number", "boolean", "array"):
            continue
        if "default" in schema and schema.get("required") is True:
            yield source.fault(f"{pointer}/required", "a parameter with a default is never required: remove one of both")
        if isinstance(schema.get("pattern"), str) and (problem := _regex_problem(schema["pattern"])):
            yield source.fault(f"{pointer}/pattern", problem)
        elif "default" in schema:
            try:
                problems = value_problems(schema, schema["default"])
            except (TypeError, ValueError, KeyError):
                continue  # the rules themselves are wrong, which the schema has said
            for problem in problems:
                yield source.fault(f"{pointer}/default", f"the default breaks its own rules: {problem}")


def _step_faults(source: Source) -> Iterator[Fault]:
    declared = mapping(source.data.get("secrets"))
    seen: dict[str, int] = {}
    for index, step in enumerate(items(source.data.get("steps"))):
        if not isinstance(step, dict):
            continue
        pointer = f"/steps/{index}"
        yield from twice(source, f"{pointer}/name", step.get("name"), seen)
        if ".." in str(step.get("workdir", "")).split("/"):
            yield source.fault(f"{pointer}/workdir", "must not leave the work folder")
        for number, name in enumerate(items(step.get("secrets"))):
            if isinstance(name, str) and name not in declared:
                yield source.fault(
                    f"{pointer}/secrets/{number}", f"{name!r} is not declared under secrets{meant(name, declared)}"
                )
    if ".." in str(source.data.get("metrics_file", "")).split("/"):
        yield source.fault("/metrics_file", "must not leave the work folder")


def _template_faults(source: Source) -> Iterator[Fault]:
    names = list(mapping(source.data.get("parameters")))
    for pointer, text, kind in _templates(source.data):
        if not isinstance(text, str):
            continue
        found = check_expression(text, names) if kind == "when" else check_template(text, names, quoted=kind == "shell")
        for line, message in found:
            yield source.fault(pointer, message, text_line=line)


def _templates(data: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """Yield pointer, text and kind (shell, text, when) of every template."""
    for key in ("health", "cleanup"):
        yield f"/{key}", data.get(key), "shell"
    yield "/expected_hours", data.get("expected_hours"), "text"
    for name, value in mapping(data.get("resources")).items():
        yield f"/resources{pointer_part(name)}", value, "text"
    for name, value in mapping(data.get("environment")).items():
        yield f"/environment{pointer_part(name)}", value, "text"
    for index, step in enumerate(items(data.get("steps"))):
        step = mapping(step)
        yield f"/steps/{index}/run", step.get("run"), "shell"
        yield f"/steps/{index}/when", step.get("when"), "when"
        for name, value in mapping(step.get("env")).items():
            yield f"/steps/{index}/env{pointer_part(name)}", value, "text"
    for index, output in enumerate(items(data.get("outputs"))):
        yield f"/outputs/{index}/glob", mapping(output).get("glob"), "text"


def _pattern_faults(source: Source) -> Iterator[Fault]:
    for index, pattern in enumerate(items(source.data.get("patterns"))):
        pointer, regex = f"/patterns/{index}/regex", mapping(pattern).get("regex")
        if not isinstance(regex, str):
            continue
        if problem := _regex_problem(regex):
            yield source.fault(pointer, problem)
            continue
        groups = re.compile(regex).groupindex
        if pattern.get("kind") == "progress" and not {"step", "total"} <= set(groups):
            yield source.fault(pointer, "a progress pattern needs the groups (?P<step>…) and (?P<total>…)")
        elif not groups:
            yield source.fault(pointer, "a metric pattern needs a named group: (?P<loss>…)")


def _output_faults(source: Source) -> Iterator[Fault]:
    seen: dict[str, int] = {}
    checkpoints = False
    for index, output in enumerate(items(source.data.get("outputs"))):
        if not isinstance(output, dict):
            continue
        pointer = f"/outputs/{index}"
        yield from twice(source, f"{pointer}/name", output.get("name"), seen)
        glob = output.get("glob")
        if isinstance(glob, str) and "{" not in glob and (problem := glob_problem(glob)):
            yield source.fault(f"{pointer}/glob", f"{glob!r} {problem}")
        if output.get("kind") == "checkpoint":
            checkpoints = True
            if "marker" not in output:
                yield source.fault(pointer, "a checkpoint needs a marker: the file in its folder that is written last")
    if checkpoints and "resume" not in source.data:
        yield source.fault(
            "/outputs", "there is an output of kind checkpoint, but no resume: say how the steps find a restored one"
        )


def _regex_problem(regex: str) -> str:
    try:
        re.compile(regex)
    except (re.error, OverflowError, RecursionError) as error:
        return f"not a regular expression: {error}"
    return ""


# ------------------------------------------------------------------------------------------------ a correct document


def _build(source: Source) -> Recipe:
    data = source.data
    runtime = data.get("runtime", "bare")
    rules = {name: mapping(rule) for name, rule in data.get("inputs", {}).items()}
    secrets = {name: mapping(rule) for name, rule in data.get("secrets", {}).items()}
    presets = build_presets(data)
    same = {key: data[key] for key in ("expected_hours", "health", "metrics_file", "resume", "cleanup") if key in data}
    return Recipe(
        name=data["name"],
        version=data["version"],
        description=data["description"].strip(),
        parameters=with_parameter(data.get("parameters", {}), presets),
        presets=presets,
        resources=data.get("resources", {}),
        image=runtime["image"] if isinstance(runtime, dict) else "",
        files=tuple(data.get("files", ())),
        inputs=tuple(InputRule(name=name, **rule) for name, rule in rules.items()),
        secrets=tuple(SecretRule(name=name, **rule) for name, rule in secrets.items()),
        environment=_environment(data.get("environment", {})),
        steps=tuple(_step(step) for step in data["steps"]),
        patterns=tuple(Pattern(**pattern) for pattern in data.get("patterns", ())),
        outputs=tuple(_output(output) for output in data.get("outputs", ())),
        file=source.file,
        lines=source.lines,
        **same,
    )


def _step(data: Mapping[str, Any]) -> Step:
    retries = data.get("retries", {})
    return Step(
        name=data["name"],
        run=data["run"],
        when=data.get("when", ""),
        env=_environment(data.get("env", {})),
        secrets=tuple(data.get("secrets", ())),
        workdir=data.get("workdir", "."),
        # Numbers become what the plan says they are, so that its digest survives a store that writes 60.0 for 60.
        timeout_s=float(data.get("timeout_s", 0)),
        stop_grace_s=float(data.get("stop_grace_s", 30)),
        retries=Retries(
            max=int(retries.get("max", 0)),
            backoff_s=float(retries.get("backoff_s", 10)),
            backoff_max_s=float(retries.get("backoff_max_s", 300)),
            on_exit=tuple(int(code) for code in retries.get("on_exit", ())),
        ),
    )


def _output(data: Mapping[str, Any]) -> Output:
    return Output(**{**data, "kind": OutputKind(data.get("kind", "artifact")), "keep": int(data.get("keep", 0))})


def _environment(data: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value) for name, value in data.items()
    }
