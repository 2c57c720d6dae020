"""The benchmark of the trainers, kept alive without a GPU and without the program it compares with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench import lora, lora_bases, lora_programs
from bench.lora_programs import Look, Places, Result, Setting
from tests.train.conftest import tool


def test_a_run_is_measured_from_outside(base: Path, tmp_path: Path) -> None:
    """Our trainer, run as users run it, is ended after the steps that were wanted; their time, the start and the operations are seen."""
    lora_bases.make_images(tmp_path / "images", 96)
    setting = Setting("sdxl", resolution=64, rank=2, precision="fp32", extra=("--threads=1",))
    places = Places(base, tmp_path / "images", tmp_path)
    result = lora_programs.look(
        sys.executable, "ours", lora_programs.ours(setting, places), setting, Look(warmup=1, steps=1, count=True)
    )
    assert result.end == "measured", (tmp_path / "ours-sdxl-batch1.log").read_text()
    assert 0 < result.step_s < result.first_step_s
    assert "imports" in result.start
    assert result.operations["forward"]["mm"] > 0
    assert result.operations["backward"]["mm"] > result.operations["forward"]["mm"]
    assert result.operations["optimiser"]["_fused_adamw_"] == 1
    assert "ours | " in lora.operations_table([result])[2]


@pytest.mark.parametrize("family", ["sdxl", "flux"])
def test_our_command_is_one_that_the_trainer_takes(tmp_path: Path, family: str) -> None:
    """Every flag of the command exists, whether settings are given or left to what fits into some memory."""
    from lora.flags import parse

    for setting in (Setting(family, batch=2, checkpointing=True), Setting(family, vram=12)):
        command = lora_programs.ours(setting, Places(tmp_path, tmp_path, tmp_path))
        assert Path(command[0]).is_file()
        assert parse(command[1:], {}, tool(family).options).vram == setting.vram


def test_bases_of_other_sizes_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that is made anew in several files is read as any other, and its numbers are small."""
    from diffusers import AutoencoderKL

    folder = tmp_path / "vae"
    AutoencoderKL(block_out_channels=(32,), norm_num_groups=32).save_pretrained(folder)
    monkeypatch.setattr(lora_bases, "SHARD_BYTES", 50_000)
    lora_bases.remake(folder, {"block_out_channels": [64]}, "float16")
    assert len(list(folder.glob("*.safetensors"))) > 1
    model = AutoencoderKL.from_pretrained(folder, use_safetensors=True)
    assert model.config.block_out_channels == [64]
    assert all(bool((weight.abs() <= 1).all()) for weight in model.state_dict().values())


def test_tables_tell_a_figure_or_why_there_is_none() -> None:
    """Programs are compared batch by batch and by their best one; what did not fit says so."""
    runs = [
        Result("ours", Setting("sdxl"), "measured", step_s=0.5, peak_gib=10.0),
        Result("ours", Setting("sdxl", batch=2), "measured", step_s=0.8, peak_gib=16.0),
        Result("diffusers", Setting("sdxl"), "measured", step_s=1.0, peak_gib=20.0),
        Result("diffusers", Setting("sdxl", batch=2), "out of memory"),
    ]
    assert lora.speed_table(runs)[2:] == [
        "| sdxl | 1 | off | 2.000 | 1.000 | 2.00 | 1.3 | 0.500 | 1.000 | 10.0 | 20.0 |",
        "| sdxl | 2 | off | 2.500 | out of memory | – | 1.3 | 0.800 | out of memory | 16.0 | out of memory |",
        "| sdxl | best: 2 and 1 | off | 2.500 | 1.000 | 2.50 | 1.3 | 0.800 | 1.000 | 16.0 | 20.0 |",
    ]
