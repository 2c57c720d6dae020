"""Commands of remote-trainer run in this process, for tests that look at the program from inside, too.

Rules for editing: how they run as a user runs them is in commandline.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from remote_trainer.cli import guard, main

Outcome = tuple[int, str, str]


def runner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Return what runs a command and tells its exit code, stdout and stderr."""

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["remote-trainer", *arguments])
        with pytest.raises(SystemExit) as ended:
            guard.run(main.app, "remote-trainer")
        shown = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, shown.out, shown.err

    return run
