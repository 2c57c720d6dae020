"""What the host's heartbeats say is new of a job's metrics and outputs, so that nobody asks a silent host for a list of files.

A file counts as written when it did not change for some seconds (collect.SETTLED_S), so a change is collected at the heartbeat that tells
of it and, what was too young then, at those that find the outputs as they were, until they have been so for that long.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from remote_trainer.ports import Heartbeat
from remote_trainer.worker.collect import SETTLED_S


@dataclass(frozen=True, slots=True)
class New:
    """What to collect now; given back to ``News.collected`` when that is done."""

    beat: Heartbeat
    metrics: bool
    outputs: bool
    settled: bool  # nothing is too young to be collected


class News:
    """Compares heartbeats with what was collected."""

    def __init__(self, settles_s: float = SETTLED_S) -> None:
        self._settles_s = settles_s
        self._heard = self._collected = Heartbeat(0)
        self._alike_since = 0.0  # when the outputs were heard of first as they are
        self._settled = False
        self._some = asyncio.Event()

    def hear(self, beat: Heartbeat) -> None:
        """Take note of a heartbeat."""
        now, alike = asyncio.get_running_loop().time(), beat.outputs == self._heard.outputs
        if not alike:
            self._alike_since = now
        self._settled = alike and now - self._alike_since >= self._settles_s
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
