"""``remote-trainer``'s commands about jobs, as a user and as a script sees them."""

from __future__ import annotations

import json
import os

import pytest

from tests.support.commandline import Home, read_until
from tests.support.patience import PATIENCE_S

QUICK = ("--set", "delay_s=0")

JOB_FIELDS = {
    *("id", "name", "tool", "driver", "tenant", "priority", "phase", "verdict", "reason", "message", "note", "cancel_requested"),
    *("retry_of", "evaluation_of", "attempts", "step", "exit_code", "created_at", "finished_at", "elapsed_s", "cost_usd"),
}
MORE_FIELDS = {
    *("projected_cost_usd", "billed_usd", "reserved_usd", "evaluations"),
    *("metrics", "logs", "parameters", "preset", "plan_digest", "driver_options", "places", "limits", "inputs", "tries"),
    *("artifacts", "events"),
}


@pytest.fixture(scope="module")
def done(home: Home) -> str:
    """A job that is DONE, for those who only look."""
    job = home.submit("--name", "looked-at", "--set", "flood_kb=1024", "--set", "lines=1", *QUICK)
    assert home.remote_trainer("wait", job).returncode == 0
    return job


def test_cancel_ends_a_job_and_keeps_what_it_made(home: Home) -> None:
    """A cancelled job ends CANCELLED with its checkpoints kept, and cannot be cancelled twice."""
    job = home.submit("--set", "lines=1000", "--set", "checkpoint_every=1")
    with home.start("remote_trainer.cli.main", "logs", "-f", job) as following:
        read_until(following, b"line 2/1000")
        assert home.remote_trainer("cancel", job).returncode == 0
        assert home.remote_trainer("wait", job).returncode == 11
        following.communicate(timeout=PATIENCE_S)
    assert following.returncode == 0
    kept = home.document("artifacts", job)
    assert not kept["complete"]
    assert any(each["path"].startswith("checkpoints/line-") for each in kept["artifacts"])
    again = home.remote_trainer("cancel", job)
    assert again.returncode == 7 and again.stderr.startswith(b"error: ")


def test_a_preset_goes_with_its_job(home: Home) -> None:
    """What it has set is told at submit, shown with the job, and the same in a retry, though its file is gone and the data changed."""
    data, presets = home.path / "data", home.path / "presets.yaml"
    data.mkdir()
    (data / "a.txt").write_text("1")
    presets.write_text(
        "presets:\n  - name: short\n    when: files < 2\n    values:\n"
        "      lines: {value: '{{ files * 2 }}', because: two for each file}\n      delay_s: {value: 9, because: no hurry}\n"
    )
    order = ("--tool", "hello@1", "--dataset", str(data), "--presets", str(presets), *QUICK)
    submitted = home.run_training(*order, "--detach")
    assert submitted.stderr.startswith(b"preset short for 1 file: lines=2\nleft as you set it: delay_s=0.0\nqueued;")
    job = submitted.stdout.decode().strip()
    assert home.remote_trainer("wait", job).returncode == 0
    (data / "b.txt").write_text("2")
    presets.unlink()
    again = home.remote_trainer("retry", job)
    assert (
        again.returncode == 0 and b"\npreset short for 1 file: lines=2\n" in again.stdout and b"greet | line 2/2" in again.stdout
    )
    shown = home.document("show", job)
    assert shown["preset"] == {
        "name": "short",
        "facts": {"images": 0, "files": 1},
        "set": {"lines": {"value": 2, "because": "two for each file"}},
        "kept": {"delay_s": {"value": 0.0, "preset": 9.0}},
        "advice": [],
    }
    assert b"preset     short for 1 file; set lines; left delay_s\n" in home.remote_trainer("show", job).stdout


def test_retry_resumes_from_the_newest_checkpoint(home: Home) -> None:
    """A retried job is a new one that goes on where the old one's newest checkpoint lies."""
    settings = ("--set", "lines=4", "--set", "checkpoint_every=1", "--set", "exit_code=9", *QUICK)
    old = home.submit(*settings)
    assert home.remote_trainer("wait", old).returncode == 10
    again = home.remote_trainer("retry", old, "--detach")
    assert again.returncode == 0, again.stderr
    new = again.stdout.decode().strip()
    assert home.remote_trainer("wait", new).returncode == 10  # the same plan ends the same way
    assert b"resuming at line 5\n" in home.remote_trainer("logs", new).stdout
    assert home.document("show", new)["retry_of"] == old


def test_a_running_job_cannot_be_retried(home: Home) -> None:
    """Retry of an unfinished job is refused."""
    job = home.submit("--set", "lines=1000")
    refused = home.remote_trainer("retry", job)
    assert refused.returncode == 7 and b"cancel it first" in refused.stderr
    home.remote_trainer("cancel", job)


def test_documents_have_the_documented_fields(home: Home, done: str) -> None:
    """list and show print the same stable fields for scripts."""
    [listed] = [each for each in home.document("list", "--all")["jobs"] if each["id"] == done]
    assert set(listed) == JOB_FIELDS
    shown = home.document("show", "looked-at")
    assert set(shown) == JOB_FIELDS | MORE_FIELDS
    assert (shown["phase"], shown["verdict"], shown["reason"]) == ("done", "succeeded", "completed")
    assert [run["state"] for run in shown["tries"][0]["steps"]] == ["exited"]
    assert shown["logs"].keys() >= {"a1/greet.1"}
    assert home.document("list", "--phase", "queued", "--limit", "5")["jobs"] == []


def test_people_can_read_the_same(home: Home, done: str) -> None:
    """Without --json the same things come as words and tables."""
    assert b"looked-at" in home.remote_trainer("list", "--all").stdout
    assert b"artifacts, 1 file:" in home.remote_trainer("show", done[:9]).stdout
    assert b"final/hello.txt" in home.remote_trainer("artifacts", done).stdout
    assert home.remote_trainer("artifacts", done, "--links").stdout.startswith(b"file:///")


def test_logs_as_json_carry_offsets(home: Home, done: str) -> None:
    """logs --json prints one object a piece: stream, offset, size and text."""
    pieces = [json.loads(line) for line in home.remote_trainer("logs", done, "--json").stdout.splitlines()]
    assert "".join(piece["text"] for piece in pieces).endswith("line 1/1 value 1\n")
    assert pieces[0] | {"text": "", "size": 0} == {"stream": "a1/greet.1", "offset": 0, "size": 0, "text": ""}


def test_a_closed_pipe_ends_quietly(home: Home, done: str) -> None:
    """A reader that has enough, such as head, causes no message."""
    with home.start("remote_trainer.cli.main", "logs", done) as reading:
        assert reading.stdout is not None and reading.stderr is not None
        os.read(reading.stdout.fileno(), 10)
        reading.stdout.close()
        assert reading.stderr.read() == b""
        assert reading.wait(timeout=PATIENCE_S) == 141


def test_a_worker_ends_when_idle(own_home: Home) -> None:
    """worker --until-idle serves what there is and ends; its log is one JSON object a line."""
    done = own_home.remote_trainer("worker", "--until-idle", "0.2", "--max-jobs", "2")
    assert done.returncode == 0
    assert {json.loads(line)["action"] for line in done.stderr.splitlines()} >= {"started", "stopped"}


def test_an_export_is_everything(home: Home, done: str) -> None:
    """db export prints each record as one line of JSON."""
    exported = [json.loads(line) for line in home.remote_trainer("db", "export").stdout.splitlines()]
    assert {record["kind"] for record in exported} >= {"job", "event", "log", "metric"}
    assert done in {record["job"] for record in exported}


def test_a_new_tool_works_as_it_is(home: Home) -> None:
    """tools new writes a recipe that validates and runs."""
    made = home.remote_trainer("tools", "new", "my-tool")
    assert made.returncode == 0, made.stderr
    assert home.remote_trainer("tools", "validate", "my-tool@1").returncode == 0
    assert home.run_training("--tool", "my-tool").returncode == 0
