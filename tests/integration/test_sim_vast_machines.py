"""Instances of the simulated Vast.ai are real: SSH servers that let keys in, lose connections, reboot, and are gone with all they ran."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from remote_trainer.drivers.vastai.farewell import last_resort
from remote_trainer.testing.openssh import new_key
from remote_trainer.testing.vast import demo
from remote_trainer.testing.vast.clock import RunningClock
from remote_trainer.testing.vast.instances import Instance, Timings
from remote_trainer.testing.vast.local import LocalMachines
from remote_trainer.testing.vast.routes import Request
from remote_trainer.testing.vast.server import SimVast
from tests.support.patience import PATIENCE_S
from tests.support.rig import wait_for

pytestmark = pytest.mark.sshd

_AT_ONCE = Timings(scheduled_s=0.01, created_s=0.01, loading_s=0.01, reboot_s=0.1, destroy_s=0.01)


@pytest.fixture
def machines(tmp_path: Path) -> LocalMachines:
    return LocalMachines(tmp_path / "instances")


@pytest.fixture
def sim(machines: LocalMachines) -> Iterator[SimVast]:
    with SimVast([demo.offer(111), demo.offer(112)], machines=machines, timings=_AT_ONCE) as sim:
        yield sim


@pytest.fixture
def key(tmp_path: Path) -> Path:
    new_key(tmp_path / "key")
    return tmp_path / "key"


def _ask(sim: SimVast, method: str, path: str, body: object = None) -> object:
    reply = sim.answer(Request(method=method, path=path, base=sim.url, body=body, authorization=f"Bearer {sim.key}"))
    assert reply.status == 200, reply.body
    return reply.body


def _made(sim: SimVast, **more: object) -> Instance:
    body = {"image": "i", "disk": 20.0, "label": "rt-x", "env": {"A": "b"}, **more}
    return sim.live[_ask(sim, "PUT", "/api/v0/asks/111/", body)["new_contract"]]  # type: ignore[index]


def _let_in(sim: SimVast, made: Instance, key: Path) -> None:
    _ask(sim, "POST", f"/api/v0/instances/{made.id}/ssh/", {"ssh_key": key.with_suffix(".pub").read_text()})


def _running(sim: SimVast, key: Path, **more: object) -> Instance:
    made = _made(sim, **more)
    _let_in(sim, made, key)
    wait_for(lambda: made.actual == "running", "the instance to run")
    return made


def _ssh(made: Instance, key: Path, command: str) -> subprocess.CompletedProcess[str]:
    assert made.address is not None
    options = ["-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=no", "-i", str(key)]
    host = [f"{getpass.getuser()}@{made.address[0]}", "-p", str(made.address[1]), "-o", "UserKnownHostsFile=/dev/null"]
    return subprocess.run(["ssh", *options, *host, command], capture_output=True, text=True, timeout=PATIENCE_S)


def _detached(made: Instance, key: Path) -> int:
    """Leave a program running in an instance; returns its process id."""
    start = "setsid sh -c 'echo $$ >pid; exec sleep 1000' >/dev/null 2>&1 </dev/null &"
    done = _ssh(made, key, f"rm -f pid; {start} while [ ! -s pid ]; do sleep 0.05; done; cat pid")
    return int(done.stdout.split()[0])


def _runs(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return False


def test_a_key_is_let_in_by_request_and_no_other(sim: SimVast, key: Path, tmp_path: Path) -> None:
    """Whoever is not attached stays outside; a session has a home of its own, made-up GPUs, and nothing of the container's variables."""
    made = _running(sim, key)
    home = tmp_path / "instances" / str(made.id) / "home"
    done = _ssh(made, key, "pwd; echo $HOME; echo A=$A; cat .vast_containerlabel; echo; nvidia-smi")
    assert done.stdout.splitlines() == [str(home), str(home), "A=", f"C.{made.id}", "0, RTX 4090, 24564, 570.86.10"]
    new_key(tmp_path / "stranger")
    assert _ssh(made, tmp_path / "stranger", "true").returncode == 255


def test_destroy_ends_every_process_and_the_disk(sim: SimVast, machines: LocalMachines, key: Path, tmp_path: Path) -> None:
    """Also what detached itself, and only then is it told to be gone."""
    made = _running(sim, key, onstart="exec sleep 1000")
    pid = _detached(made, key)
    assert _runs(pid)
    assert len(machines.programs(made.id)) >= 3
    _ask(sim, "DELETE", f"/api/v0/instances/{made.id}/", {})
    wait_for(lambda: made.id not in sim.live, "the instance to be gone")
    assert not _runs(pid)
    assert sim.record.alive() == []
    assert not (tmp_path / "instances" / str(made.id)).exists()


def test_onstart_runs_at_each_boot_with_the_containers_variables(sim: SimVast, key: Path, tmp_path: Path) -> None:
    """A reboot kills what ran, runs it again, empties the folder for temporary files and keeps the disk."""
    script = 'echo "$A $CONTAINER_ID ${#CONTAINER_API_KEY}" >>boots; echo x >"$TMPDIR/x"'
    made = _running(sim, key, onstart=script)
    home = tmp_path / "instances" / str(made.id) / "home"
    wait_for((home.parent / "tmp" / "x").exists, "the first onstart")
    pid = _detached(made, key)
    _ssh(made, key, "echo old >$TMPDIR/old")
    before = made.address
    _ask(sim, "PUT", f"/api/v0/instances/reboot/{made.id}/", {})
    wait_for(lambda: (home / "boots").read_text() == f"b {made.id} 64\n" * 2, "the second onstart")
    wait_for(lambda: made.actual == "running", "the instance to run again")
    assert not _runs(pid)
    assert not (home.parent / "tmp" / "old").exists()
    assert made.address == before


def test_an_outbid_instance_is_silent_and_keeps_its_disk(sim: SimVast, key: Path, tmp_path: Path) -> None:
    """Its processes are killed; when the GPU is free again it starts by itself, and is as it was."""
    made = _running(sim, key)
    pid = _detached(made, key)
    _ssh(made, key, "echo kept >file")
    sim.faults.arm("run-outbid", seconds=0.5)
    wait_for(lambda: not _runs(pid), "the end of its processes")
    assert [entry.detail for entry in sim.record.entries("stopped")][-1] == "outbid"
    wait_for(lambda: made.actual == "running", "the instance to run again")
    assert _ssh(made, key, "cat file").stdout == "kept\n"


def test_a_machine_of_which_nobody_heard_ends_itself(sim: SimVast, key: Path) -> None:
    """By what the request to rent gave it for its start: it waits, and sends the farewell until the provider has accepted it."""
    sim.faults.arm("destroy-500")
    made = _made(sim, onstart=last_resort(sim.url, 0.1).replace("sleep 600", "sleep 0.1"))
    wait_for(lambda: made.gone_at is not None, "the end of the instance")
    assert sim.faults.struck == ["destroy-500"]
    assert [row["api_key_id"] for row in sim.audit if row["api_route"] == "api.instance_DELETE"] == [sim.account.keys[-1].id]


def test_faults_of_a_running_machine(sim: SimVast, key: Path) -> None:
    """A connection breaks, keys are gone, the disk is full, the GPU has fallen off."""
    made = _running(sim, key)
    pid = _detached(made, key)
    sim.faults.arm("run-ssh-drop")
    wait_for(lambda: "run-ssh-drop" in sim.faults.struck, "the drop")
    sim.hands.do(made.id, "programs", made.id).result()
    assert _runs(pid), "what is detached outlives a connection"
    for name, command in (("run-gpu-missing", "nvidia-smi"), ("run-disk-full", "echo more >full"), ("run-keys-wiped", "true")):
        assert _ssh(made, key, command).returncode == 0
        sim.faults.arm(name)
        wait_for(lambda name=name: name in sim.faults.struck, name)  # type: ignore[misc]
        sim.hands.do(made.id, "programs", made.id).result()
        assert _ssh(made, key, command).returncode != 0


@pytest.mark.parametrize("name", ["boot-refused", "boot-timeouts", "boot-late-banner", "boot-key-denied"])
def test_ways_in_that_open_late(sim: SimVast, key: Path, name: str) -> None:
    """Refused, without an answer, without a word, without a key let in: each as its own, then open."""
    sim.faults.arm(name, seconds=3600)
    made = _running(sim, key)
    assert made.address is not None
    with contextlib.ExitStack() as stack:
        if name in ("boot-refused", "boot-timeouts"):
            wrong = ConnectionRefusedError if name == "boot-refused" else TimeoutError
            with pytest.raises(wrong):
                socket.create_connection(made.address, 0.5)
        else:
            connection = stack.enter_context(socket.create_connection(made.address, PATIENCE_S))
            connection.settimeout(0.5 if name == "boot-late-banner" else PATIENCE_S)
            if name == "boot-late-banner":
                with pytest.raises(TimeoutError):
                    connection.recv(4)
            else:
                assert connection.recv(4) == b"SSH-"
                assert _ssh(made, key, "true").returncode == 255
    assert isinstance(sim.clock, RunningClock)
    sim.clock.advance(3600)
    wait_for(lambda: not made.plan, "the way to open")
    wait_for(lambda: _ssh(made, key, "true").returncode == 0, "the login")


def test_the_command_serves_until_it_is_asked_to_end(key: Path, tmp_path: Path) -> None:
    """It says where it is, can be steered by requests, and leaves no process behind."""
    offers = tmp_path / "offers.json"
    offers.write_text(json.dumps([{"id": 111, "dph_base": 0.1}]))
    command = [sys.executable, "-m", "remote_trainer", "sim-vast", "--json", "--offers", str(offers), "--boot", "0.2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)}) as process:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())

        def ask(method: str, path: str, body: object) -> dict[str, object]:
            headers = {"Authorization": f"Bearer {said['VAST_API_KEY']}", "Content-Type": "application/json"}
            data = None if method == "GET" else json.dumps(body).encode()
            request = urllib.request.Request(said["VAST_URL"] + path, data, headers, method=method)
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
                assert reply.headers["Content-Type"] == "application/json"
                return dict(json.loads(reply.read()))

        ask("POST", "/admin/faults/", {"name": "run-unknown", "seconds": 1})
        made = ask("PUT", "/api/v0/asks/111/", {"image": "i", "label": "rt-x", "onstart": "exec sleep 1000"})
        wait_for(lambda: "run-unknown" in str(ask("GET", "/admin/record/", None)), "the fault")
        folder = str(next(tmp_path.glob("sim-vast-*")))
        wait_for(lambda: _of(folder), "its processes")
        assert ask("GET", f"/api/v0/instances/{made['new_contract']}/", None)["instances"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    assert _of(folder) == []
    assert list(tmp_path.glob("sim-vast-*")) == []


def _of(folder: str) -> list[str]:
    """The processes that were started with a folder in their command line."""
    found = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdigit() and folder.encode() in Path(f"/proc/{name}/cmdline").read_bytes():
                found.append(name)
    return found
