"""How an option is declared once and read from everywhere: a field with its Flag is a flag of the command line and a key of a file.

    Settings             what a program's options derive from; flag(…) makes a field, revised(…) the same field with another default
    parse(…)             the options: flags over file over environment over default; mistakes end the program with code 2
    flags(kind)          every field with its type, default and Flag

Editing rules: standard library only, so that a wrong flag is reported before torch is loaded; nothing here knows an option's name.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_type_hints

Kind = TypeVar("Kind", bound="Settings")


@dataclass(frozen=True, slots=True)
class Flag:
    """What the command line says about one option; `low` and `high` are inclusive limits."""

    group: str
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    env: str = ""
    free: bool = False
    """Whether a resumed training may change it: it says where things are or what is reported, not what is learnt."""


def flag(default: Any, group: str, text: str, **more: Any) -> Any:
    """One field of Settings with its Flag beside it."""
    return field(default=default, metadata={"flag": Flag(group, text, **more)})


def revised(of: type[Settings], name: str, default: Any, text: str = "", **more: Any) -> Any:
    """A field of a derived class that has another default, and perhaps another help, than that of `of`."""
    (known,) = (f.metadata["flag"] for f in dataclasses.fields(of) if f.name == name)
    return field(default=default, metadata={"flag": dataclasses.replace(known, help=text or known.help, **more)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options of one program."""

    PROGRAM: ClassVar[str]
    """What the program does, in a sentence."""
    ENDS: ClassVar[str]
    """Its exit codes."""
    GROUPS: ClassVar[Sequence[str]]
    """The titles that its flags are listed under, in order."""

    def problems(self) -> list[str]:
        """Everything wrong with the values, each as one sentence that names the flag."""
        found = []
        for name, (_, _, about) in flags(type(self)).items():
            value, shown = getattr(self, name), "--" + name.replace("_", "-")
            if about.low is not None and not value >= about.low:
                found.append(f"{shown} is {value}, it must be at least {about.low:g}")
            if about.high is not None and not value <= about.high:
                found.append(f"{shown} is {value}, it must be at most {about.high:g}")
        return found


def flags(kind: type[Settings]) -> dict[str, tuple[type, Any, Flag]]:
    """name → (type, default, Flag) of every option of a program, by group and in order."""
    kinds = get_type_hints(kind)
    fields = sorted(dataclasses.fields(kind), key=lambda f: kind.GROUPS.index(f.metadata["flag"].group))
    return {f.name: (kinds[f.name], f.default, f.metadata["flag"]) for f in fields}


def build_parser(kind: type[Settings], env: Mapping[str, str], prog: str) -> argparse.ArgumentParser:
    """The command line; the environment replaces defaults where a flag names a variable."""
    parser = argparse.ArgumentParser(prog=prog, description=kind.PROGRAM, epilog=f"Exit codes: {kind.ENDS}.", allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", help="JSON object of options, named as the flags are")
    groups = {title: parser.add_argument_group(title) for title in kind.GROUPS}
    for name, (form, default, about) in flags(kind).items():
        default = env.get(about.env) or default
        source = f", or ${about.env}" if about.env else ""
        text = f"{about.help} (default {default}{source})" if default not in ("", False) else f"{about.help}{source}"
        arguments: dict[str, Any] = {"help": text.replace("%", "%%"), "default": default}
        if form is bool:
            arguments["action"] = argparse.BooleanOptionalAction
        else:
            arguments |= {"type": form, "choices": about.choices or None, "metavar": None if about.choices else name.upper()}
        groups[about.group].add_argument("--" + name.replace("_", "-"), **arguments)
    return parser


def config_arguments(path: str) -> list[str]:
    """The options of a JSON file as arguments, so that one parser checks names and types of both."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the configuration {path}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"the configuration {path} must be a JSON object of options")
    arguments = []
    for key, value in content.items():
        name = "--" + key.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(name if value else "--no-" + name[2:])
        else:
            arguments.append(f"{name}={value}")
    return arguments


def parse(argv: Sequence[str], env: Mapping[str, str], kind: type[Kind], prog: str = "train.py") -> Kind:
    """The options; a mistake ends the program with exit code 2, all mistakes in one message."""
    parser = build_parser(kind, env, prog)
    first = parser.parse_args(argv)
    try:
        from_file = config_arguments(first.config) if first.config else []
    except ValueError as error:
        parser.error(str(error))
    values = vars(parser.parse_args([*from_file, *argv]))
    values.pop("config")
    options = kind(**values)
    if found := options.problems():
        parser.exit(2, "".join(f"error: {line}\n" for line in found))
    return options
