"""What was tried against each promise, how often, and what came of it: docs/reliability.md is made from it.

A test that tries to break a promise names its fault, ``@pytest.mark.fault("worker-killed")``; it counts as one run, or as many as it
says through the fixture ``evidence``. Where REMOTE_TRAINER_TEST_EVIDENCE names a file, the runs of a session are written there; elsewhere
nothing is kept.

Rules for editing: a fault is described once, in FAULTS; a run that broke a promise is counted, never left out.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

#: The promises, by the number the documentation gives them.
PROMISES: dict[int, str] = {
    1: "Nothing paid for is lost from sight: a job ends only after its instance was observed gone",
    2: "Each step of an attempt starts at most once",
    3: "Logs are byte-exact: no byte lost, none doubled",
    4: "DONE means verified: exit 0, and every artifact's SHA-256 matches in the object store",
    5: "Silence is not death: a job is declared lost only when it provably is",
    6: "Spending is bounded, even if every worker dies for ever",
    7: "Work is not repeated: at most the time since the last checkpoint, no dataset sent twice",
    8: "Secrets never appear in arguments, logs, events or files that stay",
    9: "A rented machine is not trusted: pinned key, digests checked, no path escapes",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to try to break promises: what is done, to what, and which promises it is aimed at."""

    title: str
    promises: tuple[int, ...]


#: A defect put into our own code on purpose: aimed at our checks. A run is one defect, a violation one that nothing noticed.
PLANTED = "planted-bug"

#: Every fault that a test may name.
FAULTS: dict[str, Fault] = {
    PLANTED: Fault("A bug is planted into our own code", ()),
    "worker-killed": Fault("The worker is killed with `kill -9` at any moment", (1, 2, 3, 4, 7)),
    "crash-points": Fault(
        "The worker is killed with `kill -9` before, during and after each effect and each save", (1, 2, 3, 4, 6, 7)
    ),
    "worker-frozen": Fault("The worker sleeps for longer than its lease, and goes on as if nothing had happened", (1, 2, 3)),
    "worker-replaced": Fault("Workers are added, and told to end, while jobs are under way", (2, 3, 4)),
    "network-cut": Fault("The way to the host falls silent, is refused, or breaks again and again", (2, 3, 4, 5, 7)),
    "long-partition": Fault(
        "The host is cut off for longer than the lease and a worker's life; the step runs, or ends", (2, 3, 4, 5, 7)
    ),
    "storm": Fault(
        "By seed, all at once: workers, logins and supervisors killed, networks cut, stores restarted, disks full, clocks set",
        (1, 2, 3, 4, 5, 7),
    ),
    "step-fails": Fault("A step fails, or leaves nothing of what it promised", (3, 4)),
    "cancelled": Fault("The job is cancelled, in any phase, also while worker or host are away", (1, 2, 3, 6)),
    "store-down": Fault("The job store is locked, down, or killed while steps run and end", (2, 3, 4)),
    "objects-down": Fault("The object store is down, or its folder cannot be written", (4,)),
    "nobody-speaks": Fault("No worker speaks to the host any more", (6,)),
    "data-damaged": Fault("Inputs, outputs or checkpoints are cut short, damaged or changed on their way or at rest", (4, 7)),
    "transfer-cut": Fault("The line breaks at a random byte of a transfer, or its worker is killed with `kill -9`", (4, 7)),
    "transfer-flipped": Fault("A random bit of a transfer is inverted, or bytes of it vanish, on the wire", (4, 7, 9)),
    "transfer-truncated": Fault("A transfer ends at a random byte in good order", (4, 7)),
    "transfer-slow": Fault("A transfer crawls at 10 kB/s, or does not move at all", (5, 7)),
    "transfer-disk-full": Fault("A disk fills up in the middle of a transfer: the host's, the worker's", (4, 7)),
    "object-store-lies": Fault("The object store returns other bytes, too few, or says it took what it did not", (4, 7)),
    "stale-collector": Fault("A worker that was asleep goes on storing what its successor has stored since", (4, 7)),
    "inputs-changed": Fault("Inputs on the host change between arrival, unpacking and use", (7, 9)),
    "secret-sought": Fault("Secrets are looked for in arguments, logs, errors, the store and on the host's disk", (8,)),
    "hostile-host": Fault(
        "The host shows another key, sends nonsense, paths that leave their folder, or more than it announced", (4, 9)
    ),
    "supervisor-killed": Fault("A process of the host's supervisor is killed with `kill -9`, before any of its lines", (2, 3, 5)),
    "many-starters": Fault("Fifty workers of different age start the same step at once", (2,)),
    "stale-worker": Fault("A worker that has lost the job starts, stops or cleans", (2, 5)),
    "host-disk-full": Fault("The host's disk is full at any write, the step's or the supervisor's", (2, 3, 5)),
    "pid-reused": Fault("The process number of a step belongs to another process", (5,)),
    "host-rebooted": Fault("The host restarts while a step runs", (2, 5, 7)),
    "evicted": Fault("A spot machine is taken back in the middle of a training", (1, 4, 7)),
    "hostile-step": Fault("A step does whatever a step should not", (3, 5)),
    "no-inotify": Fault("The host has no inotify instances left", (3,)),
}


@dataclass
class Tally:
    """The runs of one fault in one place.

    ``recover_s`` by situation: seconds from the fault to the next log line in the store; ``resent`` by way: bytes that a broken transfer
    sent twice.
    """

    fault: str
    where: str  # the test's file, or the program
    runs: int = 0
    violations: int = 0
    recover_s: dict[str, list[float]] = field(default_factory=dict)
    resent: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.fault in FAULTS, f"no such fault: {self.fault}"

    def ran(self, times: int = 1) -> None:
        """Count runs."""
        self.runs += times

    def recovered(self, seconds: float, situation: str) -> None:
        """Note one recovery."""
        self.recover_s.setdefault(situation, []).append(round(seconds, 3))

    def sent_twice(self, size: int, way: str) -> None:
        """Note what one broken transfer cost, bytes."""
        self.resent.setdefault(way, []).append(max(0, size))


def file() -> Path | None:
    """Where evidence is kept, if anywhere."""
    name = os.environ.get("REMOTE_TRAINER_TEST_EVIDENCE")
    return Path(name) if name else None


def keep(tallies: Sequence[Tally], *, at: datetime | None = None) -> None:
    """Write tallies to the file, in place of what it has for the same fault and place. Without a file: nothing."""
    path = file()
    if path is None:
        return
    day = (at or datetime.now(UTC)).date().isoformat()
    with path.open("a+") as kept_in:
        fcntl.flock(kept_in, fcntl.LOCK_EX)  # of the processes of a run, each keeps its own part
        kept_in.seek(0)
        kept = {(row["fault"], row["where"]): row for row in json.loads(kept_in.read() or "[]")}
        kept |= {(tally.fault, tally.where): {**asdict(tally), "date": day} for tally in tallies}
        rows = [kept[key] for key in sorted(kept)]
        kept_in.truncate(0)
        kept_in.write("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
