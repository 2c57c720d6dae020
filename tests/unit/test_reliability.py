"""The page on reliability says what was run, no more and no less."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs import reliability
from docs.reliability_facts import TARGETS
from tests.support.evidence import FAULTS, PLANTED, PROMISES, Tally, keep

ROOT = Path(__file__).parents[2]
ROWS = reliability.evidence()


def test_every_fault_of_the_evidence_is_known() -> None:
    """What was kept names faults that there are, and files that are still there."""
    assert {row["fault"] for row in ROWS} <= set(FAULTS)
    assert [row["where"] for row in ROWS if not (ROOT / row["where"].partition(",")[0]).exists()] == []


def test_every_fault_is_tried_somewhere() -> None:
    """Each fault is named by a test or a program; none of them names one that is not there."""
    places = [path for folder in ("tests", "bench", "remote_trainer/testing") for path in (ROOT / folder).rglob("*.py")]
    text = "\n".join(path.read_text() for path in places if path.name not in ("evidence.py", Path(__file__).name))
    assert set(re.findall(r'\bfault\("([^"]+)"\)', text)) <= set(FAULTS)
    assert [name for name in FAULTS if f'"{name}"' not in text] == []


def test_every_promise_is_attacked() -> None:
    """No promise is without a fault that is aimed at it, and no fault is aimed at nothing."""
    aimed = {number for fault in FAULTS.values() for number in fault.promises}
    assert aimed == set(PROMISES)
    assert [name for name, fault in FAULTS.items() if not fault.promises] == [PLANTED]


def test_every_fault_is_on_the_page() -> None:
    """A fault without evidence is named as not yet run, one with evidence by its runs."""
    assert reliability.page([], None).count("not yet run |") == len(FAULTS) + 2  # no recovery was timed, no break counted
    row = {
        "fault": "worker-killed",
        "where": "tests/e2e/x.py",
        "runs": 1234,
        "violations": 5,
        "recover_s": {},
        "date": "2026-01-02",
    }
    page = reliability.page([row], None)
    assert f"| {FAULTS['worker-killed'].title} | `tests/e2e/x.py` | 1,234 | 5 | 2026-01-02 |" in page
    assert "| 2 | Each step of an attempt starts at most once | 1 of " in page


def test_times_to_recover_are_percentiles_of_all_runs() -> None:
    """p50 and p99 of a situation come from every recovery that was kept."""
    times = {"standing by, same machine, 1 job": [float(number) for number in range(1, 201)]}
    row = {
        "fault": "worker-killed",
        "where": "bench/recover.py",
        "runs": 200,
        "violations": 0,
        "recover_s": times,
        "date": "2026-01-02",
    }
    line = "| standing by, same machine, 1 job | `bench/recover.py` | 200 | 100.50 | 199.00 | "
    assert f"{line}{TARGETS['standing by, same machine']:g} |" in reliability.page([row], None)


def test_what_breaks_cost_is_on_the_page() -> None:
    """Mean and most of the bytes that were sent twice, by way."""
    row = {
        "fault": "transfer-cut",
        "where": "tests/x.py",
        "runs": 2,
        "violations": 0,
        "recover_s": {},
        "resent": {"dataset to a host": [1 << 20, 3 << 20]},
        "date": "2026-01-02",
    }
    assert "| dataset to a host | `tests/x.py` | 2 | 2.00 | 3.00 | 1.2% |" in reliability.page([row], None)


def test_what_the_simulator_lived_is_on_the_page() -> None:
    """Lives, jobs, what was dealt in them, and how many broke a promise."""
    dealt = {"about": "a host reboots", "dealt": 1500, "lives": 900, "violations": 1}
    lives = {
        "lives": {"calm": 1000, "nets": 1000},
        "jobs": {"done": 3000},
        "checked": {"starts": 7},
        "faults": {"x": dealt},
        "broken": [(5, "nets", "starts")],
    }
    page = reliability.page([], lives)
    assert "**2,000 lives with 3,000 jobs, 1 broke a promise.** Profiles: calm 1,000, nets 1,000." in page
    assert "| a host reboots | 1,500 | 900 | 1 |" in page


def test_kept_evidence_is_replaced_where_it_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later run of the same fault in the same place takes the place of the earlier one; others stay."""
    monkeypatch.setattr(reliability, "DATA", tmp_path / "kept.json")
    monkeypatch.setenv("REMOTE_TRAINER_TEST_EVIDENCE", str(reliability.DATA))
    keep([Tally("worker-killed", "a", runs=1), Tally("worker-killed", "b", runs=2)])
    keep([Tally("worker-killed", "a", runs=3, violations=1)])
    assert [(row["where"], row["runs"], row["violations"]) for row in reliability.evidence()] == [("a", 3, 1), ("b", 2, 0)]
