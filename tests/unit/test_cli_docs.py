"""docs/cli.md tells of every command, argument and option."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from remote_trainer.cli import main, run

TEXT = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")


def _commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    nested = getattr(command, "commands", None)
    if not nested:
        yield path, command
        return
    for name, each in nested.items():
        yield from _commands(each, f"{path} {name}")


PROGRAMS = {"remote-trainer": main.app, "run-training": run.app}
COMMANDS = dict(each for name, app in PROGRAMS.items() for each in _commands(typer.main.get_command(app), name))


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_is_documented_with_its_options(path: str) -> None:
    """Each command has its heading, and under it every option and argument."""
    found = re.search(rf"^#+ `{re.escape(path)}\b[^\n]*\n(.*?)(?=^#+ |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"docs/cli.md has no heading for {path}"
    section = found[0]
    general = {"--help", "--json", "--install-completion", "--show-completion"}  # told once, at the top
    options = [name for parameter in COMMANDS[path].params for name in parameter.opts if name.startswith("-")]
    assert [name for name in options if name not in general and f"`{name}" not in section] == []
    arguments = [parameter.metavar for parameter in COMMANDS[path].params if not parameter.opts[0].startswith("-")]
    assert [name for name in arguments if name.partition("|")[0] not in section] == []


def test_every_command_takes_json() -> None:
    """A script can read whatever a person can."""
    assert [path for path, command in COMMANDS.items() if not any("--json" in each.opts for each in command.params)] == []


def test_every_command_and_option_explains_itself() -> None:
    """--help leaves nothing unexplained."""
    for path, command in COMMANDS.items():
        assert command.help, path
        assert [each.name for each in command.params if not getattr(each, "help", None)] == [], path
