"""The worker's pure parts: what a failure means, what a step's script says, what numbers a log holds, who holds a lease."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_trainer import effects as fx
from remote_trainer import errors
from remote_trainer.effects import Severity
from remote_trainer.model import Attempt, HubModel, Input, Job, JobId, Pattern, Plan, PlannedStep, Reason, StepRun
from remote_trainer.policy import Policy
from remote_trainer.worker.identity import holder, is_dead, tells
from remote_trainer.worker.metrics import LineReader, PatternReader, read_json_line
from remote_trainer.worker.script import step_script
from remote_trainer.worker.trouble import Circumstances, judge

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PREPARE, FOLLOW = fx.PrepareHost("l"), fx.FollowStep("l", "s.1")


def judged(
    effect: fx.Effect,
    error: Exception,
    *,
    borrowed: bool = True,
    before: fx.Trouble | None = None,
    at: float = 0.0,
    heard: bool = True,
) -> fx.Trouble:
    now = NOW + timedelta(seconds=at)
    heard_at = now - timedelta(seconds=30) if heard else None
    given = Circumstances(before=before, now=now, policy=Policy(), borrowed=borrowed, jitter=0.5, heard_at=heard_at)
    return judge(effect, error, given)


# ---------------------------------------------------------------------------------------------------------------- trouble


@pytest.mark.parametrize(
    ("effect", "error", "borrowed", "severity", "reason"),
    [
        (FOLLOW, errors.HostUnreachable("x"), True, Severity.RETRY, Reason.INTERNAL),
        (FOLLOW, errors.LoginRefused("x"), True, Severity.RETRY, Reason.INTERNAL),
        (PREPARE, errors.LoginRefused("x"), True, Severity.FATAL, Reason.HOST_UNSUITABLE),
        (PREPARE, errors.LoginRefused("x"), False, Severity.RETRY, Reason.INTERNAL),
        (PREPARE, errors.HostSilent("x"), True, Severity.RETRY, Reason.INTERNAL),
        (PREPARE, errors.HostSilent("x"), False, Severity.RETRY, Reason.INTERNAL),
        (PREPARE, errors.HostLacks("x"), True, Severity.FATAL, Reason.HOST_UNSUITABLE),
        (PREPARE, errors.HostLacks("x"), False, Severity.UNSUITABLE, Reason.HOST_UNSUITABLE),
        (PREPARE, errors.HostKeyMismatch("x"), True, Severity.FATAL, Reason.HOST_KEY_MISMATCH),
        (FOLLOW, errors.HostFull("x"), True, Severity.RETRY, Reason.INTERNAL),
        (FOLLOW, errors.HostWiped("x"), True, Severity.WIPED, Reason.HOST_WIPED),
        (FOLLOW, errors.ConfigError("x"), False, Severity.RETRY, Reason.INTERNAL),
        (fx.CollectOutputs("l", True), errors.Permanent("x"), False, Severity.RETRY, Reason.INTERNAL),
        (fx.StartStep("l", "s.1"), errors.ConfigError("x"), True, Severity.FATAL, Reason.INTERNAL),
        (fx.Create("l"), errors.Ambiguous("x"), False, Severity.RETRY, Reason.INTERNAL),
        (fx.Create("l"), errors.Permanent("x"), False, Severity.UNSUITABLE, Reason.PROVISIONING_FAILED),
        (fx.ChooseOffer(), errors.NoCapacity("x"), False, Severity.RETRY, Reason.NO_CAPACITY),
        (fx.ChooseOffer(), errors.ModelRefused("x"), False, Severity.FATAL, Reason.MODEL_REFUSED),
        (fx.ShipInputs("l", None), errors.DatasetError("x"), True, Severity.FATAL, Reason.TRANSFER_FAILED),
        (fx.ShipInputs("l", None), errors.DigestMismatch("x"), True, Severity.RETRY, Reason.INTERNAL),
    ],
)
def test_what_a_failure_means(effect: fx.Effect, error: Exception, borrowed: bool, severity: Severity, reason: Reason) -> None:
    """Silence and doubt are tried again; what no repetition mends ends the attempt, or on a borrowed machine the job."""
    trouble = judged(effect, error, borrowed=borrowed)
    assert (trouble.severity, trouble.reason) == (severity, reason)


def test_a_borrowed_disk_that_is_full_is_waited_for() -> None:
    """A full disk is tried again for some ten minutes, as others share it, before it ends the job; a rented machine is changed at once."""
    before, waited = None, 0.0
    while before is None or before.severity is Severity.RETRY:
        before = judged(PREPARE, errors.HostFull("x"), before=before)
        waited += (before.retry_at - NOW).total_seconds()
    assert (before.severity, before.reason) == (Severity.FATAL, Reason.HOST_UNSUITABLE)
    assert 300 < waited < 900
    assert judged(PREPARE, errors.HostFull("x"), borrowed=False).severity is Severity.UNSUITABLE


def test_a_rented_machine_hears_of_our_key_late() -> None:
    """It may refuse the key for three minutes, counted from its first refusal; then it is changed for another one."""
    before = judged(PREPARE, errors.HostUnreachable("connection refused"), borrowed=False)
    before = judged(PREPARE, errors.LoginRefused("x"), borrowed=False, before=before, at=100)
    before = judged(PREPARE, errors.LoginRefused("x"), borrowed=False, before=before, at=279)
    assert before.severity is Severity.RETRY
    assert (before.retry_at - before.at).total_seconds() <= Policy().knock_max_s
    before = judged(PREPARE, errors.LoginRefused("x"), borrowed=False, before=before, at=281)
    assert (before.severity, before.reason) == (Severity.UNSUITABLE, Reason.HOST_UNSUITABLE)


def test_a_rented_machine_that_stays_silent_is_changed() -> None:
    """Five minutes without any answer mean a broken network; a refused connection in between shows that it is not."""
    first = judged(PREPARE, errors.HostSilent("x"), borrowed=False)
    assert judged(PREPARE, errors.HostSilent("x"), borrowed=False, before=first, at=301).severity is Severity.UNSUITABLE
    refused = judged(PREPARE, errors.HostUnreachable("connection refused"), borrowed=False, before=first, at=200)
    assert judged(PREPARE, errors.HostSilent("x"), borrowed=False, before=refused, at=301).severity is Severity.RETRY


def test_silence_while_the_provider_is_silent_too_may_be_ours() -> None:
    """A worker whose own network is down gives no machine up."""
    first = judged(PREPARE, errors.HostSilent("x"), borrowed=False)
    later = judged(PREPARE, errors.HostSilent("x"), borrowed=False, before=first, at=301, heard=False)
    assert later.severity is Severity.RETRY


def test_repeated_failures_wait_longer_up_to_a_cap() -> None:
    """Each failure in a row doubles the wait; another side's own wish is honoured."""
    waits, before = [], None
    for _ in range(12):
        before = judged(FOLLOW, errors.HostUnreachable("x"), before=before)
        waits.append((before.retry_at - NOW).total_seconds())
    assert waits[:4] == [0.25, 0.5, 1.0, 2.0]
    assert max(waits) == Policy().retry_max_s
    asked = judged(fx.FindInstance("l"), errors.Transient("x", retry_after_s=77))
    assert (asked.retry_at - NOW).total_seconds() == 77


# ----------------------------------------------------------------------------------------------------------------- script


def run_script(
    folder: Path, run: str, models: tuple[HubModel, ...] = (), host: dict[str, str] | None = None, **step: object
) -> str:
    """Run a step's script as the supervisor would, in the host's environment, and return what it prints."""
    plan_step = PlannedStep(name="s", run=run, **step)  # type: ignore[arg-type]
    given_input = Input(name="dataset", source="x", digest="d" * 64, size=1, files=1, chunks=())
    plan = Plan(tool="t@1", parameters={}, steps=(plan_step,), models=models)
    job = Job(id=JobId("j1"), name="j1", plan=plan, driver="local", created_at=NOW, inputs=(given_input,))
    text = step_script(job, Attempt(number=2, label="l", started_at=NOW), plan_step, StepRun(name="s", number=3))
    environment = {"PATH": os.environ["PATH"], "RT_ROOT": str(folder / "root"), "RT_WORK": str(folder / "work")}
    environment |= {"HOME": str(folder / "home"), **(host or {})}
    environment = {name: value for name, value in environment.items() if value}
    done = subprocess.run(["sh"], input=text.encode(), env=environment, capture_output=True, check=True)
    return done.stdout.decode()


def test_a_step_finds_everything_in_its_environment(tmp_path: Path) -> None:
    """Folders, inputs, attempt and try are exported; the output folder exists; the step starts in its working folder."""
    out = run_script(tmp_path, 'env | sort; pwd; test -d "$RT_OUTPUT"', workdir="sub/dir")
    assert f"RT_DATASET={tmp_path}/root/data/{'d' * 64}/tree" in out
    assert f"RT_METRICS={tmp_path}/work/metrics.jsonl" in out
    assert "RT_ATTEMPT=2" in out and "RT_TRY=3" in out
    assert out.strip().endswith("work/sub/dir")


def test_jobs_share_what_they_fetch_from_the_hub_below_our_folder(tmp_path: Path) -> None:
    """A step finds its model by name and commit, and the hub's cache on the disk that was measured.

    Unless the host keeps one elsewhere, by its environment, or in the home with that very model; the hub is the host's own, else ours.
    """
    models = (HubModel(input="base", name="acme/m", revision="c0ffee", folders=("unet",), endpoint="http://mirror/$x"),)
    run = 'echo "$RT_BASE ${HF_HUB_CACHE:-none} $HF_ENDPOINT"'
    assert run_script(tmp_path, run, models) == f"acme/m@c0ffee {tmp_path}/root/hub http://mirror/$x\n"
    assert run_script(tmp_path, run, models, {"HF_HOME": "/big"}) == "acme/m@c0ffee none http://mirror/$x\n"
    own = {"HF_HUB_CACHE": "/big/hub", "HF_ENDPOINT": "http://own"}
    assert run_script(tmp_path, run, models, own) == "acme/m@c0ffee /big/hub http://own\n"
    (tmp_path / "home" / ".cache" / "huggingface" / "hub" / "models--acme--m").mkdir(parents=True)
    assert run_script(tmp_path, run, models) == "acme/m@c0ffee none http://mirror/$x\n"
    assert run_script(tmp_path, 'echo "${HF_HUB_CACHE:-none}"') == "none\n"
    assert run_script(tmp_path, run, models, {"HOME": ""}) == f"acme/m@c0ffee {tmp_path}/root/hub http://mirror/$x\n", "no home"


@given(value=st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=60))
def test_values_of_the_environment_arrive_as_they_are(value: str) -> None:
    """No value of a plan is ever read as shell text."""
    folder = Path(tempfile.gettempdir()) / "rt-script-test"  # one for all examples: only empty folders are made there
    assert run_script(folder, 'printf %s "$VALUE"', env={"VALUE": value}) == value


@pytest.mark.parametrize("path", ['a"b', "a$(touch x)b", "a`b", "a\\b", "with space"])
def test_a_working_folder_with_an_odd_name(tmp_path: Path, path: str) -> None:
    """A recipe's folder name is a name, whatever is in it."""
    assert run_script(tmp_path, "pwd", workdir=path).strip() == f"{tmp_path}/work/{path}"


# ---------------------------------------------------------------------------------------------------------------- metrics


def test_lines_are_whole_however_they_arrive() -> None:
    """Any cut of the bytes gives the same lines; a carriage return ends one, as a progress bar's update does."""
    data = "step 1\rstep 2\r\nö\n\nlast".encode()
    for cut in range(len(data) + 1):
        reader = LineReader()
        assert [*reader.feed(data[:cut]), *reader.feed(data[cut:])] == ["step 1", "step 2", "ö"]


def test_numbers_and_progress_out_of_a_line() -> None:
    """Named groups become numbers; progress is the share of the total; what is no number is left out."""
    reader = PatternReader(
        [Pattern(regex=r"step (?P<step>\d+)/(?P<total>\d+)", kind="progress"), Pattern(regex=r"loss (?P<loss>\S+)")]
    )
    assert reader.read("step 3/12 loss 0.5") == {"step": 3, "total": 12, "progress": 0.25, "loss": 0.5}
    assert reader.read("loss nan") == {}
    assert reader.read("nothing here") == {}


@pytest.mark.parametrize(
    ("line", "values"),
    [
        (b'{"step": 1, "loss": 0.5}', {"step": 1.0, "loss": 0.5}),
        (b'{"loss": NaN, "a": true, "b": [1], "c": "x", "d": "2"}', {"d": 2.0}),
        (b"not json", {}),
        (b"[1]", {}),
        (b'{"x": ' + b"9" * 5000 + b"}", {}),
        (b"\xff\xfe", {}),
        (b"[" * 4000, {}),
    ],
)
def test_a_line_of_a_metrics_file(line: bytes, values: dict[str, float]) -> None:
    """Only finite numbers of a flat object count; anything else from a rented machine is ignored."""
    assert read_json_line(line) == values


def test_a_pattern_that_backtracks_without_end_is_given_up() -> None:
    """The line comes from a rented machine: it cannot keep the worker's other jobs waiting, and the other patterns still count."""
    reader = PatternReader([Pattern(regex=r"(x+x+)+=(?P<never>\d)"), Pattern(regex=r"loss=(?P<loss>[0-9.]+)")])
    assert reader.read("x" * 4000 + " loss=0.5") == {"loss": 0.5}
    assert reader.read("xx=1 loss=0.25") == {"loss": 0.25}


# --------------------------------------------------------------------------------------------------------------- identity


def test_a_dead_holder_is_told_from_a_live_one() -> None:
    """Only a process of this machine that is provably gone counts as dead; a reused pid is another process."""
    with subprocess.Popen(["true"]) as process:
        pid = process.pid
    machine = holder().partition("#")[0]
    assert tells(holder())
    assert not is_dead(holder())
    assert is_dead(f"{machine}#{pid}.123")
    assert is_dead(f"{machine}#{os.getpid()}.123")


def test_a_holder_that_nobody_has_waited_for_is_dead() -> None:
    """A worker that was killed is dead before its service manager has noticed."""
    with subprocess.Popen(["sleep", "60"]) as process:
        name = f"{holder().partition('#')[0]}#{process.pid}.{Path(f'/proc/{process.pid}/stat').read_text().split()[21]}"
        assert not is_dead(name)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert is_dead(name)


def test_who_cannot_be_told_is_alive() -> None:
    """Other machines, names that do not say where they are, and processes that may not be looked at are never judged dead."""
    host, boot, namespace = holder().partition("#")[0].split("/")
    with subprocess.Popen(["true"]) as process:
        gone = f"{process.pid}.123"
    for place in (f"elsewhere/{boot}/{namespace}", f"{host}/01234567/{namespace}", f"{host}/{boot}/1", f"{host}/-/-", host):
        assert not is_dead(f"{place}#{gone}")
    for process_part in ("", "x.1", "-1.1", "².", f"{process.pid}.-", f"{10**30}.1"):
        assert not is_dead(f"{host}/{boot}/{namespace}#{process_part}")
    assert not is_dead("nonsense")


_NAME_AND_WAIT = """\
import sys
from remote_trainer.worker.identity import holder, is_dead, tells
print(holder(), flush=True)
for line in sys.stdin:
    print(is_dead(line.strip()), flush=True)
"""


@pytest.mark.parametrize("proc", ["--mount-proc", None], ids=["own /proc", "the machine's /proc"])
def test_another_pid_namespace_is_another_machine(proc: str | None) -> None:
    """A live worker in a container that shares this machine's name and boot is never judged dead from outside, nor we from inside."""
    options = [*([] if os.geteuid() == 0 else ["--user", "--map-root-user"]), "--pid", "--fork", "--kill-child"]
    command = ["unshare", *options, *filter(None, [proc]), sys.executable, "-c", _NAME_AND_WAIT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as inside:
        assert inside.stdin is not None and inside.stdout is not None and inside.stderr is not None
        name = inside.stdout.readline().strip()
        if not name:
            pytest.skip(f"no pid namespace can be made here: {inside.stderr.read()}")
        assert not is_dead(name)
        for asked in (holder(), name):
            inside.stdin.write(asked + "\n")
            inside.stdin.flush()
            assert inside.stdout.readline() == "False\n"
        inside.stdin.close()
