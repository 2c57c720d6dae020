"""What a training concludes from its own losses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.train.conftest import chosen_options

Run = Callable[..., Path]


@pytest.mark.parametrize(
    ("recent", "loss", "times"),
    [
        ([0.1] * 60, 0.29, 0.0),
        ([0.1] * 60, 0.4, 4.0),
        ([0.1] * 59, 0.4, 0.0),
        ([0.1, *[0.01] * 59], 0.2, 0.0),
        ([0.1] * 50 + [0.25] * 10, 0.4, 4.0),
        ([0.0] * 60, 0.0, 0.0),
    ],
    ids=["usual", "spike", "too few to tell", "the largest counts", "the latest do not count", "nothing to learn"],
)
def test_a_spike_is_measured_by_the_largest_of_many_losses(recent: list[float], loss: float, times: float) -> None:
    """A loss is a spike if it is more than the factor times the largest of those before the last ten."""
    from lora.watch import spiked

    assert spiked(recent, loss, 3.0) == pytest.approx(times)
    assert spiked(recent, loss, 0.0) == 0.0


def test_a_plateau_is_so_many_validations_without_a_lower_loss() -> None:
    """What is lower by less than a thousandth is no lower; after a plateau counting begins anew."""
    from lora.watch import plateaus

    falling = {0: 1.0, 10: 0.9, 20: 0.8999}
    assert plateaus(falling, 1) == 1 and plateaus(falling, 2) == 0
    assert plateaus({**falling, 30: 0.95}, 2) == 1
    assert plateaus({**falling, 30: 0.95, 40: 0.8, 50: 0.9, 60: 0.9}, 2) == 2


def test_a_plateau_halves_the_rate_or_ends_the_training(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a rate of next to nothing the loss does not fall: --plateau cut halves the rate each time, stop ends the training whole."""
    still = {"steps": 6, "val_every": 1, "patience": 2, "lr": 1e-6}
    output = run(**still, plateau="cut")
    rates = [m["lr"] for m in map(json.loads, (output / "metrics.jsonl").read_text().splitlines()) if "lr" in m]
    assert rates == pytest.approx([1e-6, 1e-6, 5e-7, 5e-7, 2.5e-7, 2.5e-7])
    capsys.readouterr()
    ended = run(**still, plateau="stop", output=tmp_path / "ended")
    assert json.loads((ended / "final" / "training.json").read_text())["steps"] == 2
    assert [p.name for p in (ended / "checkpoints").iterdir()] == ["step-000002"]
    assert "plateau: 2 validations in a row found no lower loss; the training ends" in capsys.readouterr().out


def test_a_plateau_needs_validations(capsys: pytest.CaptureFixture[str]) -> None:
    """Without validations on the way there is nothing to see it by."""
    with pytest.raises(SystemExit):
        chosen_options(plateau="stop", val_every=0)
    assert "--plateau stop needs --val-every" in capsys.readouterr().err


def spoil(monkeypatch: pytest.MonkeyPatch, at: int, times: int, value: float) -> None:
    """Make the loss of a pass the value, so many times."""
    from lora import run as module

    usual, left = module.training_loss, [times]

    def loss(family: object, cache: object, photos: object, options: object, position: int) -> object:
        found = usual(family, cache, photos, options, position)
        if position == at and left[0]:
            left[0] -= 1
            return found * value
        return found

    monkeypatch.setattr(module, "training_loss", loss)


def test_a_loss_that_is_no_number_sends_the_training_back(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It goes on from the last checkpoint at half the rate, and what follows does not depend on what was thrown away.

    Samples of the course that was left are made again, and that the training was stopped shortly before makes no difference.
    """
    from lora.ends import Interrupted, NotANumber

    options: dict[str, Any] = {"steps": 6, "checkpoint_every": 3, "sample_every": 1, "sample_count": 1, "sample_steps": 1}
    options["targets"] = "attention"
    spoil(monkeypatch, at=4, times=1, value=float("nan"))
    output = run(**options)
    said = capsys.readouterr().out
    assert "rolled back to step 3: at step 5 the loss is nan" in said
    metrics = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [(m["step"], m["lr"]) for m in metrics if "lr" in m] == [
        (step, pytest.approx(rate))
        for step, rate in [(1, 3e-3), (2, 3e-3), (3, 3e-3), (4, 3e-3), (4, 1.5e-3), (5, 1.5e-3), (6, 1.5e-3)]
    ]
    spoil(monkeypatch, at=4, times=1, value=float("inf"))
    options["output"] = tmp_path / "again"

    def stopping() -> None:
        if (options["output"] / "samples" / "step-000003-0.png").exists():
            raise Interrupted("at step 4")

    with pytest.raises(Interrupted):
        run(stopping=stopping, **options)
    assert (options["output"] / "checkpoints" / "step-000004").is_dir()
    again = run(**options)
    for name in ("final/lora.safetensors", "samples/step-000004-0.png"):
        assert (again / name).read_bytes() == (output / name).read_bytes()
    spoil(monkeypatch, at=1, times=9, value=float("nan"))
    with pytest.raises(NotANumber, match="it was sent back 2 times"):
        run(**{**options, "output": tmp_path / "lost"})
    assert capsys.readouterr().out.count("rolled back to step 0") == 2


def test_what_was_written_on_the_way_goes_with_the_course_that_was_left(tmp_path: Path) -> None:
    """LoRAs and checkpoints of later steps; others of a like name stay."""
    from lora import checkpoint, export

    names = [
        "cat.safetensors",
        "cat-000250_kohya.safetensors",
        "cat-000500.safetensors",
        "cat-red.safetensors",
        "cat-red-000500.safetensors",
    ]
    for name in names:
        (tmp_path / name).touch()
    for name in ("step-000250", "step-000300", "step-000500", "step-old"):
        (tmp_path / name).mkdir()
    export.forget(tmp_path, "cat", 250)
    checkpoint.forget(tmp_path, 250)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*names, "step-000250", "step-old"} - {"cat-000500.safetensors"}


def test_a_stop_costs_no_checkpoint_to_go_back_to(tmp_path: Path) -> None:
    """Beside the newest ones, the last one at a multiple of --checkpoint-every stays."""
    from lora import checkpoint

    for step in (250, 500, 600, 601):
        (tmp_path / checkpoint.name_of(step)).mkdir()
    checkpoint.prune(tmp_path, 2, 250)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000500", "step-000600", "step-000601"]
    checkpoint.prune(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000601"]


def test_a_spike_is_not_learnt_from_until_rollbacks_are_used_up(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A finite spike goes back, too; one that comes every time is told and learnt from in the end, for it may be the data's own."""
    from lora import watch

    monkeypatch.setattr(watch, "FEWEST", 2)
    monkeypatch.setattr(watch, "LATEST", 1)
    spoil(monkeypatch, at=4, times=9, value=1e4)
    run(steps=5, checkpoint_every=2, rollbacks=1)
    said = capsys.readouterr().out
    assert said.count("rolled back to step 4: at step 5") == 1 and "--rollbacks are used up, and it is learnt from" in said
