"""``offers``, ``instances`` and ``reap`` against the simulated Vast.ai, in this process."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from remote_trainer.cli import guard, main
from remote_trainer.cli import rented as commands
from remote_trainer.config import load
from remote_trainer.drivers.vastai import pace
from remote_trainer.model import Attempt, Job, JobId, Offer, Phase, Reason, Verdict
from remote_trainer.ports import Change
from remote_trainer.service.app import App
from remote_trainer.service.submit import Order, draft
from remote_trainer.testing.vast import demo
from remote_trainer.testing.vast.server import SimVast
from tests.unit.life import a_job

NOW = datetime.now(UTC)
DEPLOYMENT = "abc123"
MARKET = [
    demo.offer(100, dph_base=0.40),
    demo.offer(101, dph_base=0.41),
    demo.offer(102, dph_base=0.80),
    demo.offer(103, dph_base=0.10),
    demo.offer(104, dph_base=0.20, reliability=0.9),
    demo.offer(105, dph_base=0.21, reliability=0.9),
    demo.offer(106, dph_base=0.22, cuda_max_good=12.0),
]
Outcome = tuple[int, str, str]


@dataclass(frozen=True, slots=True)
class Office:
    """An installation with an account; commands run in this process."""

    sim: SimVast
    run: Callable[..., Outcome]

    def document(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        """What a command prints with --json."""
        returned, shown, message = self.run(*arguments, "--json")
        assert (returned, message) == (code, "")
        found: dict[str, Any] = json.loads(shown)
        return found

    def store(self, *jobs: Job) -> None:
        """Have these jobs in the store."""

        async def submit() -> None:
            async with App(load()) as app:
                for job in jobs:
                    await app.store.submit(replace(job, phase=Phase.QUEUED, attempts=(), finished_at=None))
                tokens = {each.job.id: each.token for each in await app.store.claim("w", lease_s=60, limit=len(jobs))}
                await app.store.save([Change(job_id=job.id, token=tokens[job.id], job=job) for job in jobs])

        asyncio.run(submit())

    def rent(self, *labels: str) -> None:
        """Have an instance under each label."""
        for number, label in enumerate(labels):
            self.sim.create(100 + number, {"image": "i", "disk": 20.0, "label": label, "env": {}})

    @property
    def there(self) -> set[str]:
        """What has not been asked to end."""
        gone = [path.split("/")[-2] for method, path in self.sim.requests if method == "DELETE"]
        return {each.label for each in self.sim.live.values() if str(each.id) not in gone}


@pytest.fixture
def office(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Office]:
    """A fresh installation and a small market; requests need not wait their turn."""
    for kind in pace.INTERVALS_S:
        monkeypatch.setitem(pace.INTERVALS_S, kind, 0.0)  # type: ignore[misc]

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["remote-trainer", *arguments])
        with pytest.raises(SystemExit) as ended:
            guard.run(main.app, "remote-trainer")
        shown = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, shown.out, shown.err

    with SimVast(MARKET) as sim:
        for name, value in {
            "HOME": tmp_path,
            "REMOTE_TRAINER_DEPLOYMENT": DEPLOYMENT,
            "VAST_URL": sim.url,
            "VAST_API_KEY": sim.key,
        }.items():
            monkeypatch.setenv(name, str(value))
        yield Office(sim, run)


def label(job: str, attempt: int = 1) -> str:
    return f"rt-{DEPLOYMENT}-{job}-a{attempt}"


def on_vast(job_id: str, phase: Phase, **changes: Any) -> Job:
    """A job at its first attempt."""
    attempt = Attempt(number=1, label=label(job_id), started_at=NOW, requested_at=NOW)
    job = replace(a_job(), id=JobId(job_id), name=job_id, driver="vastai", phase=phase, attempts=(attempt,))
    return replace(job, **changes)


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


# ---------------------------------------------------------------------------------------------------------------- offers


def failed_on(machine: int) -> Job:
    """A job that was let down by a machine."""
    [attempt] = ENDED.attempts
    offer = Offer(id="1", driver="vastai", machine=str(machine))
    lost = replace(attempt, ended_at=NOW, offer=offer, reason=Reason.PROVISIONING_FAILED)
    return replace(ENDED, attempts=(lost,))


WANTED = ("offers", "--tool", "sdxl-lora@1", "--set", "base=x", "--max-cost", "0.6")


def test_offers_are_ranked_as_a_job_would_take_them(office: Office) -> None:
    """By the cost of the run, those that cost nearly the same marked, and last the machine that failed lately."""
    office.store(failed_on(103 + 20_000))
    found = office.document(*WANTED)
    assert [(each["id"], each["first"], each["failed_lately"]) for each in found["offers"]] == [
        ("100", True, False),
        ("101", True, False),
        ("103", False, True),
    ]
    costs = [float(each["expected_cost_usd"]) for each in found["offers"]]
    assert costs[2] < costs[0] < costs[1]
    assert [(each["offer"], each["condition"]) for each in found["refused"]] == [
        ("104", "min_reliability"),
        ("105", "min_reliability"),
        ("106", "min_cuda"),
        ("102", "max_cost"),
    ]
    assert found["expected"]["hours"] > 0 and office.there == set()


def test_offers_that_the_installation_does_not_pay_are_refused(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a job would be refused them, with the cap's name."""
    monkeypatch.setenv("REMOTE_TRAINER_MAX_INSTANCE_PRICE", "0.3")
    found = office.document(*WANTED[:-1], "5")
    assert [each["id"] for each in found["offers"]] == ["103"]
    dear = {each["offer"]: each["reason"] for each in found["refused"] if each["condition"] == "spending"}
    assert set(dear) == {"100", "101", "102"}
    assert all("max_instance_price is 0.3 $" in reason for reason in dear.values())


def test_offers_in_words(office: Office) -> None:
    """A table of what could be taken, and below it what was refused, counted."""
    office.store(failed_on(103 + 20_000))
    code, shown, _ = office.run(*WANTED, "--limit", "2")
    assert code == 0
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert lines[2].startswith("* $0.") and "100 20100 1 × RTX 4090" in lines[2]
    assert "* one of these 2 is taken first: they cost nearly the same" in lines
    assert "1 more: --limit 3" in lines
    assert any(line.startswith("2 min_reliability reliability 0.9, 0.98 wanted (1 × RTX 4090") for line in lines)


def test_the_preset_of_the_dataset_counts(office: Office, tmp_path: Path) -> None:
    """A run is as long as the preset makes it, which is told; the images are counted and not looked into."""
    (tmp_path / "data").mkdir()
    for number in range(401):
        (tmp_path / "data" / f"{number}.png").touch()
    order = (*WANTED[:-1], "5", "--dataset", str(tmp_path / "data"))
    found, plain = office.document(*order), office.document(*order, "--set", "preset=none")
    assert (found["preset"]["name"], found["preset"]["facts"]["images"], plain["preset"]) == ("large", 401, None)
    assert found["expected"]["hours"] > plain["expected"]["hours"]
    assert "preset large for 401 images: rank=32 " in office.run(*order)[1]


def test_traffic_of_the_dataset_counts(office: Office, tmp_path: Path) -> None:
    """Its size is measured, and nothing is packed."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_bytes(b"x" * 5_000_000)
    bare, loaded = office.document(*WANTED), office.document(*WANTED, "--dataset", str(tmp_path / "data"))
    assert loaded["expected"]["gb_in"] - bare["expected"]["gb_in"] == pytest.approx(0.005)
    assert not (tmp_path / ".cache").exists()


def test_a_market_without_a_machine_is_an_error_that_says_what_was_refused(office: Office) -> None:
    """The exit code is that of NoCapacity."""
    found = office.document(*WANTED, "--option", "gpu_names=H100 SXM", code=29)
    assert (found["error"], found["offers"]) == ("NoCapacity", [])
    assert {each["condition"] for each in found["refused"]} == {"gpu_names"}
    code, shown, message = office.run(*WANTED, "--option", "gpu_names=H100 SXM")
    assert code == 29 and "gpu_names" in shown and "no machine" in message


def test_a_borrowed_machine_is_its_only_offer(office: Office) -> None:
    """It costs nothing, and nothing is refused."""
    found = office.document("offers", "--tool", "hello@1", "--driver", "local")
    assert [(each["id"], each["expected_cost_usd"], each["first"]) for each in found["offers"]] == [("local", "0.000000", True)]
    assert found["refused"] == []


def test_what_a_profile_asks_of_a_machine_is_asked(office: Office, tmp_path: Path) -> None:
    """Its resources count beside those of the tool, in the offers as in the plan of a job."""
    (tmp_path / ".config/remote-trainer/drivers").mkdir(parents=True)
    (tmp_path / ".config/remote-trainer/drivers/big.yaml").write_text("driver: vastai\nresources: {vram_gb: 48}\n")
    found = office.document(*WANTED, "--driver", "big", code=29)
    assert {each["condition"] for each in found["refused"]} == {"vram_gb"}
    assert asyncio.run(draft(load(), Order(tool="hello@1", driver="big"))).plan.resources.vram_gb == 48


def test_spot_machines_are_ranked_at_what_would_be_bid(office: Office) -> None:
    """Beside those on demand, more than the least that would win; where there are none it changes nothing."""
    every = ("offers", "--tool", "hello@1", "--max-hours", "5")
    demand, both = office.document(*every)["offers"], office.document(*every, "--spot")["offers"]
    spot = {each["id"]: each for each in both if each["spot"]}
    assert [each for each in both if not each["spot"]] == demand or {each["id"] for each in demand} == set(spot)
    for each in demand:
        least = office.sim.market.offers[int(each["id"])]["min_bid"]
        bid = float(spot[each["id"]]["price_per_hour_usd"]) - float(spot[each["id"]]["disk_per_hour_usd"])
        assert bid == pytest.approx(least * 1.25, abs=0.001)
    assert "would be bid" in office.run(*every, "--spot")[1]
    assert office.document("offers", "--tool", "hello@1", "--driver", "local", "--spot")["offers"][0]["spot"] is False


def test_several_places_are_ranked_together(office: Office) -> None:
    """By the order's strategy; each machine says which place it is at."""
    places = ("offers", "--tool", "hello@1", "--driver", "vastai,local")
    assert office.document(*places)["offers"][0]["place"] == 0
    cheapest = office.document(*places, "--strategy", "cheapest")["offers"][0]
    assert (cheapest["place"], cheapest["driver"]) == (1, "local")
    assert "place 2" in office.run(*places)[1]


# ---------------------------------------------------------------------------------------------------------------- doctor


def test_doctor_says_what_renting_needs_and_would_cost(office: Office) -> None:
    """What a driver says of itself, and the cheapest run on demand and spot; without a tool only what is missing for that."""
    found = {each["question"]: each for each in office.document("doctor", "--driver", "vastai", "--tool", "hello@1")["findings"]}
    assert all(found[name]["ok"] for name in ("key", "credit", "instance_write", "misc", "ssh key", "rental", "rental, spot"))
    assert "RTX 4090" in found["rental"]["answer"] and "hello@1 for 0." in found["rental"]["answer"]
    found = {each["question"]: each for each in office.document("doctor", "--driver", "vastai")["findings"]}
    assert found["rental"]["ok"] is None and "--tool" in found["rental"]["answer"]
    assert office.there == set()


def test_doctor_names_what_is_wrong_with_a_driver(office: Office) -> None:
    """A permission that is missing is a fault of the installation; nothing is priced then."""
    office.sim.account.key.permissions = {name: {} for name in ("user_read", "instance_read", "misc")}
    code, shown, said = office.run("doctor", "--driver", "vastai", "--tool", "hello@1")
    assert code == 5 and "instance_write" in said and "rental" not in shown
