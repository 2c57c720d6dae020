"""Container hosts from outside: what runs there, killed or counted; a small disk, filled or looked at; the record of the steps.

Everything is read through /proc and the mounted record, so that neither SSH nor the product is asked.

Rules for editing: processes are told apart by their pid namespace; a process may be gone before it is looked at.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.containers import ContainerHost, Fleet

#: The product's folder on a host, on a disk that can be filled.
ROOT = "/small/root"
_SMALL_MB = 256

_OF_STEP = re.compile(rb"(?:^|\0)RT_MARK=:([^/]+)/([^/]+)/")
_SUPERVISOR = re.compile(rb"\0__(?:supervise|command|end)\0([^\0]+)\0([^\0]+)\0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process on a host; ``label`` and ``step`` are set for a supervisor's and a step's."""

    pid: int  # here, not there
    inner: int  # there
    parent: int
    name: str
    command: str
    label: str = ""
    step: str = ""
    supervisor: bool = False


@dataclass
class StormHost:
    """One container with its record."""

    box: ContainerHost
    record: Path
    listener: int  # sshd, which is pid 1 there

    @property
    def disk(self) -> Path:
        """The small disk, from here."""
        return Path(f"/proc/{self.listener}/root/small")

    def processes(self) -> list[Process]:
        """Return everything that runs there but the SSH server; zombies are nothing that runs."""
        space = os.readlink(f"/proc/{self.listener}/ns/pid")
        found = (_look_at(int(name), space) for name in os.listdir("/proc") if name.isdigit() and int(name) != self.listener)
        return [process for process in found if process is not None]

    def running_steps(self) -> list[tuple[str, str]]:
        """Return label and step of everything supervised, in order; from the disk, as a look at all processes takes long."""
        steps = {sup.parent for sup in (self.disk / "root" / "j").glob("*/s/*/a.*/sup")}
        return sorted((at.parts[-4], at.parts[-2]) for at in steps if not (at / "exit").exists())

    def kill_sessions(self) -> int:
        """`kill -9` of every sshd process but the listener; what users detached goes on."""
        doomed = [process.pid for process in self.processes() if process.name == "sshd"]
        return sum(_kill(pid) for pid in doomed)

    def kill_run(self, label: str, step: str, *, supervisor: bool, processes: bool) -> int:
        """`kill -9` of a step's supervisor, of its processes, or of both; returns how many were killed."""
        mine = [process for process in self.processes() if (process.label, process.step) == (label, step)]
        first = [process for process in mine if process.supervisor and supervisor]
        # The supervisor's helpers look like it, and are its children.
        if not processes:
            pids = {process.pid for process in first}
            first = [process for process in first if process.parent not in pids]
        then = [process for process in mine if not process.supervisor and processes]
        return sum(_kill(process.pid) for process in [*first, *then])

    def fill(self) -> None:
        """Take what is left of the disk."""
        with (self.disk / "filler").open("ab") as filler:
            fill(filler.fileno())

    def free(self) -> None:
        """Give it back."""
        (self.disk / "filler").unlink(missing_ok=True)

    def folders(self) -> Iterator[tuple[str, str]]:
        """Yield label and folder of everything a job has left there, but for the fences, which stay."""
        for job in sorted((self.disk / "root" / "j").glob("*")):
            yield from ((job.name, entry.name) for entry in job.iterdir() if entry.name != "fence")

    def starts(self) -> Counter[tuple[str, str]]:
        """Return how often each step run was started, by its own account."""
        path = self.record / "starts"
        lines = path.read_text().splitlines() if path.exists() else []
        return Counter((line.split()[0], line.split()[1]) for line in lines)

    def logs(self) -> dict[tuple[str, str], bytes]:
        """Return what each step run has written, by its own account."""
        return {_run_of(path): path.read_bytes() for path in self.record.glob("*.log")}

    def sums(self, label: str) -> dict[str, str]:
        """Return path → SHA-256 of what an attempt has left, by its own account."""
        path = self.record / f"{label}.sums"
        lines = path.read_text().splitlines() if path.exists() else []
        return {line.split()[1]: line.split()[0] for line in lines}


def launch(fleet: Fleet, record: Path) -> StormHost:
    """Start a host with an address, a small disk and a record of its own."""
    record.mkdir(parents=True)
    box = fleet.launch(options=("--tmpfs", f"/small:size={_SMALL_MB}m", "--volume", f"{record}:{record}"))
    return StormHost(box, record, int(fleet.docker("inspect", "--format", "{{.State.Pid}}", box.name)))


def fill(file: int) -> None:
    """Extend an open file over all the room there is."""
    size = 1 << 24
    while size >= 4096:
        try:
            os.posix_fallocate(file, os.fstat(file).st_size, size)
        except OSError:
            size //= 4


def _look_at(pid: int, space: str) -> Process | None:
    with contextlib.suppress(OSError, ValueError, StopIteration):
        if os.readlink(f"/proc/{pid}/ns/pid") != space:
            return None
        folder = Path(f"/proc/{pid}")
        status = dict(line.split(":\t", 1) for line in (folder / "status").read_text().splitlines() if ":\t" in line)
        if status["State"][0] in "ZX":
            return None
        command, environment = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
        run = _SUPERVISOR.search(command) or _OF_STEP.search(environment)
        return Process(
            pid=pid,
            inner=int(status["NSpid"].split()[-1]),
            parent=int(status["PPid"]),
            name=status["Name"].strip(),
            command=command.replace(b"\0", b" ").decode(errors="replace")[:300],
            label=run[1].decode() if run else "",
            step=run[2].decode() if run else "",
            supervisor=b"\0__supervise\0" in command,
        )
    return None


def _run_of(path: Path) -> tuple[str, str]:
    label, _, step = path.name.removesuffix(".log").partition(".")
    return label, step


def _kill(pid: int) -> int:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return 1
    return 0
