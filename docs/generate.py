"""Makes the pages of docs/ that are read from the code: ``make docs``. A test compares them with what lies here.

Rules for editing: one function per page, returning its text; no page is written by hand that could be made here.
"""

from __future__ import annotations

from pathlib import Path

from docs import flags, memory, reliability
from remote_trainer import errors
from remote_trainer.lifecycle import TRANSITIONS
from remote_trainer.model import Phase, Reason, Verdict

FOLDER = Path(__file__).parent

_PHASES = {
    Phase.QUEUED: "stored; waits for a worker",
    Phase.PROVISIONING: "a machine is chosen, asked for, found, connected to and examined",
    Phase.TRANSFERRING: "inputs, and the checkpoint to resume from, are brought to the host and verified there",
    Phase.EXECUTING: "the plan's steps run, detached; their log is copied, settled outputs are fetched on the way",
    Phase.FETCHING: "every output is brought home and verified in the object store, also after a failure or a cancel",
    Phase.RELEASING: "the machine is given back: a rented one is destroyed until a listing shows it gone",
    Phase.DONE: "every step exited 0, every required output is verified, nothing costs money",
    Phase.FAILED: "ended without success, nothing costs money; partial outputs are kept",
    Phase.CANCELLED: "ended by the user's wish, nothing costs money; partial outputs are kept",
}

_VERDICTS = {
    Verdict.SUCCEEDED: "every step exited 0 and the required outputs are there",
    Verdict.FAILED: "it ran, or could not run, and another attempt would not help",
    Verdict.CANCELLED: "the user wished it",
    Verdict.LOST: "machine or processes are provably gone: another attempt may follow",
}

_REASONS = {
    Reason.COMPLETED: ("every step exited 0", "nothing"),
    Reason.STEP_FAILED: ("a step exited non-zero, retries included", "read the log's end: `remote-trainer logs JOB`"),
    Reason.STEP_TIMEOUT: ("a step ran longer than its `timeout_s`", "raise it in the recipe, or find out why it hangs"),
    Reason.CANCELLED_BY_USER: (
        "`remote-trainer cancel`, or Ctrl-C twice",
        "`remote-trainer retry JOB` resumes from the last checkpoint",
    ),
    Reason.TIME_LIMIT: ("`max_hours` is over", "submit with `--max-hours`; `retry` resumes"),
    Reason.COST_LIMIT: ("`max_cost` is reached", "submit with `--max-cost`; `retry` resumes"),
    Reason.NO_CAPACITY: ("no place has a machine that fits", "ask for less, name more drivers, or `--strategy queue`"),
    Reason.MODEL_REFUSED: (
        "the model hub has no such model, or does not let the worker's `HF_TOKEN` have it; nothing was rented",
        "the message says who has to do what: the name, the licence, the token",
    ),
    Reason.PROVISIONING_FAILED: (
        "twelve tries in a row got no usable machine",
        "`remote-trainer drivers check`; the message has the last try's words",
    ),
    Reason.HOST_UNSUITABLE: ("the host lacks a program, GPU, memory or disk", "install it, or ask for less"),
    Reason.HOST_KEY_MISMATCH: ("the host shows another key than the pinned one", "find out why before you trust it"),
    Reason.TRANSFER_FAILED: ("the inputs cannot be brought to the host", "the message names the file"),
    Reason.ARTIFACTS_MISSING: ("the steps exited 0 and left nothing for a required output", "check the recipe's outputs"),
    Reason.INSTANCE_GONE: ("the provider no longer lists the instance", "nothing: the next attempt resumes"),
    Reason.EVICTED: (
        "the provider gave the spot machine to somebody who pays more",
        "nothing: the next attempt resumes on another machine",
    ),
    Reason.HOST_REBOOTED: ("the host, or its container, restarted under the step", "nothing: the next attempt resumes"),
    Reason.SUPERVISOR_LOST: ("the step's processes were killed on the host", "look for the out-of-memory killer there"),
    Reason.HOST_WIPED: ("the host's disk is not the one we set up", "nothing: the next attempt starts over there"),
    Reason.DEADMAN: ("the host heard from no worker until past the deadline", "keep a worker running"),
    Reason.ATTEMPTS_EXHAUSTED: ("the last allowed attempt was lost", "`retry` resumes; `--max-attempts`"),
    Reason.INTERNAL: ("our own bug, or a setting this worker lacks", "report it with the event list: `remote-trainer show JOB`"),
}


_ATTEMPTS = """\
## Attempts

An attempt is one try on one machine, under one label. Two things are bounded apart:

- `max_attempts` counts attempts that **got a machine**: its host was set up and had what the plan needs. A lost one is followed by the
  next, which resumes from the newest verified checkpoint.
- What ended before, in a row: machines that did not boot, were unsuitable or evicted before the start, and offers that were refused.
  After twelve the job ends with `provisioning_failed`, or `no_capacity`, and the last words. An attempt that gets a machine ends the row.

A request to rent that was **refused** made nothing: the attempt asks for another offer, never for the same one again. One that was **not
sent**, because a limit or its turn came in between, is sent anew for whatever is best then. One that is **unsure** is looked for first, in
complete listings that are late enough, then in the provider's records where it keeps any (`records` in [drivers.md](drivers.md)): what is
found is adopted, or given back if the job is ending. Only what neither knows was never made. Nothing is asked for while there is doubt.

A **race** (`--race 2`) saves several offers and sends one request for each, all under the attempt's label. The first machine that is ready
is set up; if it cannot serve, the next one takes its place. Once one serves, the others are given back.

A **spot** machine that the provider stopped was evicted: it is destroyed, since its disk is paid for, and the next attempt begins
elsewhere. After `max_evictions` the job rents on demand."""


def lifecycle() -> str:
    """Return the page on phases, moves, verdicts and reasons."""
    arrows = [f"    {a} --> {b}" for a, b in TRANSITIONS]
    ends = [f"    {phase} --> [*]" for phase in Phase if phase.terminal]
    return "\n".join(
        [
            "# The life of a job",
            "",
            "Made from the transition table in `remote_trainer/lifecycle/rules.py` by `make docs`.",
            "",
            "```mermaid",
            "stateDiagram-v2",
            "    [*] --> queued",
            *arrows,
            *ends,
            "```",
            "",
            *_table("phase | what happens there", [f"`{phase}` | {text}" for phase, text in _PHASES.items()]),
            "",
            "## Moves",
            "",
            *_table("from | to | because", [f"`{a}` | `{b}` | {why}" for (a, b), why in TRANSITIONS.items()]),
            "",
            "## Verdicts of an attempt",
            "",
            *_table("verdict | means", [f"`{verdict}` | {text}" for verdict, text in _VERDICTS.items()]),
            "",
            *_ATTEMPTS.splitlines(),
            "",
            "## Reasons",
            "",
            *_table(
                "reason | means | what to do", [f"`{reason}` | {text} | {advice}" for reason, (text, advice) in _REASONS.items()]
            ),
            "",
        ]
    )


def error_page() -> str:
    """Return the page on error classes and exit codes."""
    rows = []
    for kind in _classes(errors.RemoteTrainerError):
        first = (kind.__doc__ or "").strip().splitlines()[0]
        rows.append(f"`{kind.__name__}` | {kind.exit_code} | {kind.http_status} | {'yes' if kind.transient else ''} | {first}")
    return "\n".join(
        [
            "# Errors and exit codes",
            "",
            "Made from `remote_trainer/errors.py` by `make docs`. Every command exits with 0, or with the code of the error it ended with;",
            'with `--json` the error is an object `{"error", "message", "exit_code"}` on stdout. Ctrl-C exits with 130.',
            "",
            *_table("error | exit code | HTTP | may pass by itself | when", rows),
            "",
        ]
    )


def _classes(kind: type[errors.RemoteTrainerError]) -> list[type[errors.RemoteTrainerError]]:
    children = [
        child for child in kind.__subclasses__() if child.__module__ == errors.__name__
    ]  # a module's own are its business
    return [kind, *(found for child in children for found in _classes(child))]


def _table(head: str, rows: list[str]) -> list[str]:
    return [f"| {head} |", "|" + "---|" * (head.count("|") + 1), *(f"| {row} |" for row in rows)]


PAGES = {
    "lifecycle.md": lifecycle,
    "errors.md": error_page,
    "reliability.md": reliability.make,
    "flags.md": flags.make,
    "memory.md": memory.make,
}


def main() -> None:
    """Write every page."""
    for name, make in PAGES.items():
        (FOLDER / name).write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    main()
