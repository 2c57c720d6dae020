"""Instances of the simulated Vast.ai as hosts with addresses of their own."""

from __future__ import annotations

import subprocess
from pathlib import Path

from remote_trainer.testing.openssh import new_key
from remote_trainer.testing.vast import demo
from remote_trainer.testing.vast.instances import Timings
from remote_trainer.testing.vast.server import SimVast
from tests.support.containers import Fleet
from tests.support.patience import PATIENCE_S
from tests.support.rentedhosts import ContainerMachines
from tests.support.rig import wait_for

_AT_ONCE = Timings(scheduled_s=0.01, created_s=0.01, loading_s=0.01, reboot_s=0.1, destroy_s=0.01)


def test_a_rented_host_is_ours_until_it_is_given_back(container_fleet: Fleet, tmp_path: Path) -> None:
    """Root logs in at the host's own address with the attached key, also after it was outbid and came back; then it is gone."""
    new_key(tmp_path / "key")
    with SimVast([demo.offer(111)], machines=ContainerMachines(container_fleet), timings=_AT_ONCE) as sim:
        sim.account.add_ssh_key((tmp_path / "key.pub").read_text(), 0.0)
        made = sim.create(111, {"image": "i", "label": "rt-x", "onstart": "echo $CONTAINER_ID >>boots"})
        wait_for(lambda: made.actual == "running", "the instance to run")
        address = made.address
        assert address is not None
        assert address[1] == 22
        options = ["-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        login = ["ssh", *options, "-i", str(tmp_path / "key"), f"root@{address[0]}", "cat boots"]
        sim.faults.arm("run-outbid", seconds=0.1)
        wait_for(lambda: len(sim.record.entries("running")) == 2, "the instance to come back")
        done = subprocess.run(login, capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.stdout == f"{made.id}\n" * 2, done.stderr
        sim.destroy(made)
        wait_for(lambda: not sim.live, "the instance to be gone")
        assert (
            subprocess.run([*login[:1], "-o", "ConnectTimeout=2", *login[1:]], capture_output=True, timeout=PATIENCE_S).returncode
            == 255
        )
    assert sim.record.alive() == []
