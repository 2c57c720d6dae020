"""Ending a step: TERM once, then nobody left, nobody else hit, and a true word about how it ended, whatever was killed or lost."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.integration.supervisor_host import KINDS, RECORD_START, Follower, Host, Kind, eventually, running, without_notes

pytestmark = pytest.mark.shells


@pytest.fixture(params=KINDS, ids=str)
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    kind: Kind = request.param
    with running(kind) as host:
        yield host


def members(host: Host, job: str, step: str, nonce: str = "n1") -> list[int]:
    return host.processes(f"RT_MARK=:{job}/{step}/{nonce}:".encode())


def test_a_stop_lets_the_step_save(host: Host) -> None:
    """A script that traps TERM gets it once, finishes within the grace, and its exit code is told with the reason."""
    host.begin("job", "s.1", 'trap "echo saving; sleep 0.3; echo saved; exit 17" TERM; echo up; while :; do sleep 0.05; done')
    host.wait_for_log("job", "s.1", b"up\n")
    assert host.ok("stop", "job", "s.1", 1, 20).line == "stopping"
    assert without_notes(Follower(host, "job", "s.1").to_the_end()) == b"up\nsaving\nsaved\n"
    state = host.state("job", "s.1")
    assert state.startswith("exited code=17 ") and state.endswith(" why=stop-f1")


@pytest.mark.parametrize(("own", "told"), [(17, 17), (0, 143)])
def test_a_stop_lets_the_program_of_the_script_save(host: Host, own: int, told: int) -> None:
    """The script's shell waits for the program in the foreground and passes its code on; a script cut short has not succeeded."""
    program = f"sh -c 'trap \"echo saved; exit {own}\" TERM; echo up; while :; do sleep 0.05; done'"
    host.begin("job", "s.1", f"{program}\necho never")
    host.wait_for_log("job", "s.1", b"up\n")
    host.ok("stop", "job", "s.1", 1, 20)
    assert host.end_of("job", "s.1").startswith(f"exited code={told} ")
    assert without_notes(host.log("job", "s.1")) == b"up\nsaved\n"


def test_a_stop_ends_what_does_not_want_to_end(host: Host) -> None:
    """A tree that ignores TERM, a loop that forks, and a daemon in a session of its own are gone after the grace, each told once."""
    stubborn = "trap 'echo TERM $$' TERM; echo up; while :; do sleep 0.05; done"
    script = (
        f"trap '' USR1; setsid sh -c \"{stubborn.replace('$', chr(92) + '$')}\" & (while :; do sleep 0.01; done) & {stubborn}"
    )
    host.begin("job", "s.1", script)
    eventually(lambda: host.log("job", "s.1").count(b"up\n") == 2, "both")
    host.ok("stop", "job", "s.1", 1, 1)
    assert host.end_of("job", "s.1").startswith("exited code=137 ")
    assert members(host, "job", "s.1") == []
    told = [line for line in host.log("job", "s.1").splitlines() if line.startswith(b"TERM")]
    assert len(told) == len(set(told)) == 2


def test_a_second_stop_may_be_more_impatient(host: Host) -> None:
    """The grace of the latest stop counts, and TERM is not repeated."""
    host.begin("job", "s.1", "trap 'echo TERM' TERM; echo up; while :; do sleep 0.05; done")
    host.wait_for_log("job", "s.1", b"up\n")
    host.ok("stop", "job", "s.1", 1, 1000)
    host.wait_for_log("job", "s.1", b"TERM")
    host.ok("stop", "job", "s.1", 1, 0)
    assert host.end_of("job", "s.1").startswith("exited code=137 ")
    assert without_notes(host.log("job", "s.1")) == b"up\nTERM\n"


def test_only_the_step_itself_is_stopped(host: Host) -> None:
    """Steps whose job, name or nonce begins alike, or is the same in another job, go on."""
    wait = "echo up; while :; do sleep 0.05; done"
    others = [("job", "s.10", "n1"), ("job", "s.2", "n10"), ("job2", "s.1", "n1")]
    host.begin("job", "s.1", wait, nonce="n1")
    for job, step, nonce in others:
        host.begin(job, step, wait, nonce=nonce)
    host.ok("stop", "job", "s.1", 1, 1)
    assert host.end_of("job", "s.1").startswith("exited ")
    assert [host.state(job, step).split()[0] for job, step, _ in others] == ["running"] * 3


def test_only_steps_of_this_root_are_stopped(host: Host) -> None:
    """Another root of the same machine may have a step with the same names and the same nonce: it goes on."""
    wait = "echo up; setsid sleep 300 & while :; do sleep 0.05; done"
    with running(host.kind) as other:
        for each in (host, other):
            each.begin("job", "s.1", wait)
            each.wait_for_log("job", "s.1", b"up\n")
        host.ok("stop", "job", "s.1", 1, 1)
        assert host.end_of("job", "s.1").startswith("exited ")
        assert (members(host, "job", "s.1"), len(members(other, "job", "s.1")) >= 2) == ([], True)


def test_what_a_step_leaves_behind_is_ended(host: Host) -> None:
    """A daemon in a session of its own does not outlive its step; the step's own code is told."""
    host.begin("job", "s.1", "setsid sh -c 'while :; do sleep 0.05; done' & sleep 0.1; exit 5", grace=1)
    state = host.end_of("job", "s.1")
    assert state.startswith("exited code=5 ") and state.endswith(" why=")
    assert members(host, "job", "s.1") == []


def test_what_a_step_leaves_behind_with_another_environment_is_ended(host: Host) -> None:
    """Its mark is found wherever it stands among the variables."""
    daemon = 'env -i A=1 "PATH=$PATH" "RT_ROOT=$RT_ROOT" "RT_MARK=$RT_MARK" B=2 setsid sleep 300'
    host.begin("job", "s.1", f"{daemon} & sleep 0.1; exit 5", grace=1)
    assert host.end_of("job", "s.1").startswith("exited code=5 ")
    assert members(host, "job", "s.1") == []


def test_stopping_what_never_started_cancels_it(host: Host) -> None:
    """And stopping what has ended reports the end."""
    assert host.ok("stop", "job", "s.1", 3, 1).line == "cancelled f=3"
    assert host.launch("job", "s.1", RECORD_START, fence=3).out.endswith("| cancelled f=3\n")
    host.begin("job2", "s.1", "exit 3")
    host.end_of("job2", "s.1")
    assert host.ok("stop", "job2", "s.1", 3, 1).line.startswith("exited code=3 ")
    assert host.ok("cancel", "job2", "s.1", 3).line.startswith("exited code=3 ")


@pytest.mark.fault("nobody-speaks")
def test_a_step_without_a_worker_ends(host: Host) -> None:
    """When nobody has renewed the lease for so many seconds the step is stopped; one whose lease is renewed goes on."""
    rounds = itertools.count()
    eventually(lambda: left_and_kept(host, next(rounds)), "a round in which every renewal was in time")


def left_and_kept(host: Host, number: int) -> bool:
    """Of two steps renew the lease of one; tell whether that was never too late, else its end would prove nothing."""
    left, kept, within_s = f"left{number}", f"kept{number}", 2
    renewed, longest = time.monotonic(), 0.0
    for job, deadman in ((kept, within_s), (left, 1)):
        host.begin(job, "s.1", "while :; do sleep 0.05; done", deadman=deadman)
    while not host.state(left, "s.1").startswith("exited "):
        asked = time.monotonic()
        host.ok("touch", kept)
        renewed, longest = asked, max(longest, time.monotonic() - renewed)
    assert host.state(left, "s.1").endswith(" why=deadman")
    state = host.state(kept, "s.1")
    if max(longest, time.monotonic() - renewed) >= within_s:
        return False
    assert state.startswith("running ")
    return True


def test_the_exit_code_survives_the_supervisor(host: Host) -> None:
    """While the step lives without its supervisor it is an orphan; then its code is told by the second witness."""
    host.begin("job", "s.1", f"until [ -e {host.folder}/go ]; do sleep 0.02; done; exit 23")
    follower = Follower(host, "job", "s.1")
    os.kill(host.supervisor_pid("job", "s.1"), signal.SIGKILL)
    eventually(lambda: host.state("job", "s.1").startswith("orphan "), "the orphan")
    (host.folder / "go").touch()
    assert follower.to_the_end() == b""
    state = host.state("job", "s.1")
    assert state.startswith("exited code=23 size=0 ") and state.endswith(" why=supervisor")


def test_a_step_killed_with_its_supervisor_is_lost(host: Host) -> None:
    """Nobody saw the exit code, and nobody makes one up."""
    claim = host.begin("job", "s.1", "echo up; while :; do sleep 0.05; done").claim
    host.wait_for_log("job", "s.1", b"up")
    os.kill(host.supervisor_pid("job", "s.1"), signal.SIGKILL)
    os.killpg(int(claim.partition("pid=")[2].split()[0]), signal.SIGKILL)
    assert host.end_of("job", "s.1") == "lost why=supervisor size=3"
    assert host.launch("job", "s.1", "exit 0", nonce="n2").out == f"adopted {claim} | lost why=supervisor size=3\n"


def test_an_orphan_can_be_stopped(host: Host) -> None:
    """Also without a supervisor nothing of the step is left."""
    host.begin("job", "s.1", "trap '' TERM; setsid sleep 300 & echo up; while :; do sleep 0.05; done")
    host.wait_for_log("job", "s.1", b"up")
    os.kill(host.supervisor_pid("job", "s.1"), signal.SIGKILL)
    eventually(lambda: host.state("job", "s.1").startswith("orphan "), "the orphan")
    assert host.run("clean", "job", 1).code == 73
    assert host.ok("stop", "job", "s.1", 1, 1).line == "stopping"
    assert host.end_of("job", "s.1").startswith("lost why=supervisor ")
    assert members(host, "job", "s.1") == []


def test_after_a_reboot_the_step_is_lost_and_its_pid_is_a_stranger(host: Host) -> None:
    """Neither another boot, nor another start time within this one, makes a stop touch the process that now has the step's pid."""
    claim = host.begin("job", "s.1", "echo up; while :; do sleep 0.05; done").claim
    host.wait_for_log("job", "s.1", b"up")
    pid = claim.partition("pid=")[2].split()[0]
    os.kill(host.supervisor_pid("job", "s.1"), signal.SIGKILL)
    os.killpg(int(pid), signal.SIGKILL)
    innocent = subprocess.Popen(
        ["sleep", "300"], start_new_session=True, user=host.kind.user, extra_groups=[] if host.kind.user else None
    )
    try:
        folder = host.step_folder("job", "s.1")
        (folder / "a.n1" / "sup").write_text(f"{innocent.pid} 1\n")
        same_pid = claim.replace(f"pid={pid} ", f"pid={innocent.pid} ")
        boot = claim.partition(" id=")[2].split()[0]

        (folder / "claim").write_text(same_pid.replace(boot, "another-boot/77") + "\n")
        assert host.state("job", "s.1") == "lost why=reboot size=3"
        assert host.ok("stop", "job", "s.1", 1, 0).line == "lost why=reboot size=3"

        (folder / "claim").write_text(same_pid + "\n")
        assert host.state("job", "s.1") == "lost why=supervisor size=3"
        assert host.ok("stop", "job", "s.1", 1, 0).line == "lost why=supervisor size=3"
        host.run("__end", "job", "s.1", 0)

        assert host.launch("job", "s.1", RECORD_START, nonce="n2").out.startswith("adopted ")
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


@pytest.mark.parametrize("content", ["", "\n", "n=n1\n", "n=n1 f=1 pid= st= id= t=\n", "nonsense"])
def test_a_damaged_claim_still_says_that_there_was_a_start(content: str) -> None:
    """It can not be read, so the step is lost; but it is never started again."""
    with running(KINDS[0]) as host:
        host.begin("job", "s.1", RECORD_START + "exit 3")
        host.end_of("job", "s.1")
        (host.step_folder("job", "s.1") / "claim").write_text(content)
        assert host.state("job", "s.1") == "lost why=supervisor size=0"
        assert host.launch("job", "s.1", RECORD_START, nonce="n2").out == "adopted n=unknown | lost why=supervisor size=0\n"
        assert host.starts("job") == 1


@pytest.mark.parametrize("content", ["", "\n", "code=", "code=0", "code=0 size=3 t=1 why="])
def test_half_an_exit_is_not_believed(content: str) -> None:
    """An exit file that is empty or cut off before its end is as good as none: the second witness is asked."""
    with running(KINDS[0]) as host:
        host.begin("job", "s.1", "exit 3")
        host.end_of("job", "s.1")
        (host.step_folder("job", "s.1") / "a.n1" / "exit").write_text(content)
        assert host.state("job", "s.1").startswith("exited code=3 size=0 ")
        assert host.state("job", "s.1").endswith(" why=supervisor")


def test_cleaning_waits_for_the_end_and_keeps_the_fences(host: Host) -> None:
    """A running step keeps the job's files; afterwards they go, and repeating it is no error."""
    host.begin("job", "s.1", f"echo x >file; until [ -e {host.folder}/go ]; do sleep 0.02; done")
    assert host.run("clean", "job", 1).code == 73
    (host.folder / "go").touch()
    host.end_of("job", "s.1")
    assert [host.ok("clean", "job", 1).line for _ in range(2)] == ["ok", "ok"]
    assert [path.name for path in (host.root / "j" / "job").iterdir()] == ["fence"]


def test_a_whole_job_is_asked_in_one_call(host: Host) -> None:
    """One line per step, in the order of the question."""
    host.begin("job", "a.1", "exit 3")
    host.end_of("job", "a.1")
    host.ok("cancel", "job", "b.1", 2)
    lines = host.ok("statuses", "job", "b.1", "c.1", "a.1").out.splitlines()
    assert lines[:2] == ["b.1 cancelled f=2", "c.1 none"]
    assert lines[2].startswith("a.1 exited code=3 size=0 ")
