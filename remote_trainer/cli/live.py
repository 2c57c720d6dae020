"""The live view of a job on a terminal: where it is, how far, how fast, what it costs, and the last lines of its log.

Rules for editing: everything shown is cleaned of what could steer the terminal, then taken literally (rich's markup is never
interpreted). The view is redrawn by a clock, so that times run; being told only notes.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from remote_trainer.cli import documents, out
from remote_trainer.cli.lines import Lines
from remote_trainer.redact import redact

if TYPE_CHECKING:
    from remote_trainer.model import Job
    from remote_trainer.service.jobs import LogPiece, Snapshot

_LOG_LINES = 10
#: What a terminal must have besides: the view's own lines, a long note, the prompt.
_OTHER_LINES = 8
#: Numbers that the first line shows in their own way, or that say nothing by themselves.
_NOT_METRICS = frozenset({"progress", "step", "total", "eta_s", "speed_steps_per_s", "line"})
_COLOURS = {"done": "green", "failed": "red", "cancelled": "yellow", "executing": "cyan"}


class LiveView:
    """Draws on stdout until closed."""

    def __init__(self) -> None:
        self._seen: Snapshot | None = None
        self._told_at = time.monotonic()
        self._pace = Pace()
        self._log: deque[str] = deque(maxlen=_LOG_LINES)
        self._lines: dict[str, Lines] = {}
        self._stream = ""
        self._console = Console(highlight=False)
        self._live = self._begin()

    def open(self) -> None:
        self._live = self._begin()  # a new one: it must not draw over what was printed since

    def _begin(self) -> Live:
        live = Live(get_renderable=self._draw, console=self._console, refresh_per_second=8)
        live.start()
        return live

    def state(self, seen: Snapshot) -> None:
        self._seen, self._told_at = seen, time.monotonic()
        self._pace.note(seen.values.get("step"), self._told_at)
        if seen.job.phase.terminal:
            self._live.refresh()

    def log(self, piece: LogPiece) -> None:
        self._stream = piece.stream
        lines = self._lines.setdefault(piece.stream, Lines())
        self._log.extend(lines.feed(piece.data)[-_LOG_LINES:])

    def say(self, text: str) -> None:
        self._console.print(Text(out.clean(redact(text))))

    def close(self) -> None:
        self._live.stop()

    # -- drawing

    def _draw(self) -> RenderableType:
        seen = self._seen
        if seen is None:
            return Text("…")
        parts: list[RenderableType] = [self._head(seen)]
        if (bar := self._progress(seen)) is not None:
            parts.append(bar)
        if numbers := self._numbers(seen):
            parts.append(Text(numbers, style="bold", no_wrap=True, overflow="ellipsis"))
        if seen.job.note:
            parts.append(Text(f"! {_shown(seen.job.note)}", style="yellow"))
        if seen.job.phase.value not in ("failed", "cancelled"):  # then the end of the log is printed below
            parts += [Text(f"│ {_shown(text)}", style="dim", no_wrap=True, overflow="ellipsis") for text in self._last_lines()]
        return Group(*parts)

    def _head(self, seen: Snapshot) -> RenderableType:
        job = seen.job
        row = Table.grid(expand=True, padding=(0, 1))
        row.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        row.add_column(no_wrap=True, justify="right")
        left = Text(job.phase.value, style=f"bold {_COLOURS.get(job.phase.value, 'blue')}")
        left.append(_shown(self._where(job)), style="default")
        cost = f"  {paid}" if (paid := out.cost(seen.cost, seen.projected)) else ""
        row.add_row(left, Text(f"{out.duration(self._elapsed_s(job))}{cost}"))
        return row

    def _where(self, job: Job) -> str:
        run = documents.current_run(job)
        step = f"  step {run.key}" if run and job.phase.value == "executing" else ""
        attempt = f"  attempt {len(job.attempts)}" if len(job.attempts) > 1 else ""
        cancelling = "  cancelling" if job.cancel_requested_at and not job.phase.terminal else ""
        return step + attempt + cancelling

    def _elapsed_s(self, job: Job) -> float:
        if job.finished_at is not None:
            return (job.finished_at - job.created_at).total_seconds()
        return time.time() - job.created_at.timestamp()

    def _progress(self, seen: Snapshot) -> RenderableType | None:
        values = seen.values
        if "progress" not in values:
            return None
        row = Table.grid(padding=(0, 1))
        row.add_column(width=40)
        row.add_column(no_wrap=True)
        steps = f"{values['step']:.0f}/{values['total']:.0f}" if "step" in values and "total" in values else ""
        row.add_row(ProgressBar(total=1.0, completed=values["progress"], width=40), Text(f"{values['progress']:4.0%}  {steps}"))
        return row

    def _numbers(self, seen: Snapshot) -> str:
        values = seen.values
        speed = values.get("speed_steps_per_s") or self._pace.per_s
        eta_s = values.get("eta_s")
        if eta_s is None and speed and "total" in values:
            eta_s = (values["total"] - values.get("step", 0)) / speed
        parts = [f"{_shown(name)} {out.number(value)}" for name, value in values.items() if name not in _NOT_METRICS]
        if seen.job.phase.value == "executing":
            parts += [f"{speed:.3g} steps/s"] if speed else []
            parts += [f"ETA {out.duration(max(0.0, eta_s - (time.monotonic() - self._told_at)))}"] if eta_s else []
        return "   ".join(parts)

    def _last_lines(self) -> list[str]:
        unfinished = self._lines[self._stream].unfinished if self._stream else ""
        room = max(1, min(_LOG_LINES, self._console.height - _OTHER_LINES))
        return [*self._log, *([unfinished] if unfinished.strip() else [])][-room:]


class Pace:
    """Steps per second over the last half minute, for tools that do not tell it themselves."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque()

    def note(self, step: float | None, at: float) -> None:
        """Take note of a step number at a time, seconds."""
        if step is None or (self._seen and step == self._seen[-1][1]):
            return
        if self._seen and step < self._seen[-1][1]:
            self._seen.clear()  # another run began
        self._seen.append((at, step))
        while at - self._seen[0][0] > 30 and len(self._seen) > 2:
            self._seen.popleft()

    @property
    def per_s(self) -> float | None:
        """The pace, None while nothing can be said."""
        if len(self._seen) < 2 or self._seen[-1][0] - self._seen[0][0] < 0.5:
            return None
        return (self._seen[-1][1] - self._seen[0][1]) / (self._seen[-1][0] - self._seen[0][0])


def _shown(text: str) -> str:
    return out.clean(redact(text)).replace("\n", " ").expandtabs(4)
