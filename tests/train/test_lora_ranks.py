"""Several processes that train as one."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.support.patience import PATIENCE_S
from tests.train.conftest import TINY, arguments
from tests.train.test_lora_training import Run, final, start


@pytest.fixture(scope="module")
def settings(bases: Callable[[str], Path], cache: Path, photographs: Path) -> dict[str, object]:
    return {
        **TINY, "base": bases("sd15"), "dataset": photographs, "cache": cache, "batch_size": 1, "steps": 6, "val_every": 3,
        "checkpoint_every": 2,
        "sample_every": 3, "sample_count": 3, "sample_steps": 2, "dropout": 0.2, "prior_prompt": "a cat", "prior_images": 3,
    }  # fmt: skip


def test_two_ranks_train_as_one_with_twice_the_passes(settings: dict[str, object], run: Run, tmp_path: Path) -> None:
    """Losses, files and samples are those of one rank, to the bit; stopped at two ranks, it goes on at one; everything is said once."""
    alone = run(**{**settings, "grad_accumulation": 2})
    places = (tmp_path / f"several{number}" for number in itertools.count())
    code = 0
    while code in (0, -signal.SIGTERM):  # they were quicker than our signal
        several = next(places)
        process = start(
            *arguments(**{**settings, "ranks": 2, "output": several, "cache": several.with_name(f"cache of {several.name}")})
        )  # they share that work, too
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("step 4/"):
                process.send_signal(signal.SIGTERM)
        errors = process.communicate(timeout=PATIENCE_S)[1]
        code = process.returncode
    assert code == 75 and "asked to stop" in errors
    assert len([line for line in said if line.startswith("validation step 0")]) == 1
    assert (several / "samples" / "step-000003-2.png").exists() and not (several / "final").exists()
    assert final(run(**{**settings, "grad_accumulation": 2, "output": several})) == final(alone)
    losses = [json.loads((output / "final" / "training.json").read_text())["val_loss"] for output in (alone, several)]
    assert losses[0] == losses[1]
    for sample in (alone / "samples").glob("step-*"):
        assert sample.read_bytes() == (several / "samples" / sample.name).read_bytes()


def test_ranks_decide_for_the_smallest_gpu() -> None:
    """Each brings its own card's memory, and all plan for the least of them."""
    import torch
    from lora.ranks import ALONE, Ranks

    class Beside(Ranks):
        """The first of two ranks; the other one has 8 GiB."""

        def total(self, values: torch.Tensor) -> torch.Tensor:
            return values + torch.tensor([0.0, 8.0])

    assert [Beside(0, 2).least(card) for card in (24.0, 6.0)] == [8.0, 6.0] and ALONE.least(24.0) == 24.0


SLEEP = "import time; time.sleep(60)"


@pytest.mark.parametrize(
    ("programs", "expected"),
    [
        (["", ""], 0),
        (["raise SystemExit(1)", "raise SystemExit(71)"], 71),
        ([SLEEP, "raise SystemExit(2)"], 2),
        ([SLEEP, "import os; os.kill(os.getpid(), 9)"], 137),
    ],
    ids=["all well", "the cause, not what follows from it", "the others are ended", "killed"],
)
def test_the_ranks_end_as_one(programs: Sequence[str], expected: int) -> None:
    """The exit code is that of the rank that failed for a reason of its own, and no rank stays behind."""
    from lora.ranks import ended

    ranks = [subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL) for program in programs]
    for rank, program in zip(ranks, programs, strict=True):
        if program != SLEEP:
            rank.wait()  # these have no trainer's ears: told to end on their way, they would end otherwise
    assert ended(ranks, [None] * len(ranks), lambda: None) == expected
    assert all(rank.returncode is not None for rank in ranks)
