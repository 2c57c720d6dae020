"""What was tried against each promise, how often, and what came of it: docs/reliability.md is made from it.

A test that tries to break a promise names its fault, ``@pytest.mark.fault("worker-killed")``; it counts as one run, or as many as it
says through the fixture ``evidence``. Where REMOTE_TRAINER_TEST_EVIDENCE names a file, the runs of a session are written there; elsewhere
nothing is kept.

Rules for editing: a fault is described once, in FAULTS; a run that broke a promise is counted, never left out.
"""

from __future__ import annotations

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


#: Every fault that a test may name.
FAULTS: dict[str, Fault] = {
    "worker-killed": Fault("The worker is killed with `kill -9` at any moment", (1, 2, 3, 4, 7)),
}


@dataclass
class Tally:
    """The runs of one fault in one place; ``recover_s`` by situation: seconds from the fault to the next log line in the store."""

    fault: str
    where: str  # the test's file, or the program
    runs: int = 0
    violations: int = 0
    recover_s: dict[str, list[float]] = field(default_factory=dict)

    def ran(self, times: int = 1) -> None:
        """Count runs."""
        self.runs += times

    def recovered(self, seconds: float, situation: str) -> None:
        """Note one recovery."""
        self.recover_s.setdefault(situation, []).append(round(seconds, 3))


def file() -> Path | None:
    """Where evidence is kept, if anywhere."""
    name = os.environ.get("REMOTE_TRAINER_TEST_EVIDENCE")
    return Path(name) if name else None


def keep(tallies: Sequence[Tally], *, at: datetime | None = None) -> None:
    """Write tallies to the file, in place of what it has for the same fault and place. Without a file: nothing."""
    path = file()
    if path is None:
        return
    kept = {(row["fault"], row["where"]): row for row in json.loads(path.read_text())} if path.exists() else {}
    day = (at or datetime.now(UTC)).date().isoformat()
    kept |= {(tally.fault, tally.where): {**asdict(tally), "date": day} for tally in tallies}
    rows = [kept[key] for key in sorted(kept)]
    path.write_text(json.dumps(rows, indent=1) + "\n")
