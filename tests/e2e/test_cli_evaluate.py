"""``remote-trainer evaluate``: the checkpoints of an ended training are compared by a job of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commandline import Home
from tests.support.patience import PATIENCE_S

# Two jobs, each of which loads torch two times.
pytestmark = [pytest.mark.train, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
TINY = {
    "gpus": 0, "python": sys.executable, "name": "cat", "resolution": 64, "bucket_step": 32, "batch_size": 4, "threads": 1,
    "steps": 2, "checkpoint_every": 1, "val_every": 1, "sample_count": 0, "evaluate_clip": "none", "evaluate_steps": 1,
}  # fmt: skip


def wait(home: Home, job: str) -> int:
    """Wait for the end of a job; the exit code says how it ended."""
    with home.start("remote_trainer.cli.main", "wait", job) as waiting:
        waiting.communicate(timeout=PATIENCE_S)
    return waiting.returncode


@pytest.fixture(scope="module")
def trained(home: Home, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The id of a training that is done."""
    base = tmp_path_factory.mktemp("base") / "tiny-sd15"
    subprocess.run([sys.executable, str(ROOT / "scripts" / "make_tiny_sd15.py"), str(base)], check=True, capture_output=True)
    settings = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]
    photographs = str(ROOT / "tests" / "fixtures" / "muybridge-cat")
    done = home.run_training("--tool", "sd15-lora@1", "--dataset", photographs, "--base", str(base), *settings, "--detach")
    assert done.returncode == 0, done.stderr
    job = done.stdout.decode().strip()
    assert wait(home, job) == 0, home.remote_trainer("logs", job).stdout
    return job


def test_the_checkpoints_of_a_training_are_evaluated_by_a_job(home: Home, trained: str, tmp_path: Path) -> None:
    """It runs where the training ran, on the training's data and what it kept; each of the two tells of the other."""
    done = home.remote_trainer("evaluate", trained, "--prompts", "a walking cat", "--seeds", "5", "--set", "steps=2", "--detach")
    assert done.returncode == 0, done.stderr
    job = done.stdout.decode().strip()
    assert wait(home, job) == 0, home.remote_trainer("logs", job).stdout
    told = home.document("show", job)
    assert (told["tool"], told["evaluation_of"], told["name"]) == ("evaluate-lora@1", trained, f"{trained}-evaluation")
    assert {key: told["parameters"][key] for key in ("family", "name", "clip", "prompts", "seeds", "steps", "gpus")} == {
        "family": "sd15", "name": "cat", "clip": "none", "prompts": "a walking cat", "seeds": "5", "steps": 2, "gpus": 0,
    }  # fmt: skip
    assert {given["name"] for given in told["inputs"]} == {"dataset", "base", "trained", "tool"}
    kept = {each["path"] for each in told["artifacts"] if not each["path"].startswith("evaluation/images/")}
    assert kept == {
        *("final/cat_best.safetensors", "final/cat_best_kohya.safetensors", "final/best.json"),
        *("evaluation/report.json", "evaluation/report.html", "evaluation/sheet.png"),
    }
    assert home.document("show", trained)["evaluations"] == [job]
    assert f"evaluation {job}".encode() in home.remote_trainer("show", trained).stdout


def test_what_cannot_be_evaluated_is_refused(home: Home) -> None:
    """A job of another tool has nothing to compare, and one that runs is not disturbed."""
    job = home.submit("--set", "lines=1000")
    running = home.remote_trainer("evaluate", job)
    assert running.returncode == 7 and b"cancel it first" in running.stderr
    home.remote_trainer("cancel", job)
    home.remote_trainer("wait", job)
    other = home.remote_trainer("evaluate", job)
    assert other.returncode == 2 and b"ran hello@1: only what sd15-lora, sdxl-lora, flux-lora trained" in other.stderr
