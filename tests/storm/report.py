"""The figures of a storm, for people: what was dealt, what came of it, how long recoveries took.

Rules for editing: says what was measured; judges nothing.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from remote_trainer.model import Job
from tests.storm.blows import Struck
from tests.storm.recovery import Recovery
from tests.storm.schedule import KINDS, Blow
from tests.storm.verdict import Violation

#: What each run is judged by, in the order of the table.
_COUNTED = {
    "not done": "jobs that ended otherwise",
    "double start": "double starts",
    "stuck": "stuck jobs",
    "log bytes wrong": "logs with wrong bytes",
    "artifacts": "jobs with wrong artifacts",
    "repeated work": "jobs with work done again for nothing",
    "left running": "processes left on hosts",
    "left behind": "folders left on hosts",
    "worker's bug": "bugs told by workers",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A storm that is over."""

    jobs: Sequence[Job]
    struck: Sequence[Struck]
    missed: Sequence[Blow]
    recoveries: Sequence[Recovery]
    violations: Sequence[Violation]
    deaths: int  # of workers, not dealt
    took_s: float
    cpu_s: float


def table(result: Result) -> str:
    """Return the summary."""
    return "\n".join(_lines(result))


def _lines(result: Result) -> Iterator[str]:
    dealt, missed = Counter(one.kind for one in result.struck), Counter(blow.kind for blow in result.missed)
    yield "dealt"
    for name, kind in KINDS.items():
        lost = f"  ({missed[name]} found nothing to hit)" if missed[name] else ""
        yield f"  {dealt[name]:5d}  {kind.title}{lost}"
    if result.deaths:
        yield f"  {result.deaths:5d}  worker ended by itself and was started again"
    phases, broken = Counter(job.phase for job in result.jobs), Counter(one.kind for one in result.violations)
    yield "came of it"
    for phase, count in sorted(phases.items()):
        yield f"  {count:5d}  jobs {phase.upper()}"
    for kind, words in _COUNTED.items():
        yield f"  {broken[kind]:5d}  {words}"
    if result.recoveries:
        yield "from the blow to the next log line in the store, seconds"
        yield from _recoveries(result.recoveries)
    yield f"{result.took_s:.0f} s, {result.cpu_s:.0f} s of CPU on this machine's side"


def _recoveries(found: Sequence[Recovery]) -> Iterator[str]:
    for situation in sorted({one.situation for one in found}):
        for alone, words in ((True, "nothing else broken"), (False, "amid other blows")):
            times = sorted(one.seconds for one in found if one.situation == situation and one.alone is alone)
            if times:
                p99 = times[min(len(times) - 1, int(0.99 * len(times)))]
                yield f"  p50 {statistics.median(times):5.1f}  p99 {p99:5.1f}  of {len(times):4d}  {situation}; {words}"
