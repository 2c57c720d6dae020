"""The tables of the training programs' flags, read from their declarations: docs/flags.md.

Rules for editing: what a flag means is said where it is declared, in scripts/lora/options.py and each family's train.py.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
HEAD = ["| flag | type | default | limits | meaning |", "|---|---|---|---|---|"]
INTRODUCTION = """\
# Flags of the training programs

Made from `scripts/lora/options.py` and each family's `train.py` by `make docs`. The parameters of the recipes have the same names, with
`_` for `-`. Flags can also stand in a JSON file (`--config options.json`). A flag on the command line beats the file, the file beats the
environment, the environment beats the default. What they do together is told in [training.md](training.md).

## `sdxl-lora@1`
"""


def options_of(program: str) -> dict[str, tuple[type, Any, Any]]:
    """name → (type, default, Flag) of each option of `scripts/<program>`, such as sdxl_lora/train."""
    return declared(module(program).TOOL.options)


def module(name: str) -> Any:
    """A module of the scripts, by its path."""
    if str(SCRIPTS) not in sys.path:
        sys.path.insert(0, str(SCRIPTS))
    return importlib.import_module(name.replace("/", "."))


def declared(kind: type) -> dict[str, tuple[type, Any, Any]]:
    """name → (type, default, Flag) of each option of that class."""
    found: dict[str, tuple[type, Any, Any]] = module("lora/flags").flags(kind)
    return found


def evaluation() -> list[str]:
    """The flags of the program that compares checkpoints."""
    told = "`scripts/evaluate_checkpoints/evaluate.py` ([evaluation.md](evaluation.md)); in the trainers' recipes behind `evaluate_`."
    return ["", "## `evaluate-lora@1`", "", told, *table(declared(module("evaluate_checkpoints/options").EvaluationOptions))]


def row(name: str, kind: type, default: object, about: Any) -> str:
    """One flag."""
    bounds = [(sign, bound) for sign, bound in (("≥", about.low), ("≤", about.high)) if bound is not None]
    limits = ", ".join(about.choices) or " ".join(f"{sign} {bound:.10g}" for sign, bound in bounds)
    shown = f"`{default}`" if default != "" else ""
    text = about.help.replace("|", "\\|") + (f" (or `{about.env}`)" if about.env else "")
    return f"| `--{name.replace('_', '-')}` | {kind.__name__} | {shown} | {limits} | {text} |"


def table(options: dict[str, tuple[type, Any, Any]]) -> list[str]:
    """All flags, by group."""
    lines, group = [], ""
    for name, (kind, default, about) in options.items():
        if about.group != group:
            group = about.group
            lines += ["", f"**{group}**", "", *HEAD]
        lines.append(row(name, kind, default, about))
    return lines


def differences(family: str) -> list[str]:
    """What is otherwise in another family's trainer."""
    usual, own = options_of("sdxl_lora/train"), options_of(f"{family}_lora/train")
    lacking = ", ".join(f"`--{name.replace('_', '-')}`" for name in usual if name not in own)
    changed = [row(name, *own[name]) for name in own if own[name] != usual.get(name)]
    return [
        "",
        f"## `{family}-lora@1`",
        "",
        "Where it differs" + (f"; it has no {lacking}:" if lacking else ":"),
        "",
        *HEAD,
        *changed,
    ]


def make() -> str:
    """The page."""
    lines = [
        *INTRODUCTION.splitlines(),
        *table(options_of("sdxl_lora/train")),
        *differences("sd15"),
        *differences("flux"),
        *evaluation(),
    ]
    return "\n".join([*lines, ""])
