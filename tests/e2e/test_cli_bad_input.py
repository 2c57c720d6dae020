"""What is wrong around a command gets one clear error; faults of the input itself are in tests/unit/test_cli_errors.py."""

from __future__ import annotations

import socket
from pathlib import Path

from tests.support.commandline import Home
from tests.support.process import free_port


def test_a_refused_order_queues_nothing(home: Home) -> None:
    """After an order that was refused there is no job."""
    refused = home.run_training("--tool", "hello@1", "--set", "linse=3")
    assert (refused.returncode, refused.stdout) == (3, b"")
    assert refused.stderr.startswith(b"error: ") and b"Traceback" not in refused.stderr
    assert home.document("list", "--all") == {"jobs": [], "more": False}


def test_a_refused_host_is_named(home: Home) -> None:
    """A host where nothing listens is told with what to look at."""
    done = home.remote_trainer("drivers", "check", "ssh", "--host", f"somebody@127.0.0.1:{free_port()}")
    assert done.returncode == 20
    assert b"refused" in done.stderr and b"sshd" in done.stderr


def test_a_store_that_cannot_be_opened_is_named(home: Home) -> None:
    """A store that cannot be used ends the command with 5 and says which."""
    (home.path / "folder.db").mkdir(exist_ok=True)
    done = home.remote_trainer("list", REMOTE_TRAINER_STORE=f"sqlite:///{home.path / 'folder.db'}")
    assert done.returncode == 5, done.stderr
    assert b"folder.db" in done.stderr


def test_a_mongodb_that_is_down_is_named_without_its_password(home: Home) -> None:
    """A MongoDB server that does not answer ends the command with 30; the password in its URL is not shown."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, not listening: refused
        url = f"mongodb://user:geheim@127.0.0.1:{closed.getsockname()[1]}/jobs?serverSelectionTimeoutMS=200"
        done = home.remote_trainer("list", REMOTE_TRAINER_STORE=url)
    assert done.returncode == 30, done.stderr
    assert b"geheim" not in done.stderr


def test_a_wrong_setting_is_named(home: Home) -> None:
    """A setting that cannot be used ends the command with 5 and names its variable."""
    done = home.remote_trainer("list", REMOTE_TRAINER_MAX_JOBS="many")
    assert done.returncode == 5
    assert b"REMOTE_TRAINER_MAX_JOBS" in done.stderr


def test_a_bug_is_told_as_one(home: Home, tmp_path: Path) -> None:
    """What nobody expected ends with 70, says where its details are kept, and shows no traceback."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "structlog.py").write_text("raise RuntimeError('out of luck')")
    done = home.remote_trainer("worker", "--until-idle", "0.1", PYTHONPATH=str(broken), TMPDIR=str(tmp_path))
    [details] = tmp_path.glob("remote-trainer-bug-*.txt")
    assert done.returncode == 70
    assert b"bug" in done.stderr and str(details).encode() in done.stderr and b"Traceback" not in done.stderr
    assert "out of luck" in details.read_text() and details.stat().st_mode & 0o077 == 0
