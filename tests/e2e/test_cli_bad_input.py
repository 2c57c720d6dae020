"""Bad input gets one clear error with its exit code, never a traceback, and leaves nothing behind."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from tests.support.commandline import Home
from tests.support.process import free_port

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


@pytest.fixture(scope="module")
def data(home: Home) -> Home:
    """The home with datasets nobody can use."""
    (home.path / "empty").mkdir()
    (home.path / "plain.txt").write_text("text")
    (home.path / "corrupt").mkdir()
    (home.path / "corrupt" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 this is no image")
    return home


@pytest.mark.parametrize("case", RUNS)
def test_run_training_refuses(data: Home, case: str) -> None:
    """Each fault of an order is told with its remedy, and no job is queued."""
    arguments, code, texts = RUNS[case]
    done = data.run_training(*arguments)
    message = done.stderr.decode()
    assert (done.returncode, done.stdout) == (code, b""), message
    assert message.startswith("error: ") and message.count("error: ") == 1 and "Traceback" not in message
    assert [text for text in texts if text not in message] == []


def test_nothing_was_queued(data: Home) -> None:
    """After all that there is no job."""
    assert data.document("list", "--all") == {"jobs": [], "more": False}


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
def test_errors_are_documents_with_json(data: Home, arguments: tuple[str, ...], code: int) -> None:
    """With --json an error is one object on stdout whose exit code is the program's."""
    done = data.remote_trainer(*arguments, "--json")
    error = json.loads(done.stdout)
    assert set(error) == {"error", "message", "exit_code"} and error["message"]
    assert (done.returncode, error["exit_code"], done.stderr) == (code, code, b"")


def test_a_refused_host_is_named(data: Home) -> None:
    """A host where nothing listens is told with what to look at."""
    done = data.remote_trainer("drivers", "check", "ssh", "--host", f"somebody@127.0.0.1:{free_port()}")
    assert done.returncode == 20
    assert b"refused" in done.stderr and b"sshd" in done.stderr


def test_a_store_that_cannot_be_opened_is_named(data: Home) -> None:
    """A store that cannot be used ends the command with 5 and says which."""
    (data.path / "folder.db").mkdir(exist_ok=True)
    done = data.remote_trainer("list", REMOTE_TRAINER_STORE=f"sqlite:///{data.path / 'folder.db'}")
    assert done.returncode == 5, done.stderr
    assert b"folder.db" in done.stderr


def test_a_mongodb_that_is_down_is_named_without_its_password(data: Home) -> None:
    """A MongoDB server that does not answer ends the command with 30; the password in its URL is not shown."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, not listening: refused
        url = f"mongodb://user:geheim@127.0.0.1:{closed.getsockname()[1]}/jobs?serverSelectionTimeoutMS=200"
        done = data.remote_trainer("list", REMOTE_TRAINER_STORE=url)
    assert done.returncode == 30, done.stderr
    assert b"geheim" not in done.stderr


def test_a_wrong_setting_is_named(data: Home) -> None:
    """A setting that cannot be used ends the command with 5 and names its variable."""
    done = data.remote_trainer("list", REMOTE_TRAINER_MAX_JOBS="many")
    assert done.returncode == 5
    assert b"REMOTE_TRAINER_MAX_JOBS" in done.stderr


def test_a_bug_is_told_as_one(data: Home, tmp_path: Path) -> None:
    """What nobody expected ends with 70, says where its details are kept, and shows no traceback."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "structlog.py").write_text("raise RuntimeError('out of luck')")
    done = data.remote_trainer("worker", "--until-idle", "0.1", PYTHONPATH=str(broken), TMPDIR=str(tmp_path))
    [details] = tmp_path.glob("remote-trainer-bug-*.txt")
    assert done.returncode == 70
    assert b"bug" in done.stderr and str(details).encode() in done.stderr and b"Traceback" not in done.stderr
    assert "out of luck" in details.read_text() and details.stat().st_mode & 0o077 == 0
