"""Live many simulated lives on all cores: `python -m remote_trainer.testing.sim --seeds 2000`.

Each seed has its profile, unless one is named. Prints what was dealt and checked; a life that breaks a promise is told from its beginning,
with the command that lives it again, and the exit code is 1.

Rules for editing: the program only prints; what others may read is the file of ``--report``.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from pathlib import Path

from remote_trainer.testing.sim.faults import KINDS, PROFILES, Profile
from remote_trainer.testing.sim.life import live
from remote_trainer.testing.sim.many import Report, lives

_TOLD = 3  # lives that are told in full


def main() -> int:
    """Live, and say how it went."""
    options = _options()
    profile = PROFILES[options.profile] if options.profile else None
    logging.disable(logging.CRITICAL)  # rendering what goes wrong in thousands of lives would take most of the time
    if options.seed is not None:
        return _tell(options.seed, profile)
    processes = options.processes or len(os.sched_getaffinity(0))
    report, began = Report(), time.monotonic()
    for life in lives(range(options.first, options.first + options.seeds), profile, processes):
        report.add(life)
        if life.broken:
            print(f"seed {life.seed} ({life.profile}): {life.broken}", file=sys.stderr)
    _print(report, time.monotonic() - began, processes)
    if options.report:
        Path(options.report).write_text(json.dumps(report.as_data(), indent=1) + "\n")
    for seed, name, _ in sorted(report.broken)[:_TOLD]:
        _tell(seed, PROFILES[name])
    return 1 if report.broken else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m remote_trainer.testing.sim", description="Simulated lives of jobs.")
    parser.add_argument("--seeds", type=int, default=2000, help="how many lives (2000)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--seed", type=int, help="live this one only, and tell it")
    parser.add_argument("--profile", choices=sorted(PROFILES), help="live all in this one")
    parser.add_argument("--processes", type=int, help="how many at a time (one for each core)")
    parser.add_argument("--report", metavar="FILE", help="write what was dealt and checked to a file, as JSON")
    return parser.parse_args()


def _tell(seed: int, profile: Profile | None) -> int:
    """Live one seed and print its story."""
    life = live(seed, profile, tell=True)
    print(f"\n--- seed {seed} ({life.profile}: {PROFILES[life.profile].about})", *life.trace, sep="\n")
    if life.broken:
        print(f"--- BROKEN: {life.broken}")
        print(f"--- live it again: python -m remote_trainer.testing.sim --seed {seed} --profile {life.profile}")
    return 1 if life.broken else 0


def _print(report: Report, seconds: float, processes: int) -> None:
    count = report.lives.total()
    print(f"{count} lives in {seconds:.1f} s on {processes} cores: {count / seconds:.0f} a second")
    print(*(f"  {name:<10}{number:>8}  {PROFILES[name].about}" for name, number in sorted(report.lives.items())), sep="\n")
    print(f"{report.jobs.total()} jobs:", ", ".join(f"{number} {phase}" for phase, number in sorted(report.jobs.items())))
    print("promises checked:", ", ".join(f"{name} {number}" for name, number in sorted(report.checked.items())))
    print("faults dealt:")
    print(*(f"  {kind:<20}{number:>8}  {KINDS[kind]}" for kind, number in report.dealt.most_common()), sep="\n")
    print(f"{len(report.broken)} lives broke a promise")


if __name__ == "__main__":
    sys.exit(main())
