"""Bad input gets one clear error with its exit code, never a traceback; in JSON it is one document."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from remote_trainer.cli import guard, main, run

HELLO = ("--tool", "hello@1")

RUNS: dict[str, tuple[tuple[str, ...], int, tuple[str, ...]]] = {
    "unknown tool": (("--tool", "helo"), 6, ("no tool 'helo'", "'hello'")),
    "unknown version": (("--tool", "hello@99"), 6, ("99", "hello@1")),
    "unknown driver": ((*HELLO, "--driver", "locl"), 6, ("'locl'", "'local'")),
    "all parameters at once": (
        (*HELLO, "--set", "linse=3", "--set", "delay_s=soon", "--set", "exit_code=300", "--set", "nonsense"),
        3,
        ("linse", "lines", "delay_s", "exit_code", "255", "nonsense"),
    ),
    "missing dataset": ((*HELLO, "--dataset", "not/there"), 4, ("not/there", "No such file")),
    "empty dataset": ((*HELLO, "--dataset", "empty"), 4, ("empty",)),
    "dataset that is a file": ((*HELLO, "--dataset", "plain.txt"), 4, ("plain.txt", "folder")),
    "corrupt image": ((*HELLO, "--dataset", "corrupt"), 4, ("broken.jpg",)),
    "ssh without host": ((*HELLO, "--driver", "ssh"), 5, ("host",)),
    "host for a driver without": ((*HELLO, "--host", "box"), 5, ("host",)),
    "bad option": ((*HELLO, "--option", "nonsense"), 2, ("key=value",)),
    "bad limit": ((*HELLO, "--max-hours", "0"), 2, ("--max-hours",)),
    "bad money": ((*HELLO, "--max-cost", "ten"), 2, ("--max-cost", "ten")),
    "mistyped option": ((*HELLO, "--dry-rum"), 2, ("--dry-rum", "--dry-run")),
    "nothing at all": ((), 2, ("--tool",)),
}


Outcome = tuple[int, str, str]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Outcome]:
    """Runs a program in this process, in a folder with datasets nobody can use; returns its code, stdout and stderr."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "plain.txt").write_text("text")
    (tmp_path / "corrupt").mkdir()
    (tmp_path / "corrupt" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 this is no image")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def call(app: typer.Typer, *arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["program", *arguments])
        with pytest.raises(SystemExit) as ended:
            guard.run(app, "program")
        shown = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, shown.out, shown.err

    return call


@pytest.mark.parametrize("case", RUNS)
def test_run_training_refuses(call: Callable[..., Outcome], case: str) -> None:
    """Each fault of an order is told with its remedy."""
    arguments, wanted, texts = RUNS[case]
    code, shown, message = call(run.app, *arguments)
    assert (code, shown) == (wanted, ""), message
    assert message.startswith("error: ") and message.count("error: ") == 1 and "Traceback" not in message
    assert [text for text in texts if text not in message] == []


def test_a_dry_run_refuses_the_same_without_a_trace(call: Callable[..., Outcome]) -> None:
    """A refused dry run leaves no home behind."""
    assert call(run.app, *HELLO, "--dataset", "corrupt", "--dry-run")[0] == 4
    assert not Path(os.environ["HOME"]).exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("show", "nothing"), 6),
        (("logs", "nothing"), 6),
        (("wait", "nothing"), 6),
        (("cancel", "nothing"), 6),
        (("retry", "nothing"), 6),
        (("artifacts", "nothing"), 6),
        (("list", "--phase", "sleeping"), 2),
        (("tools", "show", "nothing"), 6),
        (("tools", "validate", "plain.txt"), 3),
        (("tools", "new", "Bad Name"), 2),
        (("drivers", "check", "nothing"), 6),
        (("dataset", "inspect", "not/there"), 4),
        (("dataset", "inspect", "corrupt"), 4),
        (("dataset", "pack", "not/there"), 4),
        (("no-such-command",), 2),
    ],
)
def test_errors_are_documents_with_json(call: Callable[..., Outcome], arguments: tuple[str, ...], code: int) -> None:
    """With --json an error is one object on stdout whose exit code is the program's."""
    returned, shown, message = call(main.app, *arguments, "--json")
    error = json.loads(shown)
    assert set(error) == {"error", "message", "exit_code"} and error["message"]
    assert (returned, error["exit_code"], message) == (code, code, "")


def test_a_noun_alone_shows_its_help(call: Callable[..., Outcome]) -> None:
    """Without a verb the help tells which there are; the exit code is that of a usage error."""
    code, _, message = call(main.app, "tools")
    assert code == 2 and message.startswith("Usage: ") and "validate" in message
