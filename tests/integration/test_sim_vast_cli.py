"""The simulated Vast.ai speaks the real dialect: Vast.ai's official command line works with it and understands it."""

from __future__ import annotations

import ast
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from remote_trainer.testing.vast import demo
from remote_trainer.testing.vast.clock import StandingClock
from remote_trainer.testing.vast.server import SimVast
from tests.support.vastcli import Client, client

pytestmark = pytest.mark.vastai

_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJtestingtestingtestingtestingtesting someone"
_START = 1_800_000_000.0


@pytest.fixture(scope="module")
def sim() -> Iterator[SimVast]:
    """A service whose time stands still."""
    offers = [demo.offer(111), demo.offer(112, dph_base=0.5), demo.offer(113, gpu_name="L40S"), demo.offer(114, num_gpus=2)]
    with SimVast(offers, clock=StandingClock(_START)) as sim:
        yield sim


@pytest.fixture(scope="module")
def vastai(sim: SimVast, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with client(sim.url, sim.key, tmp_path_factory.mktemp("vastai")) as started:
        yield started


def _pass(sim: SimVast, seconds: float) -> None:
    assert isinstance(sim.clock, StandingClock)
    sim.clock.advance(seconds)
    sim.tick()


def _rented(sim: SimVast, vastai: Client, offer: int = 111, more: str = "") -> int:
    said = vastai(
        f"create instance {offer} --image pytorch/pytorch --disk 20 --ssh --direct --label L/1 --cancel-unavail --raw {more}"
    )
    _pass(sim, 10)
    return int(said.json["new_contract"])


@pytest.fixture
def rented(sim: SimVast, vastai: Client) -> Iterator[int]:
    """An instance that runs."""
    number = _rented(sim, vastai)
    yield number
    vastai(f"destroy instance {number} -y")
    _pass(sim, 10)


@pytest.mark.parametrize("form", ["", "--new"])
def test_search_offers(vastai: Client, form: str) -> None:
    """Numbers that come as text are compared as numbers, in both forms of the search."""
    said = vastai(
        f"search offers 'gpu_name=RTX_4090 num_gpus=1 reliability>0.98 gpu_ram>=20' -o dph_total --limit 3 --raw {form}"
    )
    assert [row["id"] for row in said.json] == [111, 112]
    table = vastai(f"search offers 'gpu_name=L40S' {form}").out
    assert "113" in table
    assert "112" not in table


def test_offers_are_priced_with_the_disk_that_is_asked_for(vastai: Client) -> None:
    """--storage changes dph_total, by months of 720 hours."""
    rows = {gb: vastai(f"search offers 'gpu_name=L40S' --storage {gb} --raw").json[0] for gb in (0, 720)}
    assert rows[720]["dph_total"] - rows[0]["dph_total"] == pytest.approx(0.15)


def test_create_show_and_destroy(sim: SimVast, vastai: Client) -> None:
    """The whole life of an instance, as the client sees it."""
    number = _rented(sim, vastai, more="--env '-e A=b -p 8080:8080' --onstart-cmd 'echo hi'")
    row = vastai(f"show instance {number} --raw").json
    assert (row["actual_status"], row["label"], row["onstart"], row["disk_space"]) == ("running", "L/1", "echo hi", 20.0)
    assert row["extra_env"] == {"A": "b", "-p 8080:8080": "1"}
    assert "running" in vastai(f"show instance {number}").out
    assert vastai(f"destroy instance {number} -y").out.strip() == f"destroying instance {number}."
    _pass(sim, 10)
    assert vastai(f"show instance {number} --raw").json == {"instances": None}
    gone = vastai(f"destroy instance {number} -y --raw")
    assert '"status_code": 404' in gone.err


def test_show_instances(sim: SimVast, vastai: Client, rented: int) -> None:
    """The list, its table and its pages beyond 25."""
    assert [row["id"] for row in vastai("show instances --raw").json] == [rented]
    table = vastai("show instances --no-color")
    assert table.code == 0
    assert str(rented) in table.out
    assert "L/1" in table.out
    body = {"image": "i", "label": "many"}
    sim.market.offers.update({number: demo.offer(number) for number in range(2000, 2030)})
    made = [sim.create(number, body) for number in range(2000, 2030)]
    assert len(vastai("show instances --raw").json) == 31
    assert len(vastai("show instances --raw --limit 25").json["instances"]) == 25
    for each in made:
        sim.destroy(each)
    _pass(sim, 10)


def test_attach_ssh_and_ssh_url(sim: SimVast, vastai: Client, rented: int) -> None:
    """A key is let in, and the way in is the direct one."""
    assert "'success': True" in vastai(f"attach ssh {rented} '{_KEY}'").out
    assert "already" in vastai(f"attach ssh {rented} '{_KEY}'").out
    found = sim.live[rented].address
    assert found is not None
    assert vastai(f"ssh-url {rented}").out.replace(" ", "").strip() == f"ssh://root@{found[0]}:{found[1]}"
    assert vastai(f"detach ssh {rented} 1").code == 0
    assert sim.live[rented].keys == {}


def test_label_stop_start_and_reboot(sim: SimVast, vastai: Client, rented: int) -> None:
    """What changes an instance is understood and reported."""
    assert vastai(f"label instance {rented} M").out.strip() == f"label for {rented} set to M."
    assert sim.live[rented].label == "M"
    assert vastai(f"stop instance {rented}").out.strip() == f"stopping instance {rented}."
    assert sim.live[rented].actual == "stopped"
    assert vastai(f"start instance {rented}").out.strip() == f"starting instance {rented}."
    _pass(sim, 5)
    assert vastai(f"reboot instance {rented}").out.strip() == f"Rebooting instance {rented}."
    _pass(sim, 5)
    assert sim.live[rented].actual == "running"


def test_change_bid(sim: SimVast, vastai: Client) -> None:
    """A bid can be raised, or left to the provider."""
    number = _rented(sim, vastai, 113, "--bid_price 0.5")
    assert sim.live[number].bid == 0.5
    vastai(f"change bid {number} --price 0.6")
    assert sim.live[number].bid == 0.6
    vastai(f"change bid {number}")
    assert sim.live[number].bid == sim.market.offers[113]["min_bid"]
    vastai(f"destroy instance {number} -y")
    _pass(sim, 10)


def test_logs_come_by_a_link_that_works_later(vastai: Client, rented: int) -> None:
    """The client asks the link until it is there."""
    assert "running" in vastai(f"logs {rented} --tail 10").out


def test_execute(vastai: Client, rented: int) -> None:
    """One of the few commands; its output comes by a link, too, which this version of the client fetches and then trips over."""
    assert "'str' object has no attribute 'get'" in vastai(f"execute {rented} 'ls /'").err
    assert "Invalid command given" in vastai(f"execute {rented} 'cat /etc/passwd' --raw").err


def test_show_user_and_money(sim: SimVast, vastai: Client, rented: int) -> None:
    """Credit, charges and invoices are read, as JSON and as tables."""
    _pass(sim, 3600)
    assert vastai("show user --raw").json["credit"] == pytest.approx(float(sim.account.credit), abs=1e-3)
    assert "simulated" in vastai("show user").out
    charges = vastai(
        f"show invoices-v1 --charges --limit 100 --start-date {_START:.0f} --end-date {sim.clock.now():.0f} --raw"
    ).json
    mine = next(row for row in charges["results"] if row["source"] == f"instance-{rented}")
    assert mine["amount"] == pytest.approx(0.344, abs=0.01)
    assert {item["type"] for item in mine["items"]} == {"gpu", "disk"}
    for form in ("--charges", "--charges --format tree", "--invoices"):
        said = vastai(
            f"show invoices-v1 {form} --limit 100 --start-date {_START:.0f} --end-date {sim.clock.now():.0f} --no-color"
        )
        assert said.code == 0, said.err
    assert "Current:" in vastai("show invoices").out


def test_ssh_keys_of_the_account(sim: SimVast, vastai: Client) -> None:
    """Keys are kept and listed."""
    assert "'success': True" in vastai(f"create ssh-key '{_KEY}' -y").out
    assert [row["public_key"] for row in vastai("show ssh-keys --raw").json] == [_KEY]
    sim.account.ssh_keys.clear()


def test_bids_against_each_other(sim: SimVast, vastai: Client) -> None:
    """A search for bids shows what would win; a higher bid evicts, demand takes both, and the client shows them stopped."""
    low = _rented(sim, vastai, 113, "--bid_price 0.5")
    (row,) = vastai("search offers 'gpu_name=L40S' --type bid --raw").json
    assert row["min_bid"] == pytest.approx(0.501)
    high = _rented(sim, vastai, 113, "--bid_price 0.6")
    shown = {number: vastai(f"show instance {number} --raw").json["actual_status"] for number in (low, high)}
    assert shown == {low: "stopped", high: "running"}
    sim.wanted_elsewhere(113, None)
    assert "queued" in vastai(f"start instance {high}").out + vastai(f"start instance {high} --raw").out
    sim.wanted_elsewhere(113, 0)
    vastai(f"destroy instances {low} {high} -y")
    _pass(sim, 10)


def test_volumes(sim: SimVast, vastai: Client) -> None:
    """Found, made, linked to an instance, listed, and deleted when nothing uses it any more."""
    (room,) = vastai("search volumes 'machine_id=20111' --raw").json
    name = vastai(f"create volume {room['id']} --size 30 --name data --raw").json["volume_name"]
    number = int(name.removeprefix("V."))
    made = _rented(sim, vastai, more=f"--env '-v {name}:/mnt'")
    (row,) = vastai("show volumes --raw").json
    assert (row["id"], row["disk_space"], row["instances"]) == (number, 30.0, [made])
    assert "data" in vastai("show volumes").out
    assert '"status_code": 400' in vastai(f"delete volume {number} --raw").err
    vastai(f"destroy instance {made} -y")
    _pass(sim, 60)
    assert vastai(f"delete volume {number}").code == 0
    assert vastai("show volumes --raw").json == []


def test_launch_instance(sim: SimVast, vastai: Client) -> None:
    """Search and create in one."""
    said = vastai("launch instance -g L40S -n 1 -i pytorch/pytorch -d 20 --ssh --direct --raw")
    number = said.json["new_contract"]
    assert sim.live[number].offer["gpu_name"] == "L40S"
    vastai(f"destroy instance {number} -y")
    _pass(sim, 10)


def test_keys_of_the_api(sim: SimVast, vastai: Client, tmp_path: Path) -> None:
    """A key with few permissions is made, shown, refused where it may not, and deleted."""
    (tmp_path / "p.json").write_text('{"api": {"user_read": {}}}')
    made = ast.literal_eval(
        vastai(f"create api-key --name few --permission_file {tmp_path / 'p.json'}").out.partition(" created ")[2]
    )
    assert vastai(f"show user --raw --api-key {made['key']}").json["id"] == 1
    refused = vastai(f"show instances --raw --api-key {made['key']}")
    assert '"status_code": 401' in refused.err
    assert "instance_read permission group" in refused.err
    assert "few" in vastai("show api-keys --raw").out
    assert vastai(f"delete api-key {made['id']}").code == 0
    assert '"status_code": 404' in vastai(f"show user --raw --api-key {made['key']}").err


def test_subaccounts(sim: SimVast, vastai: Client) -> None:
    """Made, given credit, listed."""
    said = vastai("create subaccount --email a@example.org --username a --password p --type client --raw")
    assert said.code == 0, said.err
    assert vastai("transfer credit a@example.org 1.5 --skip").code == 0
    (row,) = vastai("show subaccounts --raw").json
    assert (row["email"], row["credit"]) == ("a@example.org", 1.5)


def test_environment_variables(vastai: Client) -> None:
    """What every instance has in its environment."""
    assert vastai("create env-var NAME value").code == 0
    assert "NAME" in vastai("show env-vars").out
    assert vastai("delete env-var NAME").code == 0


def test_audit_logs(sim: SimVast, vastai: Client, rented: int) -> None:
    """Who made which contract is told as the client shows it."""
    rows = vastai("show audit-logs --raw").json
    assert any(row["api_route"] == "api.ask_PUT" and row["args"]["contract_id"] == rented for row in rows)


def test_bandwidth_in_charges(sim: SimVast, vastai: Client, rented: int) -> None:
    """Traffic has lines of its own, also in the tables; invoices of a label are found by their contracts."""
    sim.carry(sim.live[rented], down_gb=10, up_gb=20)
    _pass(sim, 3600)
    span = f"--start-date {_START - 86_400:.0f} --end-date {sim.clock.now():.0f}"
    rows = vastai(f"show invoices-v1 --charges --limit 100 {span} --raw").json["results"]
    (mine,) = (row for row in rows if row["source"] == f"instance-{rented}")
    assert {item["type"] for item in mine["items"]} == {"gpu", "disk", "bwd", "bwu"}
    assert vastai(f"show invoices-v1 --charges --format tree -v {span} --no-color").code == 0
    start, end = (time.strftime("%m/%d/%Y", time.gmtime(at)) for at in (_START - 86_400, sim.clock.now() + 86_400))
    said = vastai(f"show invoices --start_date {start} --end_date {end} --instance_label L/1 --raw")
    assert rented in {row["instance_id"] for row in said.json}, said.err


def test_scheduled_jobs(sim: SimVast, vastai: Client, rented: int) -> None:
    """A scheduled end is listed, and can be taken back."""
    end = {"start_time": _START + 86_400, "api_endpoint": f"/api/v0/instances/{rented}/", "instance_id": rented}
    job = sim.schedule.add(end, sim.clock.now())
    assert [row["id"] for row in vastai("show scheduled-jobs --raw").json] == [job.id]
    assert f"/api/v0/instances/{rented}/" in vastai("show scheduled-jobs").out
    assert vastai(f"delete scheduled-job {job.id}").code == 0
    assert sim.schedule.jobs == {}


def test_a_wrong_key_is_told_as_the_client_knows_it(sim: SimVast, vastai: Client) -> None:
    """An unknown key is 404 with words of its own, which is no instance that is gone."""
    said = vastai("show user --raw --api-key 00")
    assert '"status_code": 404' in said.err
    assert "Invalid user key" in said.err
