"""Many lives on all cores, and what came of them together.

Rules for editing: lives are counted as they come, in no order; what is counted is in ``Report``.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

from remote_trainer.testing.sim.faults import KINDS, Profile
from remote_trainer.testing.sim.life import Lived, live

_CHUNK = 10  # lives that a process lives before it reports


@dataclass
class Report:
    """What came of many lives."""

    lives: Counter[str] = field(default_factory=Counter)  # by profile
    jobs: Counter[str] = field(default_factory=Counter)  # by phase they ended in
    dealt: Counter[str] = field(default_factory=Counter)  # by kind of fault
    lives_with: Counter[str] = field(default_factory=Counter)  # likewise: lives in which it was dealt
    violated_with: Counter[str] = field(default_factory=Counter)  # likewise: of those, the ones that broke a promise
    checked: Counter[str] = field(default_factory=Counter)  # by promise
    broken: list[tuple[int, str, str]] = field(default_factory=list)  # seed, profile, promise

    def add(self, life: Lived) -> None:
        """Count a life."""
        self.lives[life.profile] += 1
        self.jobs.update(str(job.phase) for job in life.jobs)
        self.dealt += life.dealt
        self.lives_with.update(life.dealt.keys())
        self.checked += life.checked
        if life.broken:
            self.broken.append((life.seed, life.profile, life.broken))
            self.violated_with.update(life.dealt.keys())

    def as_data(self) -> dict[str, Any]:
        """Return it as JSON types."""
        faults = {
            kind: {"about": KINDS[kind], "dealt": count, "lives": self.lives_with[kind], "violations": self.violated_with[kind]}
            for kind, count in sorted(self.dealt.items())
        }
        return {
            "lives": dict(self.lives),
            "jobs": dict(self.jobs),
            "faults": faults,
            "checked": dict(self.checked),
            "broken": self.broken,
        }


def lives(seeds: Sequence[int], profile: Profile | None, processes: int) -> Iterator[Lived]:
    """Live them on several cores, as they come."""
    chunks = [seeds[start : start + _CHUNK] for start in range(0, len(seeds), _CHUNK)]
    if processes == 1:
        _quietly()
        for chunk in chunks:
            yield from _live_all(chunk, profile)
        return
    # Not forked: a life should not depend on what was imported before.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _quietly) as pool:
        for future in as_completed([pool.submit(_live_all, chunk, profile) for chunk in chunks]):
            yield from future.result()


def _quietly() -> None:
    """Thousands of lives tell nobody what goes wrong in them: rendering it would take most of the time."""
    logging.disable(logging.CRITICAL)
    gc.disable()  # a life leaves a tangle of tasks: cleared as a whole, after some lives


def _live_all(seeds: Sequence[int], profile: Profile | None) -> list[Lived]:
    found = [live(seed, profile) for seed in seeds]
    gc.collect()
    return found
