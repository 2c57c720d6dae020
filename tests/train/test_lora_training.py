"""Real trainings on the photographs over the tiny base."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.support.patience import PATIENCE_S
from tests.train.conftest import PHOTOGRAPHS, SCRIPTS, TINY, arguments, chosen_options, tool

Run = Callable[..., Path]


def final(output: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (output / "final").glob("*.safetensors")}


def checkpoints(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "checkpoints").iterdir())


def start(*argv: str, family: str = "sd15", env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    command, pipe = [sys.executable, str(SCRIPTS / f"{family}_lora" / "train.py"), *argv], subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env={**os.environ, **(env or {})})


@pytest.fixture(scope="module")
def trained(base: Path, cache: Path, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(output folder, standard output) of one training by the command line, as the recipe starts it."""
    output = tmp_path_factory.mktemp("trained") / "output"
    more = {
        "steps": 30,
        "val_every": 15,
        "sample_every": 15,
        "sample_count": 1,
        "sample_steps": 3,
        "checkpoint_every": 10,
        "log_every": 10,
        "export_every": 20,
    }
    env = {"RT_BASE": str(base), "RT_DATASET": str(photographs), "RT_OUTPUT": str(output), "RT_CACHE": str(cache)}
    env |= {"RT_METRICS": str(output.parent / "metrics.jsonl"), "PYTHONPROFILEIMPORTTIME": "1"}
    process = start(*arguments(**{**TINY, **more, "keep_checkpoints": 2, "name": "cat"}), family="sdxl", env=env)
    said, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    (output.parent / "imports").write_text(errors)
    return output, said


def test_training_lowers_the_validation_loss(trained: tuple[Path, str]) -> None:
    """In 30 steps the loss on fixed noise and timesteps falls at every look, by a fifth at least."""
    output, _ = trained
    losses = list(json.loads((output / "final" / "training.json").read_text())["val_loss"].values())
    assert len(losses) == 3 and losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.8 * losses[0]


def test_progress_can_be_followed(trained: tuple[Path, str]) -> None:
    """Progress lines have one form, and the metrics file holds one JSON object a line with step and time."""
    output, said = trained
    steps = [line.split() for line in said.splitlines() if line.startswith("step ")]
    assert [words[1] for words in steps] == ["10/30", "20/30", "30/30"]
    assert all(words[2::2][:2] == ["loss", "lr"] and words[7:9] == ["steps/s", "eta"] and words[-1] == "s" for words in steps)
    metrics = [json.loads(line) for line in (output.parent / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics if "loss" in m] == [10, 20, 30]
    assert [m["step"] for m in metrics if "val_loss" in m] == [0, 15, 30]
    assert all({"lr", "speed_steps_per_s", "eta_s", "time"} <= set(m) for m in metrics if "loss" in m)
    assert re.search(r"^first step after \d+\.\d s: dataset .*, libraries .*, encoding .*, model .*, first step ", said, re.M)


def test_what_is_not_used_is_not_loaded(trained: tuple[Path, str]) -> None:
    """Neither bitsandbytes nor torch's compiler, which take seconds, is loaded where no setting needs them."""
    lines = (trained[0].parent / "imports").read_text().splitlines()
    loaded = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    assert "peft.tuners.lora.layer" in loaded and not loaded & {"bitsandbytes.functional", "torch._inductor.compile_fx"}


def test_tensorboard_shows_the_metrics(trained: tuple[Path, str]) -> None:
    """Each number of metrics.jsonl is a scalar of the same step in the event file."""
    from tensorboardX.proto.event_pb2 import Event

    output, _ = trained
    (file,) = (output / "tensorboard").iterdir()
    data, found, at = file.read_bytes(), {}, 0
    while at < len(data):  # a record is its length, a checksum of that, its content, and a checksum of this
        size = int.from_bytes(data[at : at + 8], "little")
        event = Event.FromString(data[at + 12 : at + 12 + size])
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        at += 16 + size
    told = [json.loads(line) for line in (output.parent / "metrics.jsonl").read_text().splitlines()]
    assert found == {
        (name, m["step"]): pytest.approx(value) for m in told for name, value in m.items() if name not in ("step", "time")
    }


def test_without_tensorboards_package_there_are_no_files_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """That is told, and is no reason to end."""
    from lora.metrics import Metrics

    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    Metrics(chosen_options(output=tmp_path), writes=True).record(1, {"loss": 0.5})
    assert "the package tensorboardX is missing" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_samples_are_pictures_and_the_newest_checkpoints_are_kept(trained: tuple[Path, str]) -> None:
    """Samples lie under their step and number, a sheet shows all of them; of three checkpoints two are kept."""
    output, _ = trained
    samples = sorted((output / "samples").glob("step-*"))
    assert [s.name for s in samples] == ["step-000000-0.png", "step-000015-0.png", "step-000030-0.png"]
    with Image.open(samples[-1]) as image:
        assert image.size == (64, 64) and image.getextrema() != ((0, 0),) * 3
    assert samples[0].read_bytes() != samples[-1].read_bytes()
    with Image.open(output / "samples" / "sheet.png") as sheet:
        column = [sheet.getpixel((100, 116 + row * 272)) for row in range(3)]
    assert sheet.height == 3 * 272 + 24 and len(set(column)) == 3
    assert checkpoints(output) == ["step-000020", "step-000030"]


def test_loras_for_use_are_written_on_the_way(trained: tuple[Path, str]) -> None:
    """Both files of a step, read back as the last ones are; what they hold is that step's."""
    from lora.checkpoint import Checkpoint
    from safetensors import safe_open
    from safetensors.torch import load_file

    output, said = trained
    names = sorted(path.name for path in (output / "final").glob("*.safetensors"))
    assert names == ["cat-000020.safetensors", "cat-000020_kohya.safetensors", "cat.safetensors", "cat_kohya.safetensors"]
    assert all(f"verified {name}" in said for name in names)
    adapter = Checkpoint(output / "checkpoints" / "step-000020", 20).tensors("adapter")
    found = load_file(output / "final" / "cat-000020.safetensors")
    assert found.keys() == {f"unet.{name}" for name in adapter} and all(found[f"unet.{n}"].equal(adapter[n]) for n in adapter)
    with safe_open(output / "final" / "cat-000020_kohya.safetensors", "pt") as content:
        assert (content.metadata()["ss_steps"], content.metadata()["ss_output_name"]) == ("20", "cat-000020")


@pytest.mark.parametrize("name", ["cat.safetensors", "cat_kohya.safetensors"])
def test_both_files_load_elsewhere_with_the_trained_updates(trained: tuple[Path, str], base: Path, name: str) -> None:
    """A fresh pipeline reads every layer from either file with what was trained, the strength of alpha ≠ rank included."""
    import torch
    from diffusers import StableDiffusionXLPipeline
    from lora.checkpoint import newest

    output, _ = trained
    pipeline = StableDiffusionXLPipeline.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    pipeline.load_lora_weights(str(output / "final" / name), local_files_only=True)
    found = {n: m.get_delta_weight("default_0") for n, m in pipeline.unet.named_modules() if len(getattr(m, "lora_A", ()))}
    adapter = newest(output / "checkpoints").tensors("adapter")
    layers = {key.removesuffix(".lora_A.weight") for key in adapter if ".lora_A" in key}
    assert set(found) == layers
    for layer in layers:
        down, up = (adapter[f"{layer}.lora_{side}.weight"].flatten(1) for side in "AB")
        expected = TINY["alpha"] / TINY["rank"] * (up @ down)
        assert (found[layer].flatten(1) - expected).abs().max() <= 2e-3 * expected.abs().max()


def test_the_kohya_file_says_what_it_is(trained: tuple[Path, str]) -> None:
    """Its metadata has network, base (without a path) and tags, names are those of the original SDXL, and the hash is of its tensors."""
    import hashlib

    from safetensors import safe_open

    file = trained[0] / "final" / "cat_kohya.safetensors"
    with safe_open(file, "pt") as content:
        about, names = content.metadata(), list(content.keys())
        alphas = {float(content.get_tensor(name)) for name in names if name.endswith(".alpha")}
    data = file.read_bytes()
    body = data[8 + int.from_bytes(data[:8], "little") :]
    assert about["sshs_model_hash"] == hashlib.sha256(body).hexdigest()
    assert (about["ss_network_dim"], about["ss_network_alpha"], about["ss_base_model_version"]) == ("4", "2.0", "sdxl_base_v1-0")
    assert about["ss_sd_model_name"] == "sdxl"
    assert json.loads(about["ss_tag_frequency"])["dataset"]["side view"] == 6
    assert alphas == {2.0}
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight" in names
    assert "lora_unet_output_blocks_0_0_in_layers_2.lora_up.weight" in names


def test_the_metadata_tells_the_weighting_that_counted() -> None:
    """Debiased takes the place of min-SNR, which stays at its default."""
    from lora.about import training

    weightings = [training(chosen_options(**weighting)) for weighting in ({"debiased": True}, {})]
    assert [(w["ss_min_snr_gamma"], w["ss_debiased_estimation"]) for w in weightings] == [(None, True), (5.0, None)]


def test_a_stopped_training_resumes_bit_for_bit(
    run: Run, bases: Callable[[str], Path], cache: Path, photographs: Path, tmp_path: Path
) -> None:
    """TERM ends the program with code 75 and a checkpoint; run again it gives the very files of one never interrupted."""
    base = bases("sd15")
    options = {"steps": 8, "lr_schedule": "cosine", "warmup": 3, "grad_accumulation": 2, "batch_size": 2, "caption_dropout": 0.2}
    outputs = (tmp_path / f"stopped{number}" for number in itertools.count())
    code = 0
    while code in (0, -signal.SIGTERM):  # it was quicker than our signal
        output = next(outputs)
        process = start(*arguments(**{**TINY, **options, "base": base, "dataset": photographs, "cache": cache, "output": output}))
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 2/"):
                process.send_signal(signal.SIGTERM)
                break
        _, errors = process.communicate(timeout=PATIENCE_S)
        code = process.returncode
    assert code == 75 and "asked to stop" in errors
    (kept,) = checkpoints(output)
    assert 2 <= int(kept.removeprefix("step-")) < 8
    resumed = run(**options, output=output)
    assert final(resumed) == final(run(**options))


def test_a_damaged_checkpoint_is_passed_over(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """When the newest checkpoint does not verify the one before is used, a line says so, and the result is the same."""
    output = run(steps=6, checkpoint_every=2)
    whole = final(output)
    damaged = output / "checkpoints" / "step-000006" / "adapter.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-5] ^= 1
    damaged.write_bytes(content)
    capsys.readouterr()
    assert final(run(steps=6, checkpoint_every=2)) == whole
    said = capsys.readouterr().out
    assert "step-000006 is damaged (adapter.safetensors does not match its digest)" in said and "resumed at step 4" in said


def test_another_configuration_is_refused(run: Run, tmp_path: Path) -> None:
    """Resuming names each option that differs, with both values, before anything is encoded; what is only reported may change.

    There may be more steps, but not fewer than are done.
    """
    from lora.ends import BadInput

    run(steps=2)
    with pytest.raises(BadInput) as caught:
        run(steps=2, lr=1e-3, rank=8, dataset=PHOTOGRAPHS, trigger="muybridge", cache=tmp_path / "cache")
    with pytest.raises(BadInput, match="step-000002 is past --steps 1"):
        run(steps=1, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    lines = {line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]}
    assert lines == {"lr", "rank", "trigger", "dataset"} and "lr: 0.003 in the checkpoint, 0.001 now" in str(caught.value)
    assert checkpoints(run(steps=3, log_every=2, keep_checkpoints=1)) == ["step-000003"]


def test_a_loss_that_is_no_number_stops_before_it_is_learnt(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate that blows the weights up ends the training with its own error, and no checkpoint holds the wreck."""
    from lora.ends import NotANumber

    with pytest.raises(NotANumber, match="the loss is"):
        run(steps=40, lr=10, clip=0, alpha=4000, output=tmp_path / "wreck")
    assert NotANumber.exit_code == 76 and not (tmp_path / "wreck" / "final").exists()


def test_encoding_happens_once(base: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second run encodes nothing, a new caption is encoded alone, a truncated entry is made again; read once, it stays in memory."""
    import torch
    from lora.base import find
    from lora.cache import Cache, fill
    from lora.data import survey
    from lora.kept import Kept

    options, trainer = chosen_options(base=base, dataset=photographs, resolution=64), tool("sdxl")
    photos, model, kind = survey(options), find(options.base, trainer.kind), trainer.family()
    cache = Cache(tmp_path, model, kind, options)

    def encode(*captions: str) -> list[str]:
        fill(cache, photos, captions, torch.device("cpu"), lambda: None)
        return [line.split(" in ")[0] for line in capsys.readouterr().out.splitlines()]

    assert encode("one", "two", "two") == ["encoded 8 images", "encoded 2 captions"]
    assert encode("one", "two", "three") == ["encoded 1 captions"]
    entry = cache.image_path(photos[0])
    whole = entry.read_bytes()
    entry.write_bytes(whole[:-100])
    assert encode("one") == ["encoded 1 images"]
    assert entry.read_bytes() == whole

    def read(entries: Cache) -> list[torch.Tensor]:
        found = {**entries.images(photos[:2], torch.device("cpu")), **entries.text("one", torch.device("cpu"))}
        return [found[key] for key in sorted(found)]

    limited = dataclasses.replace(cache, kept=Kept(room=0))
    first, unkept = read(cache), read(limited)
    shutil.rmtree(tmp_path)
    assert all(map(torch.equal, first, read(cache))) and all(map(torch.equal, first, unkept))
    with pytest.raises(FileNotFoundError):
        read(limited)


def test_held_out_images_are_not_trained_on() -> None:
    """A quarter of eight images is two, the same two for the same seed; without a share all images train."""
    from lora.data import Photo, split

    photos = [Photo(Path(f"{n}.png"), "", 64, 64, "", (64, 64)) for n in range(8)]
    learned, watched = split(photos, 0.25, seed=3)
    assert len(watched) == 2 and sorted([*learned, *watched], key=lambda p: p.path) == photos
    assert split(photos, 0.25, seed=3) == (learned, watched)
    assert split(photos, 0, seed=3) == (photos, photos)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda folder: None, "does not exist; give a diffusers folder"),
        (lambda folder: folder.mkdir(), "model_index.json cannot be read"),
        (lambda folder: index(folder, "StableDiffusionPipeline", None), "is not SDXL"),
        (lambda folder: index(folder, "StableDiffusionXLPipeline", "text_time"), "has no .safetensors weights"),
        (lambda folder: folder.write_bytes(b"\x10\0\0\0\0\0\0\0{}              "), "is not a checkpoint of SDXL"),
        (lambda folder: folder.write_bytes(b"pickle"), "is not a readable .safetensors file"),
    ],
)
def test_a_base_of_another_family_is_refused_before_torch_is_loaded(
    spoil: Callable[[Path], object], expected: str, tmp_path: Path
) -> None:
    """Stable Diffusion 1.5, a half-copied folder and other files are named in one error."""
    from lora.base import find
    from lora.ends import BadInput

    spoil(tmp_path / "model")
    with pytest.raises(BadInput, match=expected) as caught:
        find(str(tmp_path / "model"), tool("sdxl").kind)
    assert str(tmp_path / "model") in str(caught.value)


def test_a_hub_that_cannot_be_reached_is_worth_another_try() -> None:
    """A hub id that is not on this disk, without the network, is no fault of the input: exit code 69."""
    from lora.base import find
    from lora.ends import Unavailable

    with pytest.raises(Unavailable, match="owner/model is not on this disk"):
        find("owner/model", tool("sdxl").kind)
    assert Unavailable.exit_code == 69


def test_a_base_with_half_precision_files_only_is_read(base: Path, tmp_path: Path) -> None:
    """A folder whose weights are all named .fp16, as the hub's smaller download is, loads in any precision."""
    import torch
    from lora.base import find

    shutil.copytree(base, tmp_path / "half")
    for file in (tmp_path / "half").rglob("*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    kind = tool("sdxl").kind
    half = find(str(tmp_path / "half"), kind)
    assert half.variant == "fp16" and half.digest != find(str(base), kind).digest
    for part in kind.weights:
        parameters = list(half.load(part, torch.float32).parameters())
        assert parameters and all(p.dtype == torch.float32 and not p.requires_grad for p in parameters)


def index(folder: Path, kind: str, embed: str | None) -> None:
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    (folder / "unet" / "config.json").write_text(json.dumps({"addition_embed_type": embed}))


def test_bad_input_ends_with_code_2_and_one_message(tmp_path: Path) -> None:
    """The program says what is wrong without a traceback, and before torch is loaded."""
    process = start("--dataset", str(tmp_path))
    said, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, said) == (2, "")
    assert errors.startswith(f"error: there is no image in {tmp_path}") and errors.count("\n") == 1
