"""Presets in words and in JSON, before anything is spent."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from remote_trainer.cli import guard, main, run
from tests.unit.test_dataset_inspect import CATS

Call = Callable[..., tuple[int, str, str]]
SHOW = ("tools", "show", "sdxl-lora@1")
DRY = ("--tool", "sdxl-lora@1", "--dataset", str(CATS), "--dry-run")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Runs a program in this process with an empty home; returns its code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def call(app: typer.Typer, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["program", *arguments])
        with pytest.raises(SystemExit) as ended:
            guard.run(app, "program")
        shown = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, shown.out, shown.err

    return call


def test_a_tool_shows_its_presets_with_their_reasons(call: Call) -> None:
    """For whom each is, what it sets, under which condition, and why; the parameter that chooses among them is one of the others."""
    code, shown, _ = call(main.app, *SHOW)
    lines = shown.splitlines()
    assert code == 0 and "(one of auto, none, small, medium, large)" in shown
    assert any(line.startswith("preset small (when images < 80): Few images: ") for line in lines)
    assert (
        '  targets = locon (when network == "lora"): few images teach style and texture better through convolutions, too' in lines
    )
    assert "  alpha = rank / 2: half the rank" in lines
    assert any(line.startswith("  advice (when not prior and not prior_prompt): ") for line in lines)


def test_presets_are_told_to_programs(call: Call) -> None:
    """Each with name, condition, values with reasons, and advice."""
    small, medium, large = json.loads(call(main.app, *SHOW, "--json")[1])["presets"]
    assert (small["name"], medium["when"], large["when"]) == ("small", "images <= 400", "")
    assert small["values"]["dropout"]["value"] == 0.1 and small["values"]["dropout"]["because"]
    assert json.loads(call(main.app, "tools", "show", "hello@1", "--json")[1])["presets"] == []


def test_a_dry_run_tells_what_the_preset_does(call: Call) -> None:
    """Which one for how many images, what it sets and why, what stays, what is advised, and how long the run is expected to be."""
    code, shown, message = call(run.app, *DRY, "--set", "rank=5", "--set", "noise-offset=0")
    assert code == 0, message
    lines = shown.splitlines()
    assert "preset      small for 32 images" in lines
    assert "  alpha=2.5: half the rank" in lines and "  conv_rank=5: " in shown
    assert "  rank=5 stays as you set it; the preset has 16" in lines
    assert "  noise_offset=0.0 stays as you set it; the preset has 0.0357" in lines
    assert any(line.startswith("  advice: ") and "--set prior=FOLDER" in line for line in lines)
    assert "expected    0.614 h at speed 1" in lines
    plan = json.loads(call(run.app, *DRY, "--set", "rank=5", "--json")[1])
    assert plan["preset"]["facts"] == {"images": 32, "files": 65} and plan["preset"]["kept"] == {
        "rank": {"value": 5, "preset": 16}
    }
    assert plan["preset"]["set"]["steps"]["value"] == plan["parameters"]["steps"] == 1000
    assert '"conv_rank": 5' in plan["steps"][1]["run"] and '"preset"' not in plan["steps"][1]["run"]


def test_a_preset_can_be_named_or_refused(call: Call) -> None:
    """By --set preset=; without one nothing is told, and the defaults stay."""
    assert "preset      large for 32 images\n  rank=32: " in call(run.app, *DRY, "--set", "preset=large")[1]
    none = json.loads(call(run.app, *DRY, "--set", "preset=none", "--json")[1])
    assert (none["preset"], none["parameters"]["steps"], none["parameters"]["dropout"]) == (None, 1500, 0.0)
    assert call(run.app, *DRY, "--set", "preset=tiny")[0] == 3


def test_a_file_of_presets_takes_the_place_of_the_tools_own(call: Call, tmp_path: Path) -> None:
    """For a run and for tools show alike; its faults are those of a recipe, and one that is not there is not found."""
    own = tmp_path / "own.yaml"
    own.write_text("presets:\n  - {name: mine, when: images > 99, values: {rank: {value: 3, because: of me}}}\n")
    assert "preset mine (when images > 99)\n  rank = 3: of me\n" in call(main.app, *SHOW, "--presets", str(own))[1]
    assert "preset      none: no preset is for 32 images\n" in call(run.app, *DRY, "--presets", str(own))[1]
    own.write_text("presets:\n  - {name: mine, values: {rnk: {value: 3, because: of me}}}\n")
    code, _, message = call(run.app, *DRY, "--presets", str(own))
    assert code == 3 and f"{own}:2: /presets/0/values/rnk: 'rnk' is not a parameter; did you mean 'rank'?" in message
    assert call(run.app, *DRY, "--presets", "not/there")[0] == 6


def test_a_dataset_in_an_archive_is_counted_too(call: Call, tmp_path: Path) -> None:
    """In the one look that is taken into it."""
    archive = shutil.make_archive(str(tmp_path / "cats"), "gztar", CATS)
    assert "preset      small for 32 images\n" in call(run.app, *DRY[:2], "--dataset", archive, "--dry-run")[1]


def test_without_a_dataset_a_preset_is_taken_by_its_name_only(call: Call, tmp_path: Path) -> None:
    """Of no data nothing is known; then there are no images."""
    own = tmp_path / "own.yaml"
    own.write_text("presets:\n  - {name: mine, values: {lines: {value: '{{ images + 2 }}', because: of none}}}\n")
    order = ("--tool", "hello@1", "--presets", str(own), "--dry-run")
    assert "preset  " not in call(run.app, *order)[1]
    assert "preset      mine for 0 files\n  lines=2: of none\n" in call(run.app, *order, "--set", "preset=mine")[1]
