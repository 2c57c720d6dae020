"""Who holds a lease: a name that tells, on the same machine, whether its process still lives.

``<host name>/<boot>/<pid namespace>#<pid>.<start>``: boot id and start time keep a reused pid from passing for the dead process, and the
namespace keeps apart containers that share a machine and a name.

Rules for editing: a live worker that is judged dead loses its jobs, a dead one that is not costs one lease: whatever cannot be told for
certain is alive. A part of the name that cannot be read is ``-``, and nobody is judged by it.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path


def holder() -> str:
    """Return this process's name as a lease holder."""
    return f"{_machine()}#{os.getpid()}.{_start_of(os.getpid()) or '-'}"


def is_dead(name: str) -> bool:
    """Is the holder certainly dead? False for other machines and for anything that cannot be told."""
    machine, _, process = name.partition("#")
    pid, _, start = process.partition(".")
    if machine != _machine() or not tells(name) or not pid.isdecimal() or not start.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass  # it is somebody else's, so /proc may hide it from us
    now = _start_of(int(pid))
    return now is not None and now != start


def tells(name: str) -> bool:
    """Does a name say where its process lives? Elsewhere nothing can be told of it, nor of its neighbours."""
    _, *place = name.partition("#")[0].split("/")
    return len(place) == 2 and "-" not in place


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
        # Where /proc is that of another pid namespace, the pids in it are not the ones we know.
        namespace = str(os.stat("/proc/self/ns/pid").st_ino) if os.readlink("/proc/self") == str(os.getpid()) else "-"
    except OSError:
        boot = namespace = "-"
    return f"{socket.gethostname().replace('#', '-').replace('/', '-')}/{boot}/{namespace}"


def _start_of(pid: int) -> str | None:
    """Return the start time of a process in clock ticks (field 22 of its stat), "" for one that has ended, None if it cannot be told."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] in ("Z", "X") else fields[19]
