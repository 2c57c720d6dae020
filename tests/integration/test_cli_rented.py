"""``instances`` and ``reap`` against the simulated Vast.ai, in this process."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from remote_trainer.cli import rented as commands
from remote_trainer.model import Attempt, Phase, Verdict
from tests.support.office import NOW, Office, label, on_vast

ALIVE = on_vast("alive", Phase.EXECUTING)
ENDED = on_vast("ended", Phase.FAILED, finished_at=NOW - timedelta(minutes=10))
_STAYS = Attempt(
    number=1,
    label=label("stays"),
    started_at=NOW,
    requested_at=NOW,
    releasing_at=NOW - timedelta(minutes=6),
    verdict=Verdict.SUCCEEDED,
)
STAYS = on_vast("stays", Phase.RELEASING, attempts=(_STAYS,))
FRESH = on_vast("fresh", Phase.DONE)
STRANGER = "rt-other0-jalive-a1"
EVERYTHING = (label("alive"), label("ended"), label("fresh"), label("unknown"), STRANGER)


@pytest.fixture
def full(office: Office) -> Office:
    """One instance of a live job, of one that ended long ago, of one that has just ended, of one nobody knows, and a stranger's."""
    office.store(ALIVE, ENDED, replace(FRESH, finished_at=datetime.now(UTC)))  # this file was loaded long ago
    office.rent(*EVERYTHING)
    return office


# ------------------------------------------------------------------------------------------------------------- instances


def test_instances_tells_whose_everything_is(full: Office) -> None:
    """Every instance of this installation, with its job, its price and why it is claimed or not; no stranger's."""
    rows = {row["label"]: row for row in full.document("instances")["instances"]}
    assert set(rows) == set(EVERYTHING) - {STRANGER}
    assert {name: (row["job"], row["attempt"], row["claimed"]) for name, row in rows.items()} == {
        label("alive"): ("alive", 1, True),
        label("ended"): ("ended", 1, False),
        label("fresh"): ("fresh", 1, False),
        label("unknown"): ("unknown", 1, False),
    }
    assert [rows[label(name)]["why"] for name in ("alive", "ended", "unknown")] == [
        "its job is executing",
        "its job has ended: failed",
        "the store knows no such job",
    ]
    assert all(float(row["price_per_hour_usd"]) > 0 and row["age_s"] >= 0 for row in rows.values())


def test_instances_in_words(full: Office) -> None:
    """A table, what it costs an hour, and what to do about what is nobody's."""
    code, shown, _ = full.run("instances")
    assert code == 0
    assert label("ended") in shown and "4 instances at vastai" in shown and "3 of them nobody's" in shown


def test_instances_tells_what_should_be_gone(office: Office) -> None:
    """A machine whose end was due minutes ago, and one that has been nobody's for long enough, are worth an alarm; others are not."""
    office.store(ALIVE, ENDED, STAYS)
    office.rent(*(label(name) for name in ("alive", "ended", "stays")))
    rows = {row["job"]: row for row in office.document("instances")["instances"]}
    assert {name: row["alarm"] for name, row in rows.items()} == {"alive": False, "ended": True, "stays": True}
    assert (
        f"ALARM: not gone although their end is asked for again and again: {rows['stays']['id']};" in office.run("instances")[1]
    )


def test_without_jobs_that_rented_nothing_is_asked(office: Office) -> None:
    """An installation that has never rented needs no key; a driver is asked when it is named."""
    assert office.document("instances") == {"instances": []}
    assert "has rented anything" in office.run("instances")[1]
    assert office.sim.requests == []
    assert office.document("instances", "--driver", "vastai") == {"instances": []}
    assert office.sim.requests != []


def test_a_driver_that_does_not_answer_is_no_empty_list(full: Office) -> None:
    """The exit code is that of the error, and the document says what was not asked."""
    full.sim.account.key.revoked = True
    refused = full.document("instances", code=21)
    assert (refused["error"], refused["instances"]) == ("Permanent", [])
    assert "VAST_API_KEY" in refused["faults"][0]
    assert full.run("reap", "--now", "--yes")[0] == 21


# ------------------------------------------------------------------------------------------------------------------ reap


def test_reap_gives_back_what_has_been_nobodys_for_a_while(full: Office) -> None:
    """What has just ended waits, what the store does not know waits; what is claimed and what is a stranger's is not even shown."""
    found = full.document("reap", "--yes")
    assert [row["label"] for row in found["due"]] == [label("ended")]
    assert [row["label"] for row in found["waiting"]] == [label("fresh"), label("unknown")]
    assert len(found["asked"]) == 1
    assert full.there == set(EVERYTHING) - {label("ended")}


def test_now_takes_all_that_is_nobodys_and_nothing_else(full: Office) -> None:
    """Without the patience; a live attempt's and a stranger's stay."""
    code, shown, _ = full.run("reap", "--now", "--yes")
    assert code == 0 and "asked for the end of 3 instances" in shown
    assert full.there == {label("alive"), STRANGER}


@pytest.mark.parametrize(("arguments", "code"), [(("--dry-run",), 0), ((), 2), (("--json",), 2)])
def test_nothing_ends_that_nobody_agreed_to(
    full: Office, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int
) -> None:
    """A dry run only looks; where nobody can be asked, --yes must have been said."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    returned, shown, message = full.run("reap", "--now", *arguments)
    assert returned == code
    assert label("ended") in shown or "--yes" in shown + message
    assert full.there == set(EVERYTHING)


class Terminal(io.StringIO):
    """Somebody who answers."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "left"), [("n\n", set(EVERYTHING)), ("y\n", set(EVERYTHING) - {label("ended")})])
def test_a_person_is_asked(full: Office, monkeypatch: pytest.MonkeyPatch, answer: str, left: set[str]) -> None:
    """After it was shown what would go; no is no error."""
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    code, shown, _ = full.run("reap")
    assert code == 0 and label("ended") in shown
    assert full.there == left


def test_what_became_claimed_while_a_person_thought_stays(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is judged anew before it is destroyed."""
    office.rent(label("alive"), label("unknown"))

    def think(count: int, **_: bool) -> bool:
        office.store(ALIVE)
        return count == 2

    monkeypatch.setattr(commands, "_agreed", think)
    assert office.run("reap", "--now", "--driver", "vastai")[0] == 0
    assert office.there == {label("alive")}


def test_a_refused_end_is_told_and_the_others_end(full: Office) -> None:
    """One that the provider refuses gives the exit code."""
    full.sim.faults.arm("destroy-bad-key", label=label("ended"))
    found = full.document("reap", "--now", "--yes", code=21)
    assert len(found["asked"]) == 2
    assert {label("alive"), label("ended"), STRANGER} <= {each.label for each in full.sim.live.values()}


def test_drivers_that_borrow_have_nothing_to_reap(office: Office) -> None:
    """Naming one is a mistake."""
    assert office.run("reap", "--driver", "local")[0] == 2
