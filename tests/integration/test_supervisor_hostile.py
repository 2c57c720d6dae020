"""Whatever a step does to itself, its log and its folders: its end is told truly, nobody is left, and no byte of its log is wrong."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integration.supervisor_host import Follower, Host, Kind, eventually, running, without_notes
from tests.support.evidence import Tally

pytestmark = [pytest.mark.shells, pytest.mark.fault("hostile-step")]
SHELLS = [Kind("dash"), Kind("bash"), Kind("busybox")]

FOREVER = "while :; do sleep 0.05; done"
ATTEMPT = '"$RT_ROOT/j/$RT_JOB/s/$RT_STEP"/a.n1'

#: What a step does before it exits with 4, having written "out".
DEEDS = {
    "daemon": f"setsid sh -c '{FOREVER}' &",
    "double-fork": f"( ( {FOREVER} ) & ) &",
    "deaf-child": f"(trap '' TERM; {FOREVER}) &",
    "deaf-daemon": f"setsid sh -c 'trap \"\" TERM; {FOREVER}' &",
    "own-group": f"set -m; ({FOREVER}) & set +m",
    "child-that-writes": "(trap '' TERM; while :; do echo more; sleep 0.01; done) &",
    "no-stdout": "exec >&-",
    "no-output": "exec >&- 2>&-; echo unheard",
    "another-output": "exec >/dev/null 2>&1; echo elsewhere",
    "no-work-folder": 'rm -rf "$RT_WORK"',
    "another-work-folder": 'cd /; mv "$RT_WORK" "$RT_WORK.old"; mkdir "$RT_WORK"; cd "$RT_WORK"; echo mine >file',
    "no-reserves": f"rm -f {ATTEMPT}/*.r",
    "no-witnesses": f"rm -f {ATTEMPT}/lock {ATTEMPT}/term.r {ATTEMPT}/code.r {ATTEMPT}/rec",
    "read-only-folder": f"chmod 500 {ATTEMPT}",
    "no-supervisor": f'read -r pid _ <{ATTEMPT}/sup; kill -9 "$pid"',
    "bare-environment": "env -i sleep 100 &",
    "no-path": "PATH=/nowhere",
    "no-such-program": "/nowhere/program",
    "part-of-a-character": "printf '\\303'",
}


def deed(host: Host, name: str) -> None:
    """Does one of them, and looks at what came of it."""
    job = f"does-{name}"
    host.begin(job, "s.1", f"printf out; {DEEDS[name]}\nexit 4", grace=1)
    follower = Follower(host, job, "s.1")
    heard = follower.to_the_end()
    state = host.state(job, "s.1")
    assert state.startswith("exited code=4 "), (name, state)
    assert (" why=supervisor" in state) == (name == "no-supervisor"), (name, state)
    assert heard == host.log(job, "s.1") and heard.startswith(b"out"), (name, heard)
    assert not host.processes(f"RT_MARK=:{job}/".encode()), name


@pytest.mark.parametrize("kind", SHELLS, ids=str)
def test_what_a_step_does_to_its_surroundings_is_its_own_affair(kind: Kind, evidence: Tally) -> None:
    """It leaves children, closes its output, takes its folders away: its exit code is told, and its log is final and whole."""
    with running(kind) as host, ThreadPoolExecutor(4) as pool:
        for _ in pool.map(lambda name: deed(host, name), DEEDS):
            evidence.ran()


@pytest.mark.parametrize("kind", SHELLS, ids=str)
def test_each_signal_is_told(kind: Kind, evidence: Tally) -> None:
    """A step that a signal ends exits with 128 and its number; one that it does not end goes on."""
    ignored = {signal.SIGINT, signal.SIGQUIT, signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH}
    stops = {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
    numbers = [*({*range(1, 32)} - stops), 34]  # 34 stands for the real-time ones

    def one(number: int) -> None:
        host.begin(f"signal-{number}", "s.1", f"sh -c 'kill -{number} '$$; exit 4", nonce="n1")
        state = host.end_of(f"signal-{number}", "s.1")
        code = 4 if number in ignored else 128 + number
        assert state.startswith(f"exited code={code} ") and state.endswith(" why="), (number, state)

    with running(kind) as host, ThreadPoolExecutor(4) as pool:
        for _ in pool.map(one, numbers):
            evidence.ran()


STUBBORN = {
    "flood": f"trap '' TERM; echo up; while :; do echo {'flood' * 20}; done",
    "stopped": "echo up; kill -STOP $$; exit 0",
    "forks": f"f() {{ (trap '' TERM; sleep 0.05; f) & }}; f; echo up; {FOREVER}",
    "multiplies": f"trap 'for i in 1 2 3 4 5 6 7 8 9 10 11 12; do (trap \"\" TERM; {FOREVER}) & done' TERM; echo up; {FOREVER}",
    "multiplies-outside": f"trap 'for i in 1 2 3 4; do setsid sh -c \"trap : TERM; {FOREVER}\" & done' TERM; echo up; {FOREVER}",
}


@pytest.mark.parametrize("kind", SHELLS, ids=str)
def test_what_fights_its_end_is_ended(kind: Kind, evidence: Tally) -> None:
    """It floods its log, forks, multiplies or stands still while it is stopped: it is gone, and its log is whole and final."""

    def one(name: str) -> None:
        host.begin(name, "s.1", STUBBORN[name], grace=1)
        follower = Follower(host, name, "s.1")
        follower.wait_for(3)
        host.ok("stop", name, "s.1", 1, 1)
        state = host.end_of(name, "s.1")
        heard = follower.to_the_end()
        assert state.startswith("exited code=143 " if name == "stopped" else ("exited code=137 ", "exited code=143 ")), (
            name,
            state,
        )
        assert state.endswith(" why=stop-f1") and heard == host.log(name, "s.1"), (name, state)
        assert not host.processes(f"RT_MARK=:{name}/".encode()), name

    with running(kind) as host, ThreadPoolExecutor(2) as pool:
        for _ in pool.map(one, STUBBORN):
            evidence.ran()


@pytest.mark.parametrize("kind", SHELLS, ids=str)
def test_a_step_that_removes_the_folder_of_its_job_is_not_started_again(kind: Kind) -> None:
    """The start is known from a witness outside: it is an orphan while it lives, can be stopped, and then it is lost."""
    with running(kind) as host:
        record = host.folder / "record"
        script = f'echo start >>{record}; rm -rf "$RT_ROOT/j/$RT_JOB"; echo gone >>{record}; {FOREVER}'
        claim = host.begin("job", "s.1", script, grace=1).claim
        eventually(lambda: "gone" in record.read_text() if record.exists() else False, "the removal")
        assert host.state("job", "s.1").startswith("orphan ")
        assert host.launch("job", "s.1", script, nonce="n2").claim == claim
        host.ok("stop", "job", "s.1", 1, 1)
        assert host.end_of("job", "s.1").startswith("lost why=supervisor ")
        assert host.launch("job", "s.1", script, nonce="n3").claim == claim
        assert record.read_text().split() == ["start", "gone"]
        host.ok("clean", "job", 1)


def test_the_end_of_a_flood_is_the_end() -> None:
    """Once X was said not one byte is added to the log, however the step's children held on to it."""
    with running(SHELLS[0]) as host:
        host.begin(
            "job", "s.1", "(trap '' TERM; while :; do echo x; done) & setsid sh -c 'while :; do echo y; done' & exit 0", grace=1
        )
        follower = Follower(host, "job", "s.1")
        follower.line("X ")
        size = len(host.log("job", "s.1"))
        time.sleep(0.1)  # not for luck: time in which a writer that was left would write
        assert len(without_notes(follower.to_the_end())) <= size == len(host.log("job", "s.1"))
