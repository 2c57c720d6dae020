"""A host for the supervisor's tests: a root folder, one shell, one user, and the verbs as calls.

Rules for editing: no SSH and no Python client here; the supervisor is run the way an SSH server would run it, as a command with pipes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.support.patience import PATIENCE_S
from tests.support.smalldisk import small_disk

T = TypeVar("T")
SUPERVISOR = Path(__file__).parents[2] / "remote_trainer" / "host" / "supervisor.sh"
NOBODY = 65534
PATIENCE = PATIENCE_S
ROUNDS = int(os.environ.get("RT_ROUNDS", "1"))  # multiplies the rounds of the tests that race


@dataclass(frozen=True, slots=True)
class Kind:
    """Which shell runs the supervisor and its steps, and as whom."""

    shell: str
    user: int | None = None

    def __str__(self) -> str:
        return self.shell if self.user is None else f"{self.shell}-nobody"


KINDS = [Kind("dash"), Kind("bash"), Kind("busybox")] + ([Kind("dash", NOBODY)] if os.getuid() == 0 else [])


@dataclass(frozen=True, slots=True)
class Reply:
    """What a verb answered."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        return self.out.partition("\n")[0]

    @property
    def claim(self) -> str:
        """Of a start: what it says about who has claimed the step."""
        return self.line.partition(" | ")[0].partition(" ")[2]


def eventually(look: Callable[[], T], what: str = "it") -> T:
    """The first true answer."""
    end = time.monotonic() + PATIENCE
    while not (answer := look()):
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(0.02)
    return answer


class Host:
    """One machine, as far as the supervisor can tell."""

    def __init__(self, folder: Path, kind: Kind) -> None:
        self.folder, self.kind, self.root = folder, kind, folder / "rt"
        self.script = folder / "supervisor.sh"
        self.followers: list[Follower] = []
        shutil.copy(SUPERVISOR, self.script)
        self.script.chmod(0o644)
        bin_ = folder / "bin"
        bin_.mkdir()
        if kind.shell == "busybox":
            applets = subprocess.run(["busybox", "--list"], capture_output=True, text=True, check=True).stdout.split()
            for applet in applets:
                (bin_ / applet).symlink_to("/bin/busybox")
            self.path = str(bin_)
        else:
            (bin_ / "sh").symlink_to(shutil.which(kind.shell) or kind.shell)  # bash called as sh is in POSIX mode
            self.path = f"{bin_}:/usr/bin:/bin:/usr/sbin"
        if kind.user is not None:
            os.chown(folder, kind.user, kind.user)

    def environment(self, **more: str) -> dict[str, str]:
        return {"HOME": str(self.folder), "PATH": self.path, "RT_ROOT": str(self.root), **more}

    def popen(self, *words: object, **more: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [str(self.folder / "bin" / "sh"), str(self.script), *map(str, words)],
            env=self.environment(**more),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            user=self.kind.user,
            group=self.kind.user,
            extra_groups=[] if self.kind.user is not None else None,
            start_new_session=True,
        )

    def run(self, *words: object, stdin: str | bytes = b"", **more: str) -> Reply:
        process = self.popen(*words, **more)
        out, err = process.communicate(stdin.encode() if isinstance(stdin, str) else stdin, timeout=PATIENCE)
        return Reply(process.returncode, out.decode(), err.decode())

    def ok(self, *words: object, stdin: str | bytes = b"") -> Reply:
        reply = self.run(*words, stdin=stdin)
        assert reply.code == 0, (words, reply)
        return reply

    def launch(
        self, job: str, step: str, script: str, *, nonce: str = "n1", fence: int = 1, grace: int = 10, deadman: int = 0
    ) -> Reply:
        return self.run("launch", job, step, fence, "inc1", nonce, grace, deadman, script)

    def begin(self, job: str, step: str, script: str, *, nonce: str = "n1", grace: int = 10, deadman: int = 0) -> Reply:
        """Launches, and expects that to be the start."""
        reply = self.launch(job, step, script, nonce=nonce, grace=grace, deadman=deadman)
        assert reply.code == 0 and reply.out.startswith("started "), reply
        return reply

    def state(self, job: str, step: str) -> str:
        return self.ok("status", job, step).line

    def end_of(self, job: str, step: str) -> str:
        """The state in which the step ended, once it has."""
        final = ("exited", "lost", "cancelled")
        return eventually(lambda: (s := self.state(job, step)).startswith(final) and s, f"the end of {job} {step}") or ""

    def step_folder(self, job: str, step: str) -> Path:
        return self.root / "j" / job / "s" / step

    def attempts(self, job: str, step: str) -> list[Path]:
        return sorted(self.step_folder(job, step).glob("a.*"))

    def work(self, job: str) -> Path:
        return self.root / "j" / job / "w"

    def starts(self, job: str) -> int:
        """How many times a script that begins with RECORD_START began."""
        record = self.work(job) / "starts"
        return len(record.read_text().split()) if record.exists() else 0

    def log(self, job: str, step: str) -> bytes:
        (attempt,) = self.attempts(job, step)
        return (attempt / "log").read_bytes()

    def wait_for_log(self, job: str, step: str, text: bytes) -> None:
        eventually(lambda: text in self.log(job, step), f"{text!r} in the log")

    def supervisor_pid(self, job: str, step: str) -> int:
        (attempt,) = self.attempts(job, step)
        return int((attempt / "sup").read_text().split()[0])

    def processes(self, mark: bytes = b"") -> list[int]:
        """Of this host; with a mark, those that have it in their environment."""
        root = f"RT_ROOT={self.root}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                environment = (folder / "environ").read_bytes()
                if root in environment and mark in environment:
                    found.append(int(folder.name))
            except OSError:
                continue
        return found

    def end(self) -> None:
        """Ends whatever a test left."""
        for follower in self.followers:
            follower.cut()
        while pids := self.processes():
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.01)


def without_notes(log: bytes) -> bytes:
    """The log without what some shells write when a signal ends a program they run."""
    return log.replace(b"Terminated\n", b"")


RECORD_START = 'echo $$ >>"$RT_WORK/starts"\n'


@contextmanager
def running(kind: Kind) -> Iterator[Host]:
    """A host with incarnation inc1."""
    folder = Path(tempfile.mkdtemp(prefix="rt-host-", dir="/tmp"))  # not in pytest's folder, which nobody may not enter
    folder.chmod(0o755)
    host = Host(folder, kind)
    try:
        host.ok("init", "inc1")
        yield host
    finally:
        host.end()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running_small(kind: Kind, size: str, *, names: int | None = None) -> Iterator[Host]:
    """A host whose root is a disk of that size, with room for so many files and folders."""
    with running(kind) as host, small_disk(host.root, size, names=names):
        try:
            host.ok("init", "inc1")
            yield host
        finally:
            host.end()  # before its disk goes


class Follower:
    """One `follow` with its three streams."""

    def __init__(self, host: Host, job: str, step: str, offset: int = 0) -> None:
        self.offset = offset
        self.data = bytearray()
        self.lines: list[str] = []
        self.process = host.popen("follow", job, step, offset)
        host.followers.append(self)
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read_log, self._read_control)]
        for reader in self._readers:
            reader.start()

    def _read_log(self) -> None:
        assert self.process.stdout
        while chunk := os.read(self.process.stdout.fileno(), 1 << 20):
            self.data += chunk

    def _read_control(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.lines.append(line.decode().rstrip("\n"))

    def say(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def line(self, start: str) -> str:
        """The first control line that starts so."""
        return eventually(lambda: next((line for line in self.lines if line.startswith(start)), ""), f"a line {start!r}")

    def wait_for(self, size: int) -> None:
        eventually(lambda: len(self.data) >= size, f"{size} bytes")

    def to_the_end(self) -> bytes:
        """All there is from the offset on, the way a client knows that it has it all."""
        exit_ = self.line("X ")
        size = next(int(word[5:]) for word in exit_.split() if word.startswith("size="))
        self.wait_for(size - self.offset)
        self.close()
        assert len(self.data) == size - self.offset
        assert {line[:2] for line in self.lines} <= {"C ", "H ", "X "}, self.lines
        return bytes(self.data)

    def close(self) -> int:
        """Ends the input, as a closed channel does."""
        assert self.process.stdin
        self.process.stdin.close()
        return self._reap()

    def cut(self) -> bytes:
        """Kills all of it in the middle; what had arrived by then."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        assert self.process.stdin
        self.process.stdin.close()
        self._reap()
        return bytes(self.data)

    def _reap(self) -> int:
        code = self.process.wait(PATIENCE)
        for reader in self._readers:
            reader.join(PATIENCE)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream
            stream.close()
        return code
