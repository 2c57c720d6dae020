"""Commands about the installation answer in JSON and in words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.inprocess import runner


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """Runs remote-trainer in this process and an empty home; returns what it prints."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    run = runner(monkeypatch, capsys)

    def answer(*arguments: str) -> str:
        code, out, error = run(*arguments)
        assert (code, error) == (0, "")
        return out

    return answer


@pytest.mark.parametrize(
    ("arguments", "text", "key"),
    [
        (("version",), ".", "version"),
        (("tools", "list"), "hello@1", "tools"),
        (("tools", "show", "hello"), "delay_s", "parameters"),
        (("tools", "validate", "hello"), "is valid", "valid"),
        (("drivers", "list"), "ssh", "drivers"),
        (("drivers", "check", "local"), "this machine", "answer"),
        (("dataset", "inspect", "."), "1 file, 1 B", "files"),
        (("dataset", "pack", "."), "1 file", "digest"),
        (("db", "migrate"), "SQLite", "store"),
        (("doctor",), "objects", "findings"),
        (("list",), "phase", "jobs"),
    ],
)
def test_in_words_and_in_json(
    answer: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], text: str, key: str
) -> None:
    """Every command has its answer for people and one document for scripts."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("a")
    monkeypatch.chdir(tmp_path / "data")
    assert text in answer(*arguments)
    assert key in json.loads(answer(*arguments, "--json"))


def test_looking_makes_no_home(answer: Callable[..., str], tmp_path: Path) -> None:
    """Tools and drivers are listed without a folder being made."""
    answer("tools", "list")
    answer("drivers", "check", "local")
    assert not (tmp_path / "home").exists()
