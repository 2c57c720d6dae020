"""A machine that restarts and process numbers that are given out again: real ones, in a process space of the test's own.

Each space is what a container is to the supervisor: its first process ends them all, the next one has the old files, the same kernel and
another first process.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.supervisor_host import PATIENCE, RECORD_START, Host, Kind, Reply, eventually, running
from tests.support.evidence import Tally

pytestmark = pytest.mark.shells
SHELLS = [Kind("dash"), Kind("bash"), Kind("busybox")]
FOREVER = "while :; do sleep 0.05; done"


class Space:
    """A process space with its own numbers, on the disk of a host."""

    def __init__(self, host: Host) -> None:
        self._host = host
        # The first process collects the dead, as that of a container should.
        first = "trap : CHLD; while :; do sleep 1000 & wait $!; done"
        command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--", "/usr/bin/dash", "-c", first]
        self._outer = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL)
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children")
        self.first = int(eventually(lambda: children.read_text().strip(), "the first process"))
        eventually(lambda: "dash" in os.readlink(f"/proc/{self.first}/exe"), "its command")

    def run(self, *command: str, stdin: bytes = b"") -> Reply:
        """A command inside, with a host's environment."""
        enter = ["nsenter", f"--target={self.first}", "--pid", "--mount", "--", *command]
        done = subprocess.run(
            enter, env=self._host.environment(), input=stdin, capture_output=True, timeout=PATIENCE, check=False
        )
        return Reply(done.returncode, done.stdout.decode(), done.stderr.decode())

    def verb(self, *words: object) -> Reply:
        """The supervisor, inside."""
        return self.run(str(self._host.folder / "bin" / "sh"), str(self._host.script), *map(str, words))

    def launch(self, job: str, script: str, nonce: str = "n1") -> Reply:
        return self.verb("launch", job, "s.1", 1, "inc1", nonce, 5, 0, script)

    def state(self, job: str) -> str:
        return self.verb("status", job, "s.1").line

    def take(self, pid: int, script: str) -> None:
        """Let a stranger have that number: what runs the script. Others who begin just then may take it first, and end soon."""
        text = f'echo {pid - 1} >/proc/sys/kernel/ns_last_pid; setsid /usr/bin/dash -c "$0" </dev/null >/dev/null 2>&1 & echo $!'
        for _ in range(50):
            if (taken := int(self.run("/usr/bin/dash", "-c", text, script).out)) == pid:
                return
            self.run("kill", "-9", str(taken))
        raise AssertionError(f"the number {pid} cannot be had")

    def alive(self, pid: int) -> bool:
        """Whether a process with that number is there, and not only its remains."""
        stat = self.run("cat", f"/proc/{pid}/stat").out
        return bool(stat) and stat.rpartition(")")[2].split()[0] not in "ZX"

    def end(self) -> None:
        """What a container's end is: every process at once."""
        os.kill(self.first, signal.SIGKILL)
        self._outer.wait(PATIENCE)


@contextmanager
def space(host: Host) -> Iterator[Space]:
    """One life of a machine."""
    inside = Space(host)
    try:
        yield inside
    finally:
        if Path(f"/proc/{inside.first}").exists():
            inside.end()


@pytest.fixture(params=SHELLS, ids=str)
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    with running(request.param) as host:
        yield host


def pid_of(reply: Reply) -> int:
    return int(reply.claim.partition("pid=")[2].split()[0])


def crash(inside: Space, host: Host, pid: int, job: str) -> None:
    """The supervisor and the step are killed, and nothing of them is left."""
    supervisor = host.supervisor_pid(job, "s.1")
    inside.run("kill", "-9", str(supervisor))
    inside.run("kill", "-9", "--", f"-{pid}")
    eventually(lambda: not inside.alive(pid) and not inside.alive(supervisor), "the end of both")
    eventually(lambda: not inside.run("cat", f"/proc/{pid}/stat").out, "a free number")


@pytest.mark.fault("pid-reused")
def test_a_stranger_with_the_number_of_a_step_is_left_alone(host: Host, evidence: Tally) -> None:
    """The numbers of the step and of its supervisor were given out again: the step is lost, and a stop touches neither process."""
    with space(host) as inside:
        pid = pid_of(inside.launch("job", f"{RECORD_START} echo up; {FOREVER}"))
        crash(inside, host, pid, "job")
        strangers = [pid, host.supervisor_pid("job", "s.1")]
        for stranger in strangers:
            inside.take(stranger, FOREVER)
        assert inside.state("job").startswith("lost why=supervisor ")
        assert inside.verb("stop", "job", "s.1", 1, 0).line.startswith("lost why=supervisor ")
        inside.verb("__end", "job", "s.1", 0)
        assert inside.launch("job", RECORD_START, nonce="n2").out.startswith("adopted ")
        assert host.starts("job") == 1
        assert all(inside.alive(stranger) for stranger in strangers)
        evidence.ran(len(strangers))


@pytest.mark.fault("pid-reused")
def test_a_group_that_a_stranger_left_under_the_number_is_left_alone(host: Host) -> None:
    """The stranger ended too, but its child still has the number as its group: it is nobody's orphan, and nobody ends it."""
    with space(host) as inside:
        pid = pid_of(inside.launch("job", FOREVER))
        crash(inside, host, pid, "job")
        child = host.folder / "child"
        inside.take(pid, f"sleep 1000 & echo $! >{child}")
        number = int(eventually(lambda: child.exists() and child.read_text().strip(), "the child") or 0)
        eventually(lambda: not inside.alive(pid), "the end of the stranger")
        assert inside.state("job").startswith("lost why=supervisor ")
        inside.verb("__end", "job", "s.1", 0)
        assert inside.alive(number)


@pytest.mark.fault("host-rebooted")
def test_a_restart_is_told_from_a_crash(host: Host, evidence: Tally) -> None:
    """What ran is lost by a reboot, what was killed by a crash, what had ended keeps its code; nothing is started again."""
    with space(host) as inside:
        inside.launch("ended", f"{RECORD_START} exit 5")
        eventually(lambda: inside.state("ended").startswith("exited "), "the end")
        inside.launch("ran", f"{RECORD_START} echo up; {FOREVER}")
        killed = inside.launch("killed", f"{RECORD_START} echo up; {FOREVER}")
        for job in ("ran", "killed"):
            host.wait_for_log(job, "s.1", b"up\n")
        inside.run("kill", "-9", str(host.supervisor_pid("killed", "s.1")))
        eventually(lambda: inside.state("killed").startswith("orphan "), "the orphan")
        inside.run("kill", "-9", "--", f"-{pid_of(killed)}")
        eventually(lambda: inside.state("killed") == "lost why=supervisor size=3", "the crash")
        inside.end()
    with space(host) as inside:
        assert inside.state("ran") == "lost why=reboot size=3"
        assert inside.verb("stop", "ran", "s.1", 1, 0).line == "lost why=reboot size=3"
        assert inside.state("ended").startswith("exited code=5 ")
        assert inside.state("killed") in ("lost why=reboot size=3", "lost why=supervisor size=3")
        for job in ("ended", "ran", "killed"):
            assert inside.launch(job, f"{RECORD_START} exit 6", nonce="n2").out.startswith("adopted n=n1 ")
            assert host.starts(job) == 1
        assert inside.launch("next", f"{RECORD_START} exit 7").out.startswith("started ")
        eventually(lambda: inside.state("next").startswith("exited code=7 "), "the next step")
        evidence.ran(3)


@pytest.mark.fault("host-rebooted")
def test_a_restart_amid_a_stop_or_a_start_leaves_no_doubt(host: Host) -> None:
    """A step that was being stopped is lost; a start that had not claimed yet is made again, once."""
    with space(host) as inside:
        inside.launch("stopped", f"trap '' TERM; {RECORD_START} echo up; {FOREVER}")
        host.wait_for_log("stopped", "s.1", b"up\n")
        assert inside.verb("stop", "stopped", "s.1", 1, 60).line == "stopping"
        gate = host.folder / "gate"
        start = f"RT_FP=child.checked@{gate} sh {host.script} launch half s.1 1 inc1 n1 5 0 '{RECORD_START} exit 3'"
        inside.run(str(host.folder / "bin" / "sh"), "-c", f"({start}) >/dev/null 2>&1 </dev/null &")
        eventually(gate.with_name("gate.reached").exists, "a start just before its claim")
        inside.end()
    with space(host) as inside:
        assert inside.state("stopped") == "lost why=reboot size=3"
        assert inside.state("half") == "none"
        assert inside.launch("half", "exit 9", nonce="n2").out.startswith("started n=n2 ")
        eventually(lambda: inside.state("half").startswith("exited code=3 "), "the end")
        assert host.starts("half") == 1
