"""What the host's heartbeats say is new of a job's metrics and outputs, so that nobody asks a silent host for a list of files.

A file counts as written when it did not change for some seconds (collect.SETTLED_S), so a change is collected at the heartbeat that tells
of it and, what was too young then, at the first one that finds the outputs as the one before did.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from remote_trainer.ports import Heartbeat


@dataclass(frozen=True, slots=True)
class New:
    """What to collect now; given back to ``News.collected`` when that is done."""

    beat: Heartbeat
    metrics: bool
    outputs: bool
    settled: bool  # nothing is too young to be collected


class News:
    """Compares heartbeats with what was collected."""

    def __init__(self) -> None:
        self._heard = self._collected = Heartbeat(0)
        self._settled = False
        self._some = asyncio.Event()

    def hear(self, beat: Heartbeat) -> None:
        """Take note of a heartbeat."""
        self._settled = beat.outputs == self._heard.outputs
        self._heard = beat
        if self._new() is not None:
            self._some.set()

    async def wait(self) -> New:
        """Wait until something is to be collected."""
        while (new := self._new()) is None:
            self._some.clear()
            await self._some.wait()
        return new

    def collected(self, new: New) -> None:
        """All that was new is collected, but for outputs that were too young."""
        outputs = new.beat.outputs if new.settled else self._collected.outputs
        self._collected = Heartbeat(new.beat.size, new.beat.metrics, outputs)

    def _new(self) -> New | None:
        beat, known = self._heard, self._collected
        metrics, outputs = beat.metrics != known.metrics, beat.outputs != known.outputs
        return New(beat, metrics, outputs, self._settled) if metrics or outputs else None
