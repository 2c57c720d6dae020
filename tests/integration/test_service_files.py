"""The files that keep workers running are accepted by what reads them, and leave a worker no more rights than it needs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from remote_trainer.config import reference
from tests.support.patience import PATIENCE_S

FOLDER = Path(__file__).parents[2] / "systemd"


@pytest.fixture(params=["hardened", "local training"])
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The unit as installed, with a program that exists; alone and with the drop-in."""
    text = (FOLDER / "remote-trainer-worker@.service").read_text()
    installed = tmp_path / "remote-trainer-worker@1.service"
    installed.write_text(text.replace("/opt/remote-trainer/bin/remote-trainer", "/bin/true"))
    if request.param == "local training":
        drop_ins = tmp_path / f"{installed.name}.d"
        drop_ins.mkdir()
        (drop_ins / "local-training.conf").write_text((FOLDER / "local-training.conf").read_text())
    return installed


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=PATIENCE_S, check=False)


@pytest.mark.systemd
def test_unit_has_no_unknown_or_wrong_line(unit: Path) -> None:
    """systemd has nothing to say about the unit; it warns about a misspelt key, but succeeds all the same."""
    done = analyze("verify", "--man=no", str(unit))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.systemd
def test_unit_is_exposed_to_little(tmp_path: Path) -> None:
    """systemd's own review of the unit finds an exposure of at most 1.5 of 10."""
    done = analyze("security", "--offline=true", "--threshold=15", "--no-pager", str(FOLDER / "remote-trainer-worker@.service"))
    assert done.returncode == 0, done.stdout


@pytest.mark.node
def test_pm2_waits_for_a_worker_that_leaves() -> None:
    """pm2 gives a worker as long to leave as systemd does, and leaves its children alone."""
    show = f"console.log(JSON.stringify(require({json.dumps(str(FOLDER / 'ecosystem.config.js'))})))"
    done = subprocess.run(["node", "-e", show], capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    (worker,) = json.loads(done.stdout)["apps"]
    assert (worker["script"], worker["args"], worker["kill_timeout"], worker["treekill"]) == (
        "remote-trainer",
        "worker",
        90_000,
        False,
    )


def test_example_names_real_settings() -> None:
    """Every variable that the service files set is one that the product reads."""
    known = {row.variable for row in reference()}
    lines = [line.lstrip("#") for line in (FOLDER / "worker.env.example").read_text().splitlines()]
    unit = (FOLDER / "remote-trainer-worker@.service").read_text().split()
    words = [*lines, *(word.removeprefix("Environment=") for word in unit)]
    named = {word.partition("=")[0] for word in words if word.startswith("REMOTE_TRAINER_")}
    assert named
    assert named <= known
