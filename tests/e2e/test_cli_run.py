"""``run-training`` as a user sees it."""

from __future__ import annotations

import hashlib
import json
import re
import signal
from pathlib import Path

from tests.support.commandline import Home, read_until
from tests.support.patience import PATIENCE_S

QUICK = ("--set", "delay_s=0")
RUN = "remote_trainer.cli.run"


def _id(output: bytes) -> str:
    found = re.search(rb"job (j\w+)", output)
    assert found, output
    return found[1].decode()


def test_a_job_goes_from_submit_to_a_verified_artifact(home: Home, tmp_path: Path) -> None:
    """One command runs the job; its artifact can be downloaded and is what the tool has written."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "one.txt").write_text("1")
    done = home.run_training("--tool", "hello@1", "--dataset", str(data), "--set", "name=Grete", *QUICK)
    assert (done.returncode, done.stderr) == (0, b"")
    job = _id(done.stdout)
    fetched = home.document("artifacts", job, "--download", str(tmp_path / "got"))
    [artifact] = fetched["artifacts"]
    content = (tmp_path / "got" / "final" / "hello.txt").read_bytes()
    assert content.startswith(b"hello Grete\n")
    assert artifact["sha256"] == hashlib.sha256(content).hexdigest()
    assert artifact["file"] == str(tmp_path / "got" / "final" / "hello.txt")


def test_piped_output_is_plain_lines(home: Home) -> None:
    """Phases that were seen, the step's lines and the result come as lines, in this order, without anything that draws."""
    done = home.run_training("--tool", "hello@1", "--set", "lines=2", *QUICK)
    lines = done.stdout.decode().splitlines()
    assert b"\x1b" not in done.stdout + done.stderr
    wanted = ["greet | line 1/2 value 1", "greet | line 2/2 value 4", "-- done: every step exited 0"]
    assert [line for line in lines if line in wanted] == wanted
    phases = ["queued", "provisioning", "transferring", "executing", "fetching", "releasing", "done"]
    seen = [line.removeprefix("-- ").partition(":")[0] for line in lines if line.startswith("-- ")]
    assert len(seen) > 1 and seen == [phase for phase in phases if phase in seen]
    assert lines[-1].startswith("download with: remote-trainer artifacts ")


def test_json_is_one_document(home: Home) -> None:
    """With --json stdout is one object with the job and its artifacts."""
    done = home.run_training("--tool", "hello@1", *QUICK, "--json")
    job = json.loads(done.stdout)["job"]
    assert (job["phase"], job["exit_code"], done.stderr) == ("done", 0, b"")
    assert [each["path"] for each in job["artifacts"]] == ["final/hello.txt"]


def test_detached_jobs_are_waited_for_and_read_later(home: Home) -> None:
    """--detach prints the id alone; logs -f gives the step's bytes; wait ends with the job."""
    job = home.submit("--set", "lines=3", *QUICK)
    logs = home.remote_trainer("logs", "-f", job)
    assert logs.stdout == b"hello world, this is try 1 of attempt 1\nline 1/3 value 1\nline 2/3 value 4\nline 3/3 value 9\n"
    assert home.remote_trainer("wait", job).returncode == 0
    assert home.remote_trainer("logs", job, "--step", "greet").stdout == logs.stdout


def test_big_logs_come_byte_for_byte(home: Home) -> None:
    """Two megabytes through logs are the bytes the step wrote."""
    job = home.submit("--set", "flood_kb=2048", "--set", "lines=1", *QUICK)
    text = b"the quick brown fox jumps over the lazy dog and comes back again\n"
    flood = (text * (2048 * 1024 // len(text) + 1))[: 2048 * 1024]
    logs = home.remote_trainer("logs", "-f", job).stdout
    assert logs == b"hello world, this is try 1 of attempt 1\n" + flood + b"\nline 1/1 value 1\n"


def test_a_failing_step_gives_its_exit_code_and_last_lines(home: Home) -> None:
    """A failed job exits with 10 and shows the step's exit code; wait shows the end of the log."""
    done = home.run_training("--tool", "hello@1", "--set", "exit_code=3", *QUICK)
    assert done.returncode == 10
    assert b"greet | line 5/5 value 25" in done.stdout
    assert b"step greet.1 ended with exit code 3" in done.stderr
    assert done.stderr.splitlines()[-1].startswith(b"error: job ")
    waited = home.remote_trainer("wait", _id(done.stdout))
    assert waited.returncode == 10
    assert b"  line 5/5 value 25" in waited.stderr
    failure = json.loads(home.remote_trainer("wait", _id(done.stdout), "--json").stdout)
    assert (failure["error"], failure["exit_code"], failure["job"]["exit_code"]) == ("JobFailed", 10, 3)


def test_a_promised_output_that_never_appears_fails_the_job(home: Home) -> None:
    """DONE needs every final output; the message names the one that is missing."""
    done = home.run_training("--tool", "hello@1", "--set", "omit_artifact=true", *QUICK)
    assert done.returncode == 10
    assert b"artifacts_missing" in done.stderr and b"required outputs: final" in done.stderr


def test_ctrl_c_detaches(home: Home) -> None:
    """Ctrl-C leaves with 130 after saying how to come back and how to cancel; the job goes on to its end."""
    with home.start(RUN, "--tool", "hello@1", "--set", "lines=1000") as running:
        job = _id(read_until(running, b"line 1/1000"))
        running.send_signal(signal.SIGINT)
        output, errors = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 130
    for command in ("logs -f", "wait", "cancel"):
        assert f"remote-trainer {command} {job}" in errors.decode()
    seen = max([1, *(int(number) for number in re.findall(rb"line (\d+)/1000", output))])
    with home.start("remote_trainer.cli.main", "logs", "-f", job) as following:
        read_until(following, b"line %d/1000" % (seen + 3))
        assert home.remote_trainer("cancel", job).returncode == 0
        following.communicate(timeout=PATIENCE_S)


def test_a_second_ctrl_c_cancels(home: Home) -> None:
    """Two in a row cancel the job, which is said, and the command ends with the job: 11."""
    while True:
        job, code, output, errors = _interrupted_twice(home)
        if code != 130:
            break
        home.remote_trainer("cancel", job)  # on a busy machine the second one came after its time
    assert code == 11
    assert f"cancelling job {job}" in errors.decode()
    assert b"-- cancelled" in output
    assert home.document("show", job)["phase"] == "cancelled"


def _interrupted_twice(home: Home) -> tuple[str, int, bytes, bytes]:
    """The id of a job whose command got two Ctrl-C, and the command's end."""
    with home.start(RUN, "--tool", "hello@1", "--set", "lines=1000") as running:
        job = _id(read_until(running, b"line 1/1000"))
        assert running.stderr is not None
        running.send_signal(signal.SIGINT)
        assert running.stderr.readline() == b"\n" and b"detached" in running.stderr.readline()
        running.send_signal(signal.SIGINT)
        output, errors = running.communicate(timeout=PATIENCE_S)
    return job, running.returncode, output, errors


def test_two_jobs_may_not_share_a_name_while_one_runs(home: Home) -> None:
    """The second of two unfinished jobs of one name is refused; the first is not disturbed, and later the name is free."""
    first = home.submit("--name", "twin", "--set", "lines=1000")
    second = home.run_training("--tool", "hello@1", "--name", "twin", *QUICK)
    assert second.returncode == 7
    assert second.stderr.startswith(b"error: ") and b"twin" in second.stderr
    assert home.document("show", "twin")["id"] == first
    home.remote_trainer("cancel", "twin")
    assert home.remote_trainer("wait", "twin").returncode == 11
    assert home.run_training("--tool", "hello@1", "--name", "twin", *QUICK).returncode == 0


def test_a_dry_run_touches_nothing(own_home: Home, tmp_path: Path) -> None:
    """The plan shows commands, environment, transfers, outputs and limits, secrets by name only; the home stays empty."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.txt").write_text("12345")
    order = ("--tool", "hello@1", "--dataset", str(data), "--set", "name=it's me", "--max-hours", "2", "--dry-run")
    environment = {"HELLO_SECRET": "s3cret-word", "TMPDIR": str(own_home.path)}
    shown = own_home.run_training(*order, **environment)
    assert shown.returncode == 0, shown.stderr
    for text in (
        b"hello it's me",
        b"1 file, 5 B",
        b"HELLO_SECRET=***",
        b"final/hello.txt",
        b"2 h, no cap, 3 attempts",
        b"| while",
    ):
        assert text in shown.stdout, text
    plan = json.loads(own_home.run_training(*order, "--json", **environment).stdout)
    assert plan["transfers"] == [{"name": "dataset", "source": str(data), "files": 1, "size": 5}]
    assert plan["steps"][0]["env"] == {"GREETING": "hello it's me", "HELLO_SECRET": "***"}
    assert b"s3cret-word" not in shown.stdout
    assert list(own_home.path.iterdir()) == []
