"""Makes docs/reliability.md: every promise, every fault, what was run and what came of it.

The runs are those of docs/reliability.json, the lives those of docs/simulator.json; ``make reliability`` writes both. Faults and promises
are tests/support/evidence.py's.

Rules for editing: a figure is computed from the evidence, never typed; a fault without evidence is named as not yet run.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from docs.reliability_facts import LIMITS, OTHERS, TARGETS
from tests.support.evidence import FAULTS, PLANTED, PROMISES

DATA = Path(__file__).with_suffix(".json")
LIVES = DATA.with_name("simulator.json")

Row = Mapping[str, Any]

_HEAD = """\
# What was tried to break it, and what came of it

Made by `make docs` from `docs/reliability.json` and `docs/simulator.json`, which `make reliability` writes: anyone with Docker and two
cores can have them anew. A run is one attempt of a fault against real parts, with every promise the fault is aimed at checked
afterwards, from the host's own record where there is one. A violation is a run after which a promise did not hold.

The promises are those of [architecture](architecture.md); what an operator sees under each fault is in [operations](operations.md).
"""


def evidence() -> list[Row]:
    """Return the runs that were kept."""
    return json.loads(DATA.read_text(encoding="utf-8")) if DATA.exists() else []


def simulated() -> Row | None:
    """Return what the simulator reported, if it was asked."""
    return json.loads(LIVES.read_text(encoding="utf-8")) if LIVES.exists() else None


def make() -> str:
    """Return the page that the kept evidence gives."""
    return page(evidence(), simulated())


def page(rows: Sequence[Row], lives: Row | None) -> str:
    """Return the page that evidence gives."""
    tried = [_HEAD, _sum(rows), _promises(rows), _matrix(rows), _faults(rows), _recovery(rows), _resent(rows)]
    return "\n".join([*tried, *_lives(lives), _planted(rows), _others(), _limits()])


def _sum(rows: Sequence[Row]) -> str:
    tried = [row for row in rows if FAULTS[row["fault"]].promises]
    names = {row["fault"] for row in tried}
    days = sorted({row["date"] for row in tried})
    when = f", {days[0]} to {days[-1]}" if days else ""
    return f"**{_count(tried, 'runs')} runs of {len(names)} of {len(_aimed())} faults: {_count(tried, 'violations')} violations**{when}.\n"


def _promises(rows: Sequence[Row]) -> str:
    lines = []
    for number, promise in PROMISES.items():
        aimed = {name for name, fault in FAULTS.items() if number in fault.promises}
        tried = [row for row in rows if row["fault"] in aimed]
        faults = len({row["fault"] for row in tried})
        lines.append(f"{number} | {promise} | {faults} of {len(aimed)} | {_count(tried, 'runs')} | {_count(tried, 'violations')}")
    return _section("Promises", "# | promise | faults tried | runs | violations", lines)


def _matrix(rows: Sequence[Row]) -> str:
    tried = {row["fault"] for row in rows if row["runs"]}
    lines = []
    for name, fault in _aimed():
        cells = [("●" if name in tried else "○") if number in fault.promises else " " for number in PROMISES]
        lines.append(f"{fault.title} | {' | '.join(cells)}")
    text = "● tried, ○ not yet run. The numbers are those of the promises above."
    return _section("Which fault is aimed at which promise", f"fault | {' | '.join(map(str, PROMISES))}", lines, text)


def _faults(rows: Sequence[Row]) -> str:
    lines = []
    for name, fault in _aimed():
        mine = [row for row in rows if row["fault"] == name]
        lines += [
            f"{fault.title} | `{row['where']}` | {row['runs']:,} | {row['violations']:,} | {row['date']}" for row in mine
        ] or [f"{fault.title} | not yet run | | |"]
    return _section("Runs", "what is done | by | runs | violations | last run", lines)


def _planted(rows: Sequence[Row]) -> str:
    mine = [row for row in rows if row["fault"] == PLANTED]
    lines = [f"`{row['where']}` | {row['runs']} | {row['runs'] - row['violations']} | {row['date']}" for row in mine]
    text = "A check that cannot fail proves nothing: defects are planted into our own code, and the checks above have to notice each."
    return _section("Planted bugs", "by | planted | noticed | last run", lines or ["not yet run | | |"], text)


def _recovery(rows: Sequence[Row]) -> str:
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        for situation, seconds in row["recover_s"].items():
            times[situation, row["where"]] += seconds
    lines = []
    for (situation, where), seconds in sorted(times.items()):
        target = next((f"{most:g}" for name, most in TARGETS.items() if situation.startswith(name)), "")
        lines.append(
            f"{situation} | `{where}` | {len(seconds)} | {statistics.median(seconds):.2f} | {_p99(seconds):.2f} | {target}"
        )
    text = (
        "From the fault to the next line of a job's log that can be read in the store; the lease is 10 s in `bench/recover.py`."
    )
    return _section(
        "Time to recover, seconds", "situation | by | times | p50 | p99 | target", lines or ["not yet run | | | | |"], text
    )


def _resent(rows: Sequence[Row]) -> str:
    sizes: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row in rows:
        for way, bytes_twice in row.get("resent", {}).items():
            sizes[way, row["where"]] += bytes_twice
    lines = [
        f"{way} | `{where}` | {len(each)} | {statistics.mean(each) / 2**20:.2f} | {max(each) / 2**20:.2f} | {max(each) / 2**28:.1%}"
        for (way, where), each in sorted(sizes.items())
    ]
    text = (
        "What one break, cut or damaged byte cost, counted on the wire against the same transfer undisturbed. It does not grow with the "
        "size of the transfer: a host's SSH server has up to 2 MiB of each channel under way, and a bucket takes parts of 8 MiB."
    )
    head = "way | by | breaks | mean, MiB | most, MiB | most, of 256 MiB"
    return _section("Bytes sent twice", head, lines or ["not yet run | | | | |"], text)


def _lives(report: Row | None) -> list[str]:
    title = "Simulated lives"
    if report is None:
        return [f"## {title}\n\nNot yet lived: `make sim`.\n"]
    count, jobs = sum(report["lives"].values()), sum(report["jobs"].values())
    text = (
        f"The real core and worker under a seeded clock, in a simulated world: **{count:,} lives with {jobs:,} jobs, "
        f"{len(report['broken'])} broke a promise.** Profiles: {_counts(report['lives'])}. Jobs: {_counts(report['jobs'])}. "
        f"Checks, each whenever something happened that could break it: {_counts(report['checked'])}."
    )
    rows = sorted(report["faults"].values(), key=lambda fault: -fault["dealt"])
    lines = [f"{each['about']} | {each['dealt']:,} | {each['lives']:,} | {each['violations']:,}" for each in rows]
    return [_section(title, "what went wrong | times | lives with it | of those broke a promise", lines, text)]


def _others() -> str:
    text = (
        "Measured: on two cores, one SSH server on loopback, one to six trials, so ± 30 %, in November 2026; their code, not run again "
        "here. Read: from the source of that version, or its users' reports."
    )
    return _section(
        "What was seen of others", "program | what was done | what came of it | how known", map(" | ".join, OTHERS), text
    )


def _limits() -> str:
    text = "These are known, and why they are so."
    return _section("What cannot be survived", "what | why | what happens instead, what to do", map(" | ".join, LIMITS), text)


def _aimed() -> list[tuple[str, Any]]:
    return [(name, fault) for name, fault in FAULTS.items() if fault.promises]


def _section(title: str, head: str, lines: Iterable[str], text: str = "") -> str:
    table = [f"| {head} |", "|" + "---|" * (head.count("|") + 1), *(f"| {line} |" for line in lines)]
    return "\n".join([f"## {title}", "", *([text, ""] if text else []), *table, ""])


def _count(rows: Sequence[Row], what: str) -> str:
    return f"{sum(row[what] for row in rows):,}"


def _counts(named: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in sorted(named.items()))


def _p99(seconds: Sequence[float]) -> float:
    return sorted(seconds)[min(len(seconds) - 1, int(len(seconds) * 0.99))]
