"""Recipe and parameters to a frozen plan: everything rendered, nothing left to look up, known by its digest.

Rules for editing: pure. What a step does is decided here once, at submit; a field that changes it belongs to the plan and thus to
its digest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from remote_trainer.errors import Fault, RecipeError
from remote_trainer.model import Facts, Output, OutputKind, Plan, PlannedStep, Resources
from remote_trainer.recipe.presets import PARAMETER, complete
from remote_trainer.recipe.recipe import Recipe, Step
from remote_trainer.recipe.render import RenderError, evaluate, render_shell, render_text

T = TypeVar("T")

MASK = "***"
_SECRET_LIKE = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|API_?KEY|ACCESS_KEY|PRIVATE_KEY)$")


def make_plan(recipe: Recipe, parameters: Mapping[str, Any], facts: Facts | None = None) -> Plan:
    """Return the plan for these parameters (typed, see parameters.py) and data. RecipeError lists every fault."""
    values, preset = complete(recipe, parameters, facts)
    work = _Rendering(recipe, {name: value for name, value in values.items() if not recipe.presets or name != PARAMETER})
    steps = tuple(
        work.step(index, step) for index, step in enumerate(recipe.steps) if work.try_(f"/steps/{index}/when", _wanted, step.when)
    )
    plan = Plan(
        tool=recipe.tool,
        parameters=values,
        steps=steps,
        outputs=tuple(work.output(index, output) for index, output in enumerate(recipe.outputs)),
        patterns=recipe.patterns,
        resources=Resources(**{name: work.amount(name, source) for name, source in recipe.resources.items()}),
        expected_hours=work.hours(recipe.expected_hours),
        image=recipe.image,
        metrics_file=recipe.metrics_file,
        cleanup=work.try_("/cleanup", render_shell, recipe.cleanup) or "",
        required_secrets=tuple(rule.name for rule in recipe.secrets if rule.required and _used(rule.name, steps)),
        health=work.try_("/health", render_shell, recipe.health) or "",
        preset=preset,
    )
    if not steps and not work.faults:
        work.faults.append(recipe.fault("/steps", "no step is left with these parameters: every `when` is false"))
    if work.faults:
        raise RecipeError(f"{recipe.tool} cannot be planned with these parameters:", tuple(work.faults))
    return dataclasses.replace(plan, digest=plan_digest(plan))


def plan_digest(plan: Plan) -> str:
    """Return the SHA-256 (hex) of the plan's canonical JSON without its digest; the same after a way through any store.

    What is told about the preset does not count: its values do, among the parameters.
    """
    document = _canonical(dataclasses.replace(plan, digest="", preset=None))
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def describe_plan(plan: Plan) -> dict[str, Any]:
    """Return the plan as plain data for people to read: secrets by name only, values that look like secrets masked."""
    document = dataclasses.asdict(plan)
    for step in document["steps"]:
        step["env"] = {name: MASK if _SECRET_LIKE.search(name) else value for name, value in step["env"].items()}
        step["secrets"] = dict.fromkeys(step["secrets"], MASK)
    described: dict[str, Any] = json.loads(json.dumps(document))
    return described


def glob_problem(glob: str) -> str:
    """Return why a glob may not be used, empty if it may: it must stay in the output folder."""
    if glob.startswith(("/", "~")):
        return "must be relative to the output folder"
    if ".." in glob.split("/"):
        return "must not leave the output folder"
    if not glob.strip("/ ") or "//" in glob or "/./" in f"/{glob}/" or "\\" in glob or not glob.isprintable():
        return "is not a plain relative path with *, ? or **"
    if any("**" in part and part != "**" for part in glob.split("/")):
        return "has ** as a part of a name: it stands for whole folders"
    return ""


def _canonical(value: Any) -> Any:
    """Return plain data without fields that have their default, so that a field added later changes no digest of today."""
    if dataclasses.is_dataclass(value):
        default = {item.name: item.default for item in dataclasses.fields(value)}
        held = {name: getattr(value, name) for name in default}
        return {name: _canonical(field) for name, field in held.items() if field != default[name]}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    return value


def _used(secret: str, steps: Sequence[PlannedStep]) -> bool:
    return any(secret in step.secrets for step in steps)


def _wanted(when: str, values: Mapping[str, Any]) -> bool:
    return evaluate(when, values) if when else True


class _Rendering:
    """Renders one recipe's templates with one set of values and collects what goes wrong."""

    def __init__(self, recipe: Recipe, values: Mapping[str, Any]) -> None:
        self.recipe, self.values = recipe, values
        self.faults: list[Fault] = []

    def try_(self, pointer: str, render: Callable[[str, Mapping[str, Any]], T], source: str) -> T | None:
        try:
            return render(source, self.values)
        except RenderError as error:
            self.faults.append(self.recipe.fault(pointer, str(error)))
            return None

    def step(self, index: int, step: Step) -> PlannedStep:
        pointer = f"/steps/{index}"
        env = {
            **{name: (f"/environment/{name}", source) for name, source in self.recipe.environment.items()},
            **{name: (f"{pointer}/env/{name}", source) for name, source in step.env.items()},
        }
        return PlannedStep(
            name=step.name,
            run=self.try_(f"{pointer}/run", render_shell, step.run) or "",
            env={name: self.try_(place, render_text, source) or "" for name, (place, source) in env.items()},
            secrets=step.secrets,
            workdir=step.workdir,
            timeout_s=step.timeout_s,
            stop_grace_s=step.stop_grace_s,
            retries=step.retries,
        )

    def amount(self, name: str, source: int | str) -> int:
        text = self.try_(f"/resources/{name}", render_text, str(source)) or ""
        if re.fullmatch(r"\s*[0-9]{1,9}\s*", text):
            return int(text)
        if text:
            self.faults.append(self.recipe.fault(f"/resources/{name}", f"gives {text!r}, which is no whole number"))
        return 0

    def hours(self, source: float | str) -> float:
        text = (self.try_("/expected_hours", render_text, str(source)) or "").strip()
        if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,30})?", text):
            return float(text)
        if text:
            self.faults.append(self.recipe.fault("/expected_hours", f"gives {text!r}, which is no number of hours"))
        return 0.0

    def output(self, index: int, output: Output) -> Output:
        pointer = f"/outputs/{index}/glob"
        glob = self.try_(pointer, render_text, output.glob) or ""
        if glob and (problem := glob_problem(glob)):
            self.faults.append(self.recipe.fault(pointer, f"{glob!r} {problem}"))
        return dataclasses.replace(output, glob=glob, required=output.required or output.kind is OutputKind.FINAL)
