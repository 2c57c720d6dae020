"""``remote-trainer tools``: what can be run, whether a recipe is right, and a new one to begin with.

Rules for editing: finding tools needs settings only; no store is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from remote_trainer.cli import out
from remote_trainer.cli.options import Json, Presets
from remote_trainer.cli.presets import describe
from remote_trainer.errors import RecipeError, RemoteTrainerError

if TYPE_CHECKING:
    from remote_trainer.recipe.recipe import Recipe

ToolArgument = Annotated[str, typer.Argument(metavar="TOOL", help="NAME, or NAME@VERSION")]


def register(app: typer.Typer) -> None:
    """Add the noun and its verbs."""
    group = typer.Typer(help="What can be run: list, show, validate and begin tools.", no_args_is_help=True)
    group.command("list")(list_tools)
    group.command("show")(show)
    group.command("validate")(validate)
    group.command("new")(new)
    app.add_typer(group, name="tools")


def list_tools(as_json: Json = False) -> None:
    """List all tools that are found, with where they lie."""
    from remote_trainer import plugins
    from remote_trainer.config import load
    from remote_trainer.recipe.load import load_recipe

    rows = []
    for tool in plugins.find_tools(load().tools_path):
        try:
            description, fault = load_recipe(tool.file).description, None
        except RemoteTrainerError as error:
            description, fault = "", str(error)
        rows.append({"tool": tool.ref, "description": description, "file": str(tool.file), "fault": fault})
    if as_json:
        out.document({"tools": rows})
        return
    for row in rows:
        out.line(f"{row['tool']}  {row['file']}")
        out.line(f"    {row['description'] or 'cannot be used: remote-trainer tools validate ' + str(row['tool'])}")


def show(tool: ToolArgument, presets: Presets = None, as_json: Json = False) -> None:
    """Show a tool's parameters with their defaults, its presets with their reasons, its inputs, secrets, steps and outputs."""
    from remote_trainer import plugins
    from remote_trainer.config import load
    from remote_trainer.recipe.load import load_recipe, override_presets

    recipe = load_recipe(plugins.find_tool(tool, load().tools_path))
    if presets is not None:
        recipe = override_presets(recipe, Path(presets).expanduser())
    document = _document(recipe)
    if as_json:
        out.document(document)
    else:
        _show(document)


def validate(
    tool: Annotated[str, typer.Argument(metavar="TOOL|PATH", help="NAME[@VERSION], a tool.yaml, or its folder")],
    as_json: Json = False,
) -> None:
    """Check a recipe completely: every fault at once, with file, line and field."""
    from remote_trainer import plugins
    from remote_trainer.config import load

    path = Path(tool)
    file = path if path.exists() else plugins.find_tool(tool, load().tools_path)
    if faults := plugins.validate_tool(file):
        raise RecipeError(f"{file} cannot be used ({out.plural(len(faults), 'fault')}):", tuple(faults))
    if as_json:
        out.document({"file": str(file), "valid": True})
    else:
        out.line(f"{file} is valid")


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Lower-case words joined by hyphens")],
    folder: Annotated[Path, typer.Option("--folder", metavar="DIR", help="The folder with tools to put it into")] = Path("tools"),
    as_json: Json = False,
) -> None:
    """Write a small recipe that works, to be changed into what is wanted."""
    from remote_trainer.recipe.skeleton import write_skeleton

    file = write_skeleton(folder, name)
    if as_json:
        out.document({"tool": f"{name}@1", "file": str(file)})
    else:
        out.line(f"wrote {file}; check it with: remote-trainer tools validate {file}")


def _document(recipe: Recipe) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "tool": recipe.tool,
        "description": recipe.description,
        "file": recipe.file,
        "parameters": {name: dict(schema) for name, schema in recipe.parameters.items()},
        "presets": [asdict(preset) for preset in recipe.presets],
        "inputs": [{"name": rule.name, "required": rule.required, "description": rule.description} for rule in recipe.inputs],
        "secrets": [{"name": rule.name, "required": rule.required, "description": rule.description} for rule in recipe.secrets],
        "resources": dict(recipe.resources),
        "image": recipe.image,
        "steps": [{"name": step.name, "when": step.when, "timeout_s": step.timeout_s} for step in recipe.steps],
        "outputs": [{"name": each.name, "kind": each.kind.value, "glob": each.glob} for each in recipe.outputs],
        "resume": recipe.resume,
    }


def _show(tool: Mapping[str, Any]) -> None:
    out.line(f"{tool['tool']}  {tool['file']}\n{tool['description']}\n")
    if tool["parameters"]:
        rows = [(name, *_parameter(schema)) for name, schema in tool["parameters"].items()]
        out.table(("parameter (--set)", "type", "default", "meaning"), rows)
    for preset in tool["presets"]:
        describe(preset)
    for kind in ("inputs", "secrets"):
        for rule in tool[kind]:
            needed = "required" if rule["required"] else "optional"
            out.line(f"{kind[:-1]} {rule['name']} ({needed}): {rule['description']}")
    if tool["resources"]:
        out.line("needs " + ", ".join(f"{name} {value}" for name, value in tool["resources"].items()))
    out.line("steps: " + ", ".join(step["name"] + (f" (when {step['when']})" if step["when"] else "") for step in tool["steps"]))
    for each in tool["outputs"]:
        out.line(f"output {each['name']} ({each['kind']}): {each['glob']}")


def _parameter(schema: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return type, default and meaning with the bounds."""
    bounds = [f"{key} {schema[key]}" for key in ("minimum", "maximum") if key in schema]
    bounds += [f"one of {', '.join(map(str, schema['enum']))}"] if "enum" in schema else []
    unit = f" [{schema['x-unit']}]" if "x-unit" in schema else ""
    default = out.value(schema.get("default", "required" if schema.get("required") else ""))
    meaning = f"{schema.get('description', '')}{unit}" + (f" ({', '.join(bounds)})" if bounds else "")
    return str(schema.get("type", "any")), default, meaning
