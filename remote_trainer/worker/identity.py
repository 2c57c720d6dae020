"""Who holds a lease: a name that tells, on the same machine, whether its process still lives.

``<host name>/<boot>/<pid namespace>#<pid>.<start>``: boot id and start time keep a reused pid from passing for the dead process, and the
namespace keeps apart containers that share a machine and a name.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path


def holder() -> str:
    """Return this process's name as a lease holder."""
    return f"{_machine()}#{os.getpid()}.{_start_of(os.getpid()) or 0}"


def is_dead(name: str) -> bool:
    """Is the holder certainly dead? False for other machines and for anything that cannot be told."""
    machine, _, process = name.partition("#")
    pid, _, start = process.partition(".")
    if machine != _machine() or not pid.isdigit() or not Path("/proc/self/stat").exists():
        return False
    return _start_of(int(pid)) != start


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
        namespace = str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        boot = namespace = "-"
    return f"{socket.gethostname().replace('#', '-')}/{boot}/{namespace}"


def _start_of(pid: int) -> str | None:
    """Return the start time of a live process in clock ticks (field 22 of its stat), None if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else fields[19]
