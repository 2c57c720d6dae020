"""Every fault of the simulated Vast.ai does what its menu says, once, and only to whom it was meant for."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from remote_trainer.testing.vast.faults import MENU
from remote_trainer.testing.vast.instances import Instance
from remote_trainer.testing.vast.machines import Harm, NoMachines
from tests.support.vastsim import START, Standing

CHECKS: dict[str, Callable[[Standing], None]] = {}


def checks(*names: str) -> Callable[[Any], Any]:
    """The function looks at the effect of each of these faults, which is armed already."""

    def keep(check: Any) -> Any:
        CHECKS.update({name: (lambda sim, name=name: check(sim, name)) for name in names})  # type: ignore[misc]
        return check

    return keep


class Broken(NoMachines):
    """Machines that remember what befell them."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    def harm(self, instance: int, how: Harm) -> None:
        self.asked.append(how)

    def halt(self, instance: int) -> None:
        self.asked.append("halt")

    def let_in(self, instance: int, keys: Any) -> None:
        self.asked.append(tuple(keys))


@pytest.fixture
def sim() -> Standing:
    made = Standing(111, 112)
    made.hands.machines = Broken()
    return made


def _asked(sim: Standing) -> list[object]:
    assert isinstance(sim.hands.machines, Broken)
    return sim.hands.machines.asked


@pytest.mark.parametrize("name", MENU)
def test_each_fault_does_what_the_menu_says(sim: Standing, name: str) -> None:
    """Nobody has to guess which of them work."""
    sim.faults.arm(name)
    CHECKS[name](sim)
    assert sim.faults.struck == [name]
    assert sim.faults.armed() == []


# -- create


@checks("create-dropped", "create-late", "create-504")
def _rented_all_the_same(sim: Standing, name: str) -> None:
    reply = sim.rent()
    assert (reply.dropped, reply.delay_s, reply.status) == {
        "create-dropped": (True, 0, 200),
        "create-late": (False, 30, 200),
        "create-504": (False, 0, 504),
    }[name]
    assert len(sim.live) == 1


@checks("create-parked")
def _parked(sim: Standing, name: str) -> None:
    reply = sim.rent()
    assert (reply.status, reply.body["success"]) == (200, False)
    sim.go(600)
    made = sim.live[reply.body["new_contract"]]
    assert made.actual == "stopped"
    assert made.meter.disk > 0 == made.meter.gpu


@checks(
    "create-no-ask-400",
    "create-no-ask-404",
    "create-no-ask-410",
    "create-500",
    "create-conflict",
    "create-429-text",
    "create-429-json",
    "create-no-credit",
)
def _refused(sim: Standing, name: str) -> None:
    reply = sim.rent()
    words = {"create-500": "server_error", "create-no-credit": "insufficient_credit", "create-conflict": "conflict"}
    number = int(name.split("-")[-1]) if name[-3:].isdigit() else 429
    status = {"create-no-credit": 400, "create-conflict": 409}.get(name, number)
    expected = words.get(name, "no_such_ask" if "no-ask" in name else "requests")
    assert reply.status == status
    assert expected in str(reply.body)
    assert isinstance(reply.body, str) is (name == "create-429-text")
    assert sim.live == {}
    assert len(sim.record.entries("refused")) == 1


@checks("create-duplicate")
def _two(sim: Standing, name: str) -> None:
    assert [sim.rent().status for _ in range(3)] == [200, 200, 410]
    assert sim.record.doubles() == ["rt-x"]


# -- list


@checks("list-410", "list-502", "list-unsuccessful")
def _no_list(sim: Standing, name: str) -> None:
    sim.made()
    reply = sim.ask("GET", "/api/v1/instances/")
    assert reply.status == {"list-410": 410, "list-502": 502, "list-unsuccessful": 200}[name]
    assert reply.status != 200 or reply.body["success"] is False
    assert len(sim.listed()) == 1


@checks("list-lag", "list-label-lag")
def _late(sim: Standing, name: str) -> None:
    sim.made()
    by_label = {"select_filters": json.dumps({"label": {"eq": "rt-x"}})}
    assert len(sim.listed()) == (1 if name == "list-label-lag" else 0)
    assert sim.listed(**by_label) == []
    sim.go(3)
    assert len(sim.listed(**by_label)) == 1


@checks("list-empty")
def _nothing(sim: Standing, name: str) -> None:
    sim.made()
    body = sim.ask("GET", "/api/v1/instances/").body
    assert (body["instances"], body["total_instances"]) == ([], 0)
    sim.go(3)
    assert len(sim.listed()) == 1


@checks("list-page-missing")
def _part(sim: Standing, name: str) -> None:
    sim.made()
    body = sim.ask("GET", "/api/v1/instances/").body
    assert (body["instances"], body["total_instances"]) == ([], 1)


# -- boot


def _booted(sim: Standing) -> tuple[Instance, Any]:
    made = sim.made()
    sim.go(600)
    return made, sim.shown(made)


@checks("boot-forever", "boot-pull-error", "boot-oci", "boot-halted", "boot-exited", "boot-offline")
def _never_runs(sim: Standing, name: str) -> None:
    _, row = _booted(sim)
    expected = {"boot-oci": "created", "boot-exited": "exited", "boot-offline": "offline"}
    assert row["actual_status"] == expected.get(name, "loading")
    assert row["intended_status"] == ("stopped" if name == "boot-halted" else "running")
    assert {"boot-pull-error": "pull access denied", "boot-oci": "OCI runtime", "boot-forever": "Pulling"}.get(name, "") in (
        row["status_msg"] or ""
    )


@checks("boot-small-disk")
def _small(sim: Standing, name: str) -> None:
    assert _booted(sim)[1]["disk_space"] == 10.0


@checks("boot-refused", "boot-timeouts", "boot-late-banner")
def _shut(sim: Standing, name: str) -> None:
    made, row = _booted(sim)
    assert row["actual_status"] == "running"
    assert row["public_ipaddr"] == "127.0.0.1 "
    assert made.door is not None
    sim.destroy_by_request(made)
    sim.go(10)


@checks("boot-key-denied")
def _denied(sim: Standing, name: str) -> None:
    made = sim.made()
    sim.go(60)
    sim.ask("POST", f"/api/v0/instances/{made.id}/ssh/", {"ssh_key": "ssh-ed25519 A"})
    assert _asked(sim) == [()]
    sim.go(120)
    assert _asked(sim)[-1] == ("ssh-ed25519 A",)


@checks("boot-proxy-only", "boot-ports-list", "boot-no-ports-by-id")
def _odd_ports(sim: Standing, name: str) -> None:
    _, row = _booted(sim)
    assert row["ports"] == {"boot-proxy-only": {}, "boot-no-ports-by-id": None}.get(name, row["ports"])
    listed = sim.listed()[0]["ports"]
    assert isinstance(listed, list) is (name == "boot-ports-list")
    assert ("22/tcp" in listed) is (name == "boot-no-ports-by-id")


@checks("boot-gpu-missing")
def _no_gpu(sim: Standing, name: str) -> None:
    _booted(sim)
    assert _asked(sim) == [Harm.BREAK_GPU]


# -- run


@checks("run-ssh-drop", "run-disk-full", "run-gpu-missing")
def _harmed(sim: Standing, name: str) -> None:
    made = sim.running()
    assert _asked(sim) == [{"run-ssh-drop": Harm.DROP, "run-disk-full": Harm.FILL}.get(name, Harm.BREAK_GPU)]
    assert made.actual == "running"


@checks("run-unknown", "run-offline")
def _silent(sim: Standing, name: str) -> None:
    made = sim.made()
    sim.go(60)
    assert made.actual == name.removeprefix("run-")
    assert _asked(sim) == ([Harm.CUT] if name == "run-offline" else [])
    disk_s = made.meter.disk_s
    sim.go(60)
    assert (made.actual == "running") is (name == "run-unknown")
    assert (made.meter.disk_s > disk_s) is (name == "run-unknown"), "a disk that is offline is not paid"


@checks("run-outbid")
def _outbid(sim: Standing, name: str) -> None:
    made = sim.made()
    sim.go(60)
    row = sim.shown(made)
    assert {row[each] for each in ("actual_status", "cur_state", "intended_status", "next_state")} == {"stopped"}
    assert _asked(sim) == ["halt"]


@checks("run-reboot", "run-moved")
def _rebooted(sim: Standing, name: str) -> None:
    made = sim.made()
    sim.go(60)
    assert made.actual == "loading"
    before = made.address
    sim.go(20)
    assert made.actual == "running"
    assert (made.address != before) is (name == "run-moved")


@checks("run-keys-wiped")
def _wiped(sim: Standing, name: str) -> None:
    sim.running()
    assert _asked(sim) == [()]


# -- destroy


@checks("destroy-429", "destroy-500", "destroy-bad-key")
def _stays(sim: Standing, name: str) -> None:
    made = sim.running()
    reply = sim.destroy_by_request(made)
    assert reply.status == {"destroy-429": 429, "destroy-500": 500, "destroy-bad-key": 404}[name]
    sim.go(100)
    assert made.ended_at is None


@checks("destroy-late")
def _answered_late(sim: Standing, name: str) -> None:
    made = sim.running()
    assert sim.destroy_by_request(made).delay_s == 40
    sim.go(7)
    assert sim.live == {}


@checks("destroy-dropped", "destroy-no-such")
def _goes(sim: Standing, name: str) -> None:
    made = sim.running()
    reply = sim.destroy_by_request(made)
    assert reply.dropped is (name == "destroy-dropped")
    assert reply.status == (404 if name == "destroy-no-such" else 200)
    sim.go(100)
    assert sim.record.alive() == []


@checks("destroy-lingers")
def _lingers(sim: Standing, name: str) -> None:
    made = sim.running()
    assert sim.destroy_by_request(made).status == 200
    sim.go(100)
    assert sim.shown(made) is not None
    sim.go(100)
    assert sim.shown(made) is None


# -- the account


@checks("account-key-revoked")
def _revoked(sim: Standing, name: str) -> None:
    reply = sim.ask("GET", "/api/v0/users/current")
    assert (reply.status, reply.body["msg"]) == (404, "Invalid user key")


@checks("account-no-credit")
def _poor(sim: Standing, name: str) -> None:
    assert sim.ask("GET", "/api/v0/users/current").body["credit"] <= 0


@checks("search-quota")
def _no_search(sim: Standing, name: str) -> None:
    reply = sim.ask("POST", "/api/v0/bundles/", {})
    assert (reply.status, reply.body["error"]) == (429, "search_quota_exceeded")
    assert int(reply.headers["X-RateLimit-Reset"]) % 86_400 == 0


# -- arming


def test_a_fault_may_strike_several_times_or_for_a_time() -> None:
    """Twice; or whenever within 20 s."""
    sim = Standing()
    sim.faults.arm("list-502", times=2)
    assert [sim.ask("GET", "/api/v1/instances/").status for _ in range(3)] == [502, 502, 200]
    sim.faults.arm("list-410", for_s=20)
    assert {sim.ask("GET", "/api/v1/instances/").status for _ in range(5)} == {410}
    sim.go(20)
    assert sim.ask("GET", "/api/v1/instances/").status == 200


def test_a_fault_may_be_for_a_label_or_an_offer() -> None:
    """Others are spared."""
    sim = Standing(111, 112, 113)
    sim.faults.arm("create-500", label="rt-b")
    sim.faults.arm("create-504", offer=113)
    assert [sim.rent(111, "rt-a").status, sim.rent(112, "rt-b1").status, sim.rent(113, "rt-a").status] == [200, 500, 504]


def test_a_fault_of_running_may_come_later() -> None:
    """So many seconds after it began to run, and at that moment, however far the clock jumps."""
    sim = Standing()
    sim.faults.arm("run-outbid", after_s=30, shape="exited")
    made = sim.made()
    sim.go(89)
    assert made.actual == "running"
    sim.go(1000)
    assert made.actual == "exited"
    assert sim.record.entries("stopped")[0].at == START + 90
    assert made.meter.gpu_s == pytest.approx(30)


def test_a_fault_for_a_time_strikes_an_instance_once_each_time_it_runs() -> None:
    """Not without end."""
    sim = Standing()
    sim.faults.arm("run-ssh-drop", for_s=90)
    sim.faults.arm("run-reboot", for_s=90)
    sim.made()
    sim.go(200)
    assert sim.faults.struck == ["run-ssh-drop", "run-reboot"] * 2


def test_faults_are_armed_from_outside_too() -> None:
    """By a request without a key; a name or a detail that is not known is refused."""
    sim = Standing()
    assert sim.ask("POST", "/admin/faults/", {"name": "create-500", "times": 2}, key="").status == 200
    assert sim.ask("POST", "/admin/faults/", {"name": "create-600"}).status == 400
    assert sim.ask("POST", "/admin/faults/", {"name": "create-500", "often": 1}).status == 400
    shown = sim.ask("GET", "/admin/faults/").body
    assert shown["menu"] == dict(MENU)
    assert [each["name"] for each in shown["armed"]] == ["create-500"]
    assert sim.rent().status == 500
    assert sim.ask("DELETE", "/admin/faults/").status == 200
    assert sim.rent().status == 200
    assert sim.ask("GET", "/admin/record/").body["alive"] == list(sim.live)


def test_every_fault_is_documented() -> None:
    """The page has the menu as it is."""
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "vastai.md").read_text(encoding="utf-8")
    assert [name for name, title in MENU.items() if f"| `{name}` | {title} |" not in page] == []
