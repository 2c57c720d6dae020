"""``offers``, and what ``doctor`` says of renting, against the simulated Vast.ai, in this process."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from remote_trainer.config import load
from remote_trainer.model import Job, Offer, Phase, Reason
from remote_trainer.service.submit import Order, draft
from tests.support.office import NOW, Office, on_vast

_ENDED = on_vast("ended", Phase.FAILED, finished_at=NOW - timedelta(minutes=10))


def failed_on(machine: int) -> Job:
    """A job that was let down by a machine."""
    [attempt] = _ENDED.attempts
    offer = Offer(id="1", driver="vastai", machine=str(machine))
    lost = replace(attempt, ended_at=NOW, offer=offer, reason=Reason.PROVISIONING_FAILED)
    return replace(_ENDED, attempts=(lost,))


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
