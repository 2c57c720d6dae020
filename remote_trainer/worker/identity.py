"""Who holds a lease: a name that tells, on the same machine, whether its process still lives.

``<machine>/<boot>/<pid>/<start>``: the boot id and the start time keep a reused pid from passing for the dead process.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path


def holder() -> str:
    """Return this process's name as a lease holder."""
    return f"{_machine()}/{os.getpid()}/{_start_of(os.getpid()) or 0}"


def is_dead(name: str) -> bool:
    """Is the holder certainly dead? False for other machines and for anything that cannot be told."""
    *machine, pid, start = name.split("/")
    if "/".join(machine) != _machine() or not pid.isdigit() or not Path("/proc/self/stat").exists():
        return False
    return _start_of(int(pid)) != start


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    except OSError:
        boot = "-"
    return f"{socket.gethostname().replace('/', '-')}/{boot}"


def _start_of(pid: int) -> str | None:
    """Return the start time of a live process in clock ticks (field 22 of its stat), None if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else fields[19]
