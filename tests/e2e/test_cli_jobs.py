"""``remote-trainer``'s commands about jobs, as a user and as a script sees them."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.support.commandline import Home, read_until

QUICK = ("--set", "delay_s=0")

JOB_FIELDS = {
    *("id", "name", "tool", "driver", "tenant", "priority", "phase", "verdict", "reason", "message", "note", "cancel_requested"),
    *("retry_of", "attempts", "step", "exit_code", "created_at", "finished_at", "elapsed_s", "cost_usd"),
}
MORE_FIELDS = {
    *("metrics", "logs", "parameters", "plan_digest", "driver_options", "limits", "inputs", "tries", "artifacts", "events"),
}


def test_cancel_ends_a_job_and_keeps_what_it_made(home: Home) -> None:
    """A cancelled job ends CANCELLED with its checkpoints kept, and cannot be cancelled twice."""
    job = home.submit("--set", "lines=1000", "--set", "checkpoint_every=1")
    with home.start("remote_trainer.cli.main", "logs", "-f", job) as following:
        read_until(following, b"line 2/1000")
        assert home.remote_trainer("cancel", job).returncode == 0
        assert home.remote_trainer("wait", job).returncode == 11
        following.communicate(timeout=30)
    assert following.returncode == 0
    kept = home.document("artifacts", job)
    assert not kept["complete"]
    assert any(each["path"].startswith("checkpoints/line-") for each in kept["artifacts"])
    again = home.remote_trainer("cancel", job)
    assert again.returncode == 7 and again.stderr.startswith(b"error: ")


def test_retry_resumes_from_the_newest_checkpoint(home: Home) -> None:
    """A retried job is a new one that goes on where the old one's newest checkpoint lies."""
    settings = ("--set", "lines=4", "--set", "checkpoint_every=1", "--set", "exit_code=9", *QUICK)
    old = home.submit(*settings)
    assert home.remote_trainer("wait", old).returncode == 10
    done = home.remote_trainer("retry", old, "--detach")
    assert done.returncode == 0, done.stderr
    new = done.stdout.decode().strip()
    assert home.remote_trainer("wait", new).returncode == 10  # the same plan ends the same way
    assert b"resuming at line 5\n" in home.remote_trainer("logs", new).stdout
    assert home.document("show", new)["retry_of"] == old


def test_a_running_job_cannot_be_retried(home: Home) -> None:
    """Retry of an unfinished job is refused."""
    job = home.submit("--set", "lines=1000")
    refused = home.remote_trainer("retry", job)
    assert refused.returncode == 7 and b"cancel it first" in refused.stderr
    home.remote_trainer("cancel", job)


def test_documents_have_the_documented_fields(home: Home) -> None:
    """list and show print the same stable fields for scripts."""
    job = home.submit("--name", "schema", *QUICK)
    home.remote_trainer("wait", job)
    [listed] = [each for each in home.document("list", "--all")["jobs"] if each["id"] == job]
    assert set(listed) == JOB_FIELDS
    shown = home.document("show", "schema")
    assert set(shown) == JOB_FIELDS | MORE_FIELDS
    assert (shown["phase"], shown["verdict"], shown["reason"]) == ("done", "succeeded", "completed")
    assert [run["state"] for run in shown["tries"][0]["steps"]] == ["exited"]
    assert shown["logs"].keys() >= {"a1/greet.1"}
    assert home.document("list", "--phase", "queued", "--limit", "5")["jobs"] == []


def test_people_can_read_the_same(home: Home) -> None:
    """Without --json the same things come as words and tables."""
    job = home.submit("--name", "words", *QUICK)
    home.remote_trainer("wait", job)
    assert b"words" in home.remote_trainer("list", "--all").stdout
    assert b"artifacts, 1 file:" in home.remote_trainer("show", job).stdout
    assert b"final/hello.txt" in home.remote_trainer("artifacts", job).stdout
    assert home.remote_trainer("artifacts", job, "--links").stdout.startswith(b"file:///")
    assert home.remote_trainer("list").stdout.count(b"\n") >= 1


def test_logs_as_json_carry_offsets(home: Home) -> None:
    """logs --json prints one object a piece: stream, offset, size and text."""
    job = home.submit("--set", "lines=1", *QUICK)
    home.remote_trainer("wait", job)
    pieces = [json.loads(line) for line in home.remote_trainer("logs", job, "--json").stdout.splitlines()]
    assert "".join(piece["text"] for piece in pieces).endswith("line 1/1 value 1\n")
    assert pieces[0] | {"text": "", "size": 0} == {"stream": "a1/greet.1", "offset": 0, "size": 0, "text": ""}


def test_a_closed_pipe_ends_quietly(home: Home) -> None:
    """A reader that has enough, such as head, causes no message."""
    job = home.submit("--set", "flood_kb=1024", *QUICK)
    home.remote_trainer("wait", job)
    with home.start("remote_trainer.cli.main", "logs", job) as reading:
        assert reading.stdout is not None and reading.stderr is not None
        os.read(reading.stdout.fileno(), 10)
        reading.stdout.close()
        assert reading.stderr.read() == b""
        assert reading.wait(timeout=30) == 141


def test_a_worker_ends_when_idle(own_home: Home) -> None:
    """worker --until-idle serves what there is and ends; its log is one JSON object a line."""
    done = own_home.remote_trainer("worker", "--until-idle", "0.2", "--max-jobs", "2")
    assert done.returncode == 0
    assert {json.loads(line)["action"] for line in done.stderr.splitlines()} >= {"started", "stopped"}


def test_the_installation_explains_itself(home: Home, tmp_path: Path) -> None:
    """doctor, version, tools, drivers, dataset and db answer in words and in JSON."""
    (tmp_path / "a.txt").write_text("a")
    assert home.document("version")["version"]
    assert {"store", "objects", "disk"} <= {each["question"] for each in home.document("doctor")["findings"]}
    assert "hello@1" in {each["tool"] for each in home.document("tools", "list")["tools"]}
    assert home.document("tools", "show", "hello")["parameters"]["lines"]["default"] == 5
    assert {"local", "ssh"} <= {each["name"] for each in home.document("drivers", "list")["drivers"]}
    assert home.document("drivers", "check", "local")["ok"]
    assert home.document("dataset", "inspect", str(tmp_path))["files"] == 1
    assert home.document("dataset", "pack", str(tmp_path))["digest"] == home.document("dataset", "pack", str(tmp_path))["digest"]
    assert "SQLite" in home.document("db", "migrate")["store"]
    exported = [json.loads(line) for line in home.remote_trainer("db", "export").stdout.splitlines()]
    assert {record["kind"] for record in exported} >= {"job", "event", "log", "metric"}


def test_a_new_tool_works_as_it_is(home: Home) -> None:
    """tools new writes a recipe that validates and runs."""
    made = home.remote_trainer("tools", "new", "my-tool")
    assert made.returncode == 0, made.stderr
    assert home.remote_trainer("tools", "validate", "my-tool@1").returncode == 0
    assert home.run_training("--tool", "my-tool").returncode == 0
