"""How a followed job looks: plain lines for pipes and logs. The live view of terminals is live.py; ``--json`` is silent.

Rules for editing: a view only shows; what follows from what is seen is follow.py's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from remote_trainer.cli import documents, out
from remote_trainer.cli.lines import Lines

if TYPE_CHECKING:
    from remote_trainer.model import Job
    from remote_trainer.service.jobs import LogPiece, Snapshot


class View(Protocol):
    """Somebody who is told what happens."""

    def state(self, seen: Snapshot) -> None:
        """Show the job as it is now."""
        ...

    def log(self, piece: LogPiece) -> None:
        """Show what a step printed."""
        ...

    def say(self, text: str) -> None:
        """Tell the user something that is not the job's."""
        ...

    def open(self) -> None:
        """Take the terminal again, after close."""
        ...

    def close(self) -> None:
        """Give the terminal back. Idempotent."""
        ...


class SilentView:
    """Shows nothing: stdout belongs to the JSON document at the end."""

    def state(self, seen: Snapshot) -> None:
        """Nothing."""

    def log(self, piece: LogPiece) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        out.problem(text)

    def open(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class PlainView:
    """One line for each phase, step and note, and the lines of the logs with the step's name before them."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}
        self._lines: dict[str, Lines] = {}

    def state(self, seen: Snapshot) -> None:
        job = seen.job
        if job.phase.terminal:
            self._flush()
        self._once("phase", f"{len(job.attempts)} {job.phase}", f"-- {self._phase(job)}")
        if job.note:
            self._once("note", job.note, f"-- {job.note}")
        if job.cancel_requested_at and not job.phase.terminal:
            self._once("cancel", "asked", "-- cancel requested")

    def log(self, piece: LogPiece) -> None:
        lines = self._lines.setdefault(piece.stream, Lines())
        for text in lines.feed(piece.data):
            out.line(f"{_step(piece.stream)} | {text}")

    def say(self, text: str) -> None:
        out.problem(text)

    def open(self) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing is held."""

    def _once(self, key: str, value: str, text: str) -> None:
        if self._said.get(key) != value:
            self._said[key] = value
            out.line(text)

    def _phase(self, job: Job) -> str:
        attempt = f", attempt {len(job.attempts)}" if len(job.attempts) > 1 else ""
        run = documents.current_run(job)
        why = f": {job.message}" if job.phase.terminal and job.message else ""
        ended = f" with exit code {run.exit_code}" if job.phase == "failed" and run and run.exit_code else ""
        return f"{job.phase}{attempt}{ended}{why}"

    def _flush(self) -> None:
        for stream, lines in self._lines.items():
            if rest := lines.unfinished:
                out.line(f"{_step(stream)} | {rest}")
        self._lines.clear()


def _step(stream: str) -> str:
    """Return a stream's step as people know it: its name, with the number of the run unless that is the first."""
    attempt, _, run = stream.partition("/")
    name, _, number = run.rpartition(".")
    return name + (f" {attempt}.{number}" if (attempt, number) != ("a1", "1") else "")
