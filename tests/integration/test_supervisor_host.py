"""What the supervisor asks of a host, what it does when the disk is full, and how it keeps secrets."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.supervisor_host import (
    KINDS,
    RECORD_START,
    SUPERVISOR,
    Follower,
    Host,
    Kind,
    eventually,
    running,
    running_small,
)
from tests.support.smalldisk import fill

pytestmark = pytest.mark.shells

# All that is needed, but for setsid.
TOOLS = "cat date dd df find grep id ln mkdir mv rm sed sha256sum sleep stat sync tail touch tr uname wc"


@pytest.fixture(params=KINDS, ids=str)
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    kind: Kind = request.param
    with running(kind) as host:
        yield host


def test_shellcheck_finds_nothing() -> None:
    """Neither as POSIX sh nor as dash."""
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    for dialect in ("sh", "dash"):
        done = subprocess.run(["shellcheck", "-s", dialect, str(SUPERVISOR)], capture_output=True, text=True, check=False)
        assert (done.stdout, done.returncode) == ("", 0)


def test_init_tells_the_facts(host: Host) -> None:
    """The incarnation that was there first, and what a worker needs to know about the machine."""
    lines = host.ok("init", "inc2").out.splitlines()
    assert lines[0] == "inc inc1"
    facts = dict(line.removeprefix("fact ").split(" ", 1) for line in lines[1:])
    assert facts["protocol"] == "1"
    assert facts["home"] == str(host.folder)
    assert facts["uid"] == str(host.kind.user or os.getuid())
    assert all(int(facts[name]) > 0 for name in ("disk_free", "disk_total", "mem_total", "cpus"))
    assert all(facts[f"have_{name}"] in "01" for name in ("rsync", "python3", "tar", "zstd", "flock"))
    assert facts["have_sha256"] in ("openssl", "sha256sum", "shasum", "none")
    assert {"boot", "kernel", "arch", "shell"} <= facts.keys()
    assert not list(host.root.glob("try.*"))


def test_init_tells_each_gpu(host: Host) -> None:
    """One line per GPU, its name in one word."""
    tool = host.folder / "bin" / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '0, NVIDIA H200 NVL, 143771, 550.54.15'\necho '1, NVIDIA H200 NVL, 143771, 550.54.15'\n")
    tool.chmod(0o755)
    gpus = [line for line in host.ok("init", "inc1").out.splitlines() if line.startswith("fact gpu ")]
    assert gpus == [f"fact gpu {i} NVIDIA_H200_NVL 143771 550.54.15" for i in (0, 1)]


def test_init_names_what_is_missing() -> None:
    """A host without a program that the protocol rests on is refused by that program's name."""
    with running(Kind("dash")) as host:
        for tool in TOOLS.split():
            (host.folder / "bin" / tool).symlink_to(shutil.which(tool) or tool)
        reply = host.run("init", "inc1", PATH=str(host.folder / "bin"))
        assert (reply.code, reply.err) == (79, "E the host lacks the program setsid\n")


def test_init_refuses_a_root_without_hard_links() -> None:
    """Some network mounts have none; the claim rests on them."""
    with running(Kind("dash")) as host:
        ln = host.folder / "bin" / "ln"
        ln.write_text("#!/bin/sh\nexit 1\n")
        ln.chmod(0o755)
        reply = host.run("init", "inc1")
        assert (reply.code, reply.err) == (79, f"E the host lacks hard links in {host.root}\n")


def test_a_root_that_cannot_be_written_is_named(host: Host) -> None:
    """The message says which folder."""
    reply = host.run("init", "inc1", RT_ROOT="/proc/nowhere")
    assert reply.code == 79 and reply.err.startswith("E cannot write /proc/nowhere")


def test_the_step_finds_its_place(host: Host) -> None:
    """Its work folder, its names, a usual umask, nothing on stdin, and the fail points out of sight."""
    script = 'pwd; echo "$RT_WORK $RT_JOB $RT_STEP ${RT_FP-none}"; umask; cat; set -- a; echo $#'
    host.begin("job", "s.1", script)
    work = host.work("job")
    assert Follower(host, "job", "s.1").to_the_end().decode() == f"{work}\n{work} job s.1 none\n0022\n1\n"


def test_the_step_dies_first_when_memory_is_short(host: Host) -> None:
    """Its OOM score is above its supervisor's."""
    host.begin("job", "s.1", f"cat /proc/self/oom_score_adj; until [ -e {host.folder}/go ]; do sleep 0.02; done")
    host.wait_for_log("job", "s.1", b"\n")
    supervisor = Path(f"/proc/{host.supervisor_pid('job', 's.1')}/oom_score_adj").read_text()
    assert int(host.log("job", "s.1")) == 300 > int(supervisor)


@pytest.mark.fault("secret-sought")
def test_secrets_reach_the_step_and_nobody_else(host: Host) -> None:
    """The file is 0600 and gone before the step's first command; no command line ever holds a secret."""
    values = {"TOKEN": "s3cr3t-value-'\"$x`", "LINES": "first\nsecond=\n\n", "EMPTY": ""}
    given = "".join(f"{name}={base64.b64encode(value.encode()).decode()}\n" for name, value in values.items())
    host.ok("secrets", "job", "s.1", stdin=given + ".\n")
    secrets = host.step_folder("job", "s.1") / "secrets"
    assert secrets.stat().st_mode & 0o777 == 0o600
    script = f"""
[ -e {secrets} ] && echo still there
for name in TOKEN LINES EMPTY; do eval "printf '%s|' \\"\\$$name\\""; done
until [ -e {host.folder}/go ]; do sleep 0.02; done
"""
    host.begin("job", "s.1", script)
    host.wait_for_log("job", "s.1", b"||")
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        assert b"s3cr3t-value" not in command and base64.b64encode(values["TOKEN"].encode()) not in command
    assert not secrets.exists()
    (host.folder / "go").touch()
    assert Follower(host, "job", "s.1").to_the_end().decode() == "".join(f"{value}|" for value in values.values())
    found = subprocess.run(["grep", "-rlF", "s3cr3t", str(host.root)], capture_output=True, text=True, check=False).stdout
    assert found.split() == [str(host.attempts("job", "s.1")[0] / "log")]  # where the step itself has put it


@pytest.mark.fault("secret-sought")
def test_secrets_do_not_outlive_their_step(host: Host) -> None:
    """They go with a cancel, and those sent after the start are not kept."""
    host.ok("secrets", "job", "s.1", stdin="A=YQ==\n.\n")
    host.ok("cancel", "job", "s.1", 1)
    host.ok("secrets", "job", "s.1", stdin="A=YQ==\n.\n")
    assert not list(host.step_folder("job", "s.1").glob("secrets*"))


@pytest.mark.parametrize("given", ["", "A=YQ==\n", "A=YQ==\n.", "A=$(id)\n.\n", "A B=YQ==\n.\n", "A\n.\n", "1A=YQ==\n.\n"])
def test_secrets_that_came_in_damaged_are_refused(given: str) -> None:
    """A connection that breaks in the middle must not leave half of them."""
    with running(KINDS[0]) as host:
        reply = host.run("secrets", "job", "s.1", stdin=given)
        complete = given == "A=YQ==\n."
        assert reply.code == (0 if complete else 78)
        assert complete or not list(host.step_folder("job", "s.1").glob("secrets*"))


# --- a full disk --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[Kind("dash"), Kind("bash"), Kind("busybox")], ids=str)
def small_host(request: pytest.FixtureRequest) -> Iterator[Host]:
    with running_small(request.param, "512k") as host:
        yield host


def test_nothing_half_done_is_left_on_a_full_disk(small_host: Host) -> None:
    """Every verb that must write says 28 and leaves nothing that later counts; with space again the same calls succeed."""
    full = fill(small_host.root)
    replies = [
        small_host.launch("job", "s.1", RECORD_START + "exit 3"),
        small_host.run("prep", "job", "s.1", stdin="exit 3\n"),
        small_host.run("secrets", "job", "s.1", stdin="A=YQ==\n.\n"),
        small_host.run("cancel", "job", "s.1", 1),
        small_host.run("init", "inc1"),
    ]
    assert [reply.code for reply in replies] == [28] * len(replies), replies
    assert all(reply.err.startswith("E no space left") and reply.err.count("\n") == 1 for reply in replies), replies
    assert small_host.state("job", "s.1") == "none"
    full.unlink()
    small_host.begin("job", "s.1", RECORD_START + "exit 3", nonce="n2")
    assert small_host.end_of("job", "s.1").startswith("exited code=3 ")
    assert small_host.starts("job") == 1


def test_a_start_that_meets_a_full_disk_says_so(small_host: Host) -> None:
    """The script is there, but there is no room for the claim: 28, and the next start finds nothing in its way."""
    small_host.ok("prep", "job", "s.1", stdin=RECORD_START + "exit 3\n")
    full = fill(small_host.root)
    assert small_host.run("start", "job", "s.1", 1, "inc1", "n1", 10, 0).code == 28
    full.unlink()
    small_host.ok("start", "job", "s.1", 1, "inc1", "n2", 10, 0)
    assert small_host.end_of("job", "s.1").startswith("exited code=3 ")


def test_a_step_that_fills_the_disk_has_an_exit_code(small_host: Host) -> None:
    """Room for it was reserved; stopping and following work on a full disk as well."""
    small_host.begin("job", "s.1", "cat /dev/zero >fill 2>/dev/null; echo lost; exit 9")
    assert small_host.end_of("job", "s.1").startswith("exited code=9 ")
    follower = Follower(small_host, "job", "s.1")
    follower.say("P 1")
    follower.line("H ")
    follower.to_the_end()
    small_host.ok("clean", "job", 1)


def test_a_full_disk_does_not_keep_a_step_from_being_stopped(small_host: Host) -> None:
    """The wish for a grace may get lost, the stop does not."""
    small_host.begin("job", "s.1", "cat /dev/zero >fill 2>/dev/null; while :; do sleep 0.05; done", grace=1)
    eventually(lambda: shutil.disk_usage(small_host.root).free == 0, "a full disk")
    small_host.ok("stop", "job", "s.1", 1, 1)
    assert small_host.end_of("job", "s.1").startswith("exited code=143 ")


def test_an_exit_code_waits_for_space(small_host: Host) -> None:
    """Even without the reserved room it is written as soon as it can be; until then the step counts as running."""
    small_host.begin("job", "s.1", f"until [ -e {small_host.folder}/go ]; do sleep 0.02; done; exit 9")
    attempt = small_host.attempts("job", "s.1")[0]
    for reserved in ("exit.r", "code.r"):
        (attempt / reserved).unlink()
    full = fill(small_host.root)
    (small_host.folder / "go").touch()
    eventually(lambda: (attempt / "exit.r").exists(), "the first try")
    assert small_host.state("job", "s.1").startswith("running ")
    full.unlink()
    assert small_host.end_of("job", "s.1").startswith("exited code=9 ")
