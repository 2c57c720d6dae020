"""Checkpoints are compared by the pictures they make, and the best is exported."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageFilter

from tests.train.conftest import PHOTOGRAPHS, ROOT, TINY, Train, arguments, chosen_options, tool

QUICK = {"family": "sd15", "count": 2, "seeds": "7,8", "steps": 2, "threads": 1}


def evaluate(stopping: Callable[[], None] = lambda: None, **options: object) -> dict[str, Any]:
    """Evaluate in this process and return the report."""
    from evaluate_checkpoints.evaluate import run
    from evaluate_checkpoints.options import EvaluationOptions
    from lora.flags import parse

    chosen = parse(
        arguments(**{key: value for key, value in {**QUICK, **options}.items() if value is not None}), {}, EvaluationOptions
    )
    run(chosen, stopping)
    report: dict[str, Any] = json.loads((Path(chosen.output) / "evaluation" / "report.json").read_text())
    return report


def learn(output: Path, base: Path, cache: Path, photographs: Path, **options: object) -> Path:
    """Train Stable Diffusion 1.5 in this process."""
    from lora.base import find
    from lora.data import survey
    from lora.laps import Laps
    from lora.loop import Task, train

    places = {"base": base, "dataset": photographs, "output": output, "cache": cache}
    chosen, trainer = chosen_options("sd15", **{**places, **TINY, **options}), tool("sd15")
    train(Task(chosen, survey(chosen), find(chosen.base, trainer.kind), trainer.family()), lambda: None, Laps())
    return output


@pytest.fixture(scope="module")
def trained(bases: Callable[[str], Path], cache: Path, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training of six steps has left, with three checkpoints, each validated."""
    output = tmp_path_factory.mktemp("trained") / "output"
    more = {"steps": 6, "checkpoint_every": 2, "val_every": 2, "keep_checkpoints": 9, "ema": 0.5, "name": "cat"}
    return learn(output, bases("sd15"), cache, photographs, **more)


class TermAt(io.StringIO):
    """Takes what is printed, and sends this process TERM once that begins a line."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self.words = words

    def write(self, text: str) -> int:
        if text.startswith(self.words):
            os.kill(os.getpid(), signal.SIGTERM)
        return super().write(text)


@pytest.fixture(scope="module")
def report(trained: Path, clip: Path, cache: Path) -> dict[str, Any]:
    """The report of its evaluation, which was stopped by TERM while it drew, and went on when it was started again."""
    from evaluate_checkpoints.evaluate import main

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(TermAt("picture 2/12: ")):
        patch.setattr(sys, "argv", ["evaluate.py", *arguments(**QUICK, output=trained, clip=clip, cache=cache)])
        ended = main()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert ended == 75
    drawn = {path: path.stat().st_mtime_ns for path in (trained / "evaluation" / "images").glob("*.png")}
    assert len(drawn) == 2
    told = evaluate(output=trained, clip=clip, cache=cache)
    assert {path: path.stat().st_mtime_ns for path in drawn} == drawn
    return told


def test_every_checkpoint_is_drawn_measured_and_scored(trained: Path, report: dict[str, Any]) -> None:
    """Each checkpoint has its pictures, a value of every metric, and a score that is the weighted mean of its points."""
    assert [entry["step"] for entry in report["checkpoints"]] == [2, 4, 6]
    assert set(report["weights"]) == set(report["metrics"]) and sum(report["weights"].values()) == pytest.approx(1)
    assert list(report["missing"]) == ["fid"]
    for entry in report["checkpoints"]:
        assert [(image["prompt"], image["seed"]) for image in entry["images"]] == [(0, 7), (0, 8), (1, 7), (1, 8)]
        assert all((trained / "evaluation" / image["file"]).is_file() for image in entry["images"])
        score = sum(share * entry["points"][name] for name, share in report["weights"].items())
        assert entry["score"] == pytest.approx(score, abs=1e-5)
    assert report["best"]["score"] == max(entry["score"] for entry in report["checkpoints"])
    assert report["checkpoints"][1]["values"]["val_loss"] == pytest.approx(
        json.loads((trained / "final" / "training.json").read_text())["val_loss"]["4"], rel=1e-5
    )


def test_the_page_explains_metrics_and_report(report: dict[str, Any]) -> None:
    """docs/evaluation.md has each metric's direction and numbers, and a word for each field of report.json."""
    from evaluate_checkpoints.scoring import METRICS

    text = (ROOT / "docs" / "evaluation.md").read_text()
    for name, metric in METRICS.items():
        better = "higher" if metric.higher else "lower"
        assert f"| `{name}` | {better} | {metric.weight:g} | {metric.matters:g} |" in text
    entry = report["checkpoints"][0]
    assert [
        key for key in (*report, *report["best"], *report["settings"], *entry, *entry["images"][0]) if f"`{key}`" not in text
    ] == []


def test_the_report_can_be_looked_at(trained: Path, report: dict[str, Any]) -> None:
    """The page holds every picture and needs nothing else; the sheet has a row for each checkpoint and a column for each picture of it."""
    page = (trained / "evaluation" / "report.html").read_text()
    assert f"step {report['best']['step']} is the best" in page
    assert page.count("data:image/jpeg;base64,") >= 12 and "<script" not in page and "src='http" not in page
    with Image.open(trained / "evaluation" / "sheet.png") as sheet:
        assert sheet.width > 4 * 128 and sheet.height > 3 * 128


def test_a_picture_comes_out_the_same_again(trained: Path, report: dict[str, Any], clip: Path, cache: Path) -> None:
    """A picture that was lost is drawn anew, byte for byte, and so is the report, but for what the settings changed; others go."""
    picture = trained / "evaluation" / report["checkpoints"][1]["images"][2]["file"]
    content = picture.read_bytes()
    picture.write_bytes(b"")
    picture.unlink()
    stale = picture.with_name("step-000004-prompt9-seed1-0123456789.png")
    stale.write_bytes(content)
    assert evaluate(output=trained, clip=clip, cache=cache) == report
    assert picture.read_bytes() == content and not stale.exists()


def test_the_best_checkpoint_is_exported(trained: Path, report: dict[str, Any], tmp_path: Path, cache: Path) -> None:
    """The last checkpoint's files are those of the training itself; another best one gives others, and best.json tells which and why."""
    from safetensors.torch import load_file

    output = tmp_path / "output"
    shutil.copytree(trained / "checkpoints", output / "checkpoints")
    shutil.copytree(trained / "final", output / "final")
    only = {"clip": "none", "seeds": 7, "count": 1, "cache": cache}
    weights = ",".join(f"{name}={int(name == 'val_loss')}" for name in report["metrics"])
    told = evaluate(output=output, weights=weights, **only)
    assert (told["best"]["step"], told["best"]["is_last"], told["weights"]) == (6, True, {"val_loss": 1})
    last = load_file(output / "final" / "cat.safetensors")
    best = load_file(output / "final" / "cat_best.safetensors")
    assert best.keys() == last.keys() and all(best[key].equal(last[key]) for key in last)

    summary = json.loads((output / "final" / "training.json").read_text())
    (output / "final" / "training.json").write_text(json.dumps({**summary, "val_loss": {**summary["val_loss"], "4": 0.01}}))
    evaluate(output=output, weights=weights, **only)
    made = json.loads((output / "final" / "best.json").read_text())
    assert (made["step"], made["is_last"], made["last_step"]) == (4, False, 6) and "step 4 has 1.000" in made["why"]
    assert list(made["files"]) == ["cat_best.safetensors", "cat_best_kohya.safetensors"]
    best = load_file(output / "final" / "cat_best.safetensors")
    assert not all(best[key].equal(last[key]) for key in last)


def test_without_clip_the_rest_is_compared(
    trained: Path, bases: Callable[[str], Path], photographs: Path, cache: Path, tmp_path: Path
) -> None:
    """--clip none compares what needs no CLIP and says what is missing; damaged checkpoints are left out and told."""
    output, torn = tmp_path / "output", tmp_path / "torn"
    shutil.copytree(trained / "checkpoints", torn / "checkpoints")
    with (torn / "checkpoints" / "step-000004" / "adapter.safetensors").open("r+b") as file:
        file.write(b"\xff" * 64)
    places = {"base": bases("sd15"), "dataset": photographs}
    told = evaluate(output=output, trained=torn, clip="none", seeds=7, count=1, cache=cache, name="mine", resolution=32, **places)
    assert [entry["step"] for entry in told["checkpoints"]] == [2, 6]
    assert set(told["missing"]) == {"clip_score", "cmmd", "kid", "consistency", "copying", "fid"}
    assert list(told["weights"]) == ["sharpness", "val_loss"] and told["damaged"][0].startswith(
        "step-000004: adapter.safetensors"
    )
    assert told["best"]["files"] == ["final/mine_best.safetensors", "final/mine_best_kohya.safetensors"]
    with Image.open(output / "evaluation" / told["checkpoints"][0]["images"][0]["file"]) as picture:
        assert picture.size == (32, 32)


@pytest.mark.parametrize(("family", "network"), [("sdxl", "loha"), ("flux", "lora")])
def test_every_family_is_evaluated(family: str, network: str, train: Train, clip: Path, cache: Path) -> None:
    """The best of a single checkpoint is that one, in files that hold its training's own bytes."""
    output = train(family, steps=1, network=network, text_lr=1e-3)
    told = evaluate(output=output, family=family, clip=clip, cache=cache, seeds=1, count=1)
    assert told["best"]["why"] == "step 1 is the only checkpoint"
    assert told["missing"].keys() == {"kid", "consistency", "fid"}
    final = output / "final"
    assert (final / "lora_best_kohya.safetensors").stat().st_size > 0
    assert (final / "lora_best.safetensors").read_bytes() == (final / "lora.safetensors").read_bytes()


def test_clip_sees_pictures_as_its_own_processor_prepares_them(clip: Path) -> None:
    """Scaling, cutting and normalising agree with transformers' own, up to rounding."""
    import torch
    from evaluate_checkpoints.clip import Clip
    from transformers import CLIPImageProcessorPil

    judge = Clip(clip, torch.device("cpu"))
    own = CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    with Image.open(PHOTOGRAPHS / "cat08.jpg") as photo:
        wide = photo.convert("RGB").resize((200, 120))
        theirs = own(wide, return_tensors="pt")["pixel_values"][0]
        assert (judge.prepared(wide) - theirs).abs().max() < 0.05
    assert judge.texts(["a cat", "a very long caption " * 60]).shape == (2, 32)


def test_the_measurements_measure_what_they_should() -> None:
    """Equal sets are at no distance, a copy is found, blur lowers sharpness, and too few images give no FID."""
    import torch
    from evaluate_checkpoints import metrics

    draw = torch.Generator().manual_seed(0)
    images, others = (torch.randn((40, 8), generator=draw) + shift for shift in (0, 1))
    assert metrics.cmmd(images, images) == pytest.approx(0, abs=1e-9)
    assert metrics.cmmd(others, images) > 0.1
    halves = metrics.kid(images[:20], images[20:])
    assert halves is not None and abs(halves) < 0.5 < (metrics.kid(others, images) or 0)
    assert metrics.fid(images, images) is None
    many = torch.randn((metrics.FID_IMAGES, 8), generator=draw)
    assert metrics.fid(many, many + 2) == pytest.approx(8 * 4, rel=1e-3)
    assert metrics.nearest(images[5:6] * 3, images) == [(pytest.approx(1), 5)]
    assert metrics.consistency([images[:1], images[1:2].repeat(3, 1)]) == pytest.approx(1)
    assert metrics.consistency([images[:1]]) is None
    with Image.open(PHOTOGRAPHS / "cat08.jpg") as photo:
        sharp, blurred = metrics.sharpness(photo), metrics.sharpness(photo.filter(ImageFilter.GaussianBlur(2)))
    assert blurred < sharp / 2
    assert metrics.sharpness_gap([blurred], [sharp]) > 0.69 > metrics.sharpness_gap([sharp], [sharp]) == 0


def test_points_follow_the_distance_to_the_best() -> None:
    """A difference that does not matter costs little, one that all have counts for nobody, and of equal checkpoints the earlier wins."""
    from evaluate_checkpoints.scoring import METRICS, judge, parse_weights

    nothing = dict.fromkeys(METRICS)
    weights = parse_weights("clip_score=3, val_loss=1")
    measured = {
        100: {**nothing, "clip_score": 0.300, "val_loss": 0.50, "kid": 0.1},
        200: {**nothing, "clip_score": 0.301, "val_loss": 0.30},
        300: {**nothing, "clip_score": 0.301, "val_loss": 0.30},
    }
    verdict = judge(measured, weights)
    assert verdict.weights == {"clip_score": 0.75, "val_loss": 0.25}
    assert verdict.points[100] == {"clip_score": pytest.approx(0.95), "val_loss": 0} and verdict.best == 200
    assert judge({1: nothing, 2: nothing}, weights).best == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": "fame=1"}, "there is no metric 'fame'"),
        ({"weights": "kid=-1"}, "it must be 0 or more"),
        ({"weights": ",".join(f"{name}=0" for name in ("clip_score", "cmmd", "kid", "consistency", "copying", "sharpness", "val_loss"))},
         "every weight is 0"),
        ({"seeds": "one"}, "--seeds is 'one'"),
    ],
)  # fmt: skip
def test_wrong_options_are_one_message(options: dict[str, object], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever is wrong with a flag ends the program with code 2 before anything is read."""
    with pytest.raises(SystemExit) as end:
        evaluate(**options)
    assert end.value.code == 2 and words in capsys.readouterr().err


def test_bad_input_is_told_before_anything_is_drawn(
    trained: Path, tmp_path: Path, clip: Path, bases: Callable[[str], Path]
) -> None:
    """What was trained, the CLIP model and the base are checked first; each error names what is at fault."""
    from lora.ends import BadInput

    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "config.json").write_text('{"model_type": "bert"}')
    cases: list[tuple[dict[str, object], str]] = [
        ({"output": tmp_path, "clip": clip}, "there is no checkpoint in"),
        ({"output": trained, "clip": tmp_path / "text"}, "is not a CLIP model: .* says bert"),
        ({"output": trained, "clip": tmp_path / "missing"}, "is no folder"),
        ({"output": trained, "clip": clip, "family": None}, "say with --family what was trained: flux, sd15, sdxl"),
        ({"output": trained, "clip": clip, "resolution": 16}, "--resolution is 16"),
        ({"output": trained, "clip": clip, "base": bases("sdxl")}, "is not Stable Diffusion 1.5"),
    ]
    for options, words in cases:
        with pytest.raises(BadInput, match=words):
            evaluate(**options)
