"""Bases from the hub: the hub's own client against a hub on loopback, through the trainers' code and through whole jobs."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from remote_trainer import plugins
from remote_trainer.hub.files import fetched_files
from remote_trainer.recipe.load import load_recipe
from tests.support import hub as hubs
from tests.support.commandline import Home, installed
from tests.support.hub import FakeHub
from tests.support.patience import PATIENCE_S
from tests.train.conftest import SCRIPTS, tool

TOKEN = "hf_grete_0123456789"

# A tool that does what the trainers do first: it finds the base, and tells which it has.
RECIPE = """\
name: fetch
version: 1
description: Finds a base.
parameters:
  base: {type: string, default: acme/open, description: The base}
files: [scripts/lora, scripts/sdxl_lora]
writes_gb: 1
inputs:
  base: {parameter: base, hub: {folders: [unet, vae, text_encoder, text_encoder_2, tokenizer, tokenizer_2], pipelines: ['*XL*']}}
secrets:
  HF_TOKEN: {}
steps:
  - name: find
    secrets: [HF_TOKEN]
    env: {HF_HUB_OFFLINE: 0, HF_HUB_DISABLE_XET: 1}
    run: exec PYTHON FIND "$RT_TOOL"
outputs:
  - {name: found, kind: final, glob: found.json}
"""
FIND = """\
import json, os, sys
sys.path.insert(0, sys.argv[1])
from lora.base import find
from lora.ends import End
from sdxl_lora.train import KIND
try:
    base = find(os.environ["RT_BASE"], KIND)
except End as end:
    print(f"error: {end}", file=sys.stderr)
    sys.exit(end.exit_code)
found = {"path": str(base.path), "name": base.name, "digest": base.digest, "variant": base.variant}
print("found", base.path)
open(os.environ["RT_OUTPUT"] + "/found.json", "w").write(json.dumps(found))
"""


def model(mark: str = "") -> dict[str, bytes]:
    """What the hub has of an SDXL, as far as it is looked at; the bytes are none that could be loaded."""
    files = {"model_index.json": b'{"_class_name": "StableDiffusionXLPipeline"}', "sd_xl.safetensors": b"all of it"}
    files["scheduler/scheduler_config.json"] = b"{}"
    for folder in ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet"):
        files[f"{folder}/config.json"] = json.dumps({"addition_embed_type": "text_time", "of": folder}).encode()
        if not folder.startswith("tokenizer"):
            files |= {f"{folder}/model{half}.safetensors": f"{folder}{half}{mark}".encode() for half in ("", ".fp16")}
            files[f"{folder}/model.bin"] = b"a pickle"
    return files


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    """A hub with an open model and a gated one, which Grete may have."""
    with hubs.running() as hub:
        hub.tokens = {TOKEN: "grete"}
        hub.models = {
            "acme/open": hubs.HubModel([model()]),
            "acme/gated": hubs.HubModel([model("gated")], gated=True, readers={"grete"}),
        }
        yield hub


def finding(hub: FakeHub, folder: Path, base: str, **environment: str) -> subprocess.Popen[str]:
    """A program that finds a base on a host with an empty home, or the one of before."""
    folder.mkdir(exist_ok=True)
    (folder / "find.py").write_text(FIND)
    own = {"HOME": str(folder), "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "RT_OUTPUT": str(folder), "RT_BASE": base}
    return subprocess.Popen(
        [sys.executable, str(folder / "find.py"), str(SCRIPTS)],
        env={**os.environ, **own, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ends(process: subprocess.Popen[str]) -> tuple[int, str]:
    """How it ended, and what it said last."""
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, (err or out).strip()


def found(folder: Path) -> dict[str, str]:
    """What it found."""
    document: dict[str, str] = json.loads((folder / "found.json").read_text())
    return document


def test_a_base_is_fetched_once_and_serves_without_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    """Two jobs that begin together send for each file once; later ones for none. A commit stays what it is when the model is changed.

    Without the hub, or told to be offline, what is here serves, also by name alone; what is not here may come with another try.
    """
    first = hub.head("acme/open")
    both = [finding(hub, tmp_path, f"acme/open@{first}") for _ in range(2)]
    assert [ends(each)[0] for each in both] == [0, 0]
    assert set(hub.sent) == set(fetched_files(model(), list(tool("sdxl").kind.parts)))
    assert set(hub.sent.values()) == {1} and not any("pickle" in name or name.endswith(".bin") for name in hub.sent)
    pinned = found(tmp_path)
    assert pinned["variant"] == "fp16" and pinned["name"] == "acme/open" and pinned["path"].endswith(first)
    hub.models["acme/open"].commits.append(model("changed"))
    assert ends(finding(hub, tmp_path, f"acme/open@{first}"))[0] == 0
    assert found(tmp_path) == pinned and set(hub.sent.values()) == {1}
    hub.down = True
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:1"}):
        code, said = ends(finding(hub, tmp_path, "acme/open", **environment))
        assert (code, found(tmp_path)) == (0, pinned) and "taken from the cache" in said
    code, said = ends(finding(hub, tmp_path, f"acme/open@{hub.head('acme/open')}"))
    assert code == 69 and "is not on this disk and could not be downloaded" in said


@pytest.mark.parametrize(
    ("base", "token", "words"),
    [
        ("acme/nothing", "", "the hub has no model acme/nothing, or it is private"),
        ("acme/open@v9", "", "the hub has no revision v9 of acme/open"),
        ("acme/gated", "", "does not let us have acme/gated: accept its licence there, and set HF_TOKEN"),
        ("acme/open", "hf_forged_0123456789", "the hub does not take HF_TOKEN for acme/open (status 401)"),
        ("photos", "", "the base photos does not exist"),
    ],
)
def test_a_base_that_cannot_be_had_ends_the_training_for_good(
    hub: FakeHub, tmp_path: Path, base: str, token: str, words: str
) -> None:
    """With the code of bad input, which is not tried again, and without the token."""
    code, said = ends(finding(hub, tmp_path, base, HF_TOKEN=token))
    assert code == 2 and words in said and "hf_" not in said


def test_a_download_that_is_not_whole_is_told(hub: FakeHub, tmp_path: Path) -> None:
    """An index names shards: one that is missing, as after a copy that broke off, is named before torch is loaded."""
    files = model()
    del files["unet/model.safetensors"], files["unet/model.fp16.safetensors"]
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    files |= {f"unet/{shard}": b"x" for shard in shards}
    files["unet/model.safetensors.index.json"] = json.dumps({"weight_map": dict(enumerate(shards))}).encode()
    for name, data in files.items():
        (tmp_path / "base" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "base" / name).write_bytes(data)
    assert ends(finding(hub, tmp_path, str(tmp_path / "base")))[0] == 0
    (tmp_path / "base" / "unet" / shards[1]).unlink()
    code, said = ends(finding(hub, tmp_path, str(tmp_path / "base")))
    assert code == 2 and "is not complete" in said and f"unet/{shards[1]} is missing" in said
    assert hub.asked == []


def single_file(base: Path, folder: Path) -> None:
    """Write the UNet and the first text encoder of an SDXL as a checkpoint in one file, and beside it what says what they are."""
    import torch
    from safetensors.torch import load_file, save_file
    from sdxl_lora.family import Sdxl

    outer = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    outer |= {f"time_embedding.linear_{n}": f"time_embed.{2 * n - 2}" for n in (1, 2)}
    outer |= {f"add_embedding.linear_{n}": f"label_emb.0.{2 * n - 2}" for n in (1, 2)}
    second = "conditioner.embedders.1.model"
    tensors = {f"{second}.text_projection": torch.zeros(2, 2), f"{second}.positional_embedding": torch.zeros(77, 2)}
    for name, tensor in load_file(base / "unet" / "diffusion_pytorch_model.safetensors").items():
        layer, leaf = name.rsplit(".", 1)
        tensors[f"model.diffusion_model.{outer.get(layer) or Sdxl.original_name(layer)}.{leaf}"] = tensor
    texts = load_file(base / "text_encoder" / "model.safetensors")
    tensors |= {f"conditioner.embedders.0.transformer.text_model.{name}": tensor for name, tensor in texts.items()}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    for file in [*base.glob("*.json"), *base.glob("*/*.json"), *base.glob("*/*.txt")]:
        (folder / file.relative_to(base)).parent.mkdir(exist_ok=True)
        shutil.copy(file, folder / file.relative_to(base))


def test_a_single_file_is_read_without_a_network(base: Path, tmp_path: Path) -> None:
    """With its configuration beside it, it has the weights of the model in folders; alone it is told what it lacks."""
    import torch
    from lora.base import find
    from lora.ends import Unavailable

    single_file(base, tmp_path / "one")
    kind = tool("sdxl").kind
    whole, one = find(str(base), kind), find(str(tmp_path / "one"), kind)
    assert one.path == tmp_path / "one" / "model.safetensors"
    for part in ("unet", "text_encoder"):
        wanted, read = (each.load(part, torch.float32).state_dict() for each in (whole, one))
        assert wanted.keys() == read.keys() and all(torch.equal(wanted[name], read[name]) for name in wanted)
    assert one.load("tokenizer", None)("a cat").input_ids == whole.load("tokenizer", None)("a cat").input_ids
    assert one.scheduler_config() == whole.scheduler_config() != kind.scheduler
    (tmp_path / "one" / "scheduler" / "scheduler_config.json").write_text("{}")
    assert find(str(tmp_path / "one"), kind).digest != one.digest
    (tmp_path / "alone").mkdir()
    shutil.copy(one.path, tmp_path / "alone")
    with pytest.raises(Unavailable, match="taken from the file's folder if its model_index"):
        find(str(tmp_path / "alone" / "model.safetensors"), kind).load("unet", torch.float32)


def test_a_single_file_says_what_its_net_predicts(tmp_path: Path) -> None:
    """A model of v-prediction with no signal at the last step marks itself so, as its makers do for ComfyUI."""
    import torch
    from lora.base import find
    from safetensors.torch import save_file

    kind, file = tool("sdxl").kind, tmp_path / "one.safetensors"
    for marks in ((), ("v_pred",), ("v_pred", "ztsnr")):
        save_file(dict.fromkeys((*marks, "conditioner.embedders.1.model.text_projection"), torch.zeros(0)), file)
        found = find(str(file), kind).scheduler_config()
        assert found.get("prediction_type", "epsilon") == ("v_prediction" if marks else "epsilon")
        assert found.get("rescale_betas_zero_snr", False) == ("ztsnr" in marks) and found["beta_end"] == 0.012


@pytest.mark.parametrize("family", ["sd15", "sdxl", "flux"])
def test_recipe_and_trainer_agree_on_what_is_fetched(family: str) -> None:
    """What the check before renting counts is what the trainer fetches, for every way in which the hub keeps weights."""
    from lora.base import chosen_files

    kind, rule = tool(family).kind, load_recipe(plugins.find_tool(f"{family}-lora@1")).input("base")
    assert rule is not None and rule.hub is not None and sorted(rule.hub.folders) == sorted(kind.parts)
    assert rule.hub.folders[0] == kind.net
    shapes = ["x", "x.fp16", "x.non_ema", "x-00001-of-00002", "x.fp16-00001-of-00002"]
    others = ["x.bin", "config.json", "openvino_model.xml", "model.onnx_data"]
    always = ["model_index.json", "a.safetensors", "README.md", "scheduler/config.json", "tokenizer/merges.txt", "other/x.json"]
    folders = (kind.net, "vae", "text_encoder")
    for lacking in itertools.combinations([(folder, shape) for folder in folders for shape in shapes], 2):
        names = always + [f"{folder}/{other}" for folder in folders for other in others]
        names += [f"{folder}/{shape}.safetensors" for folder in folders for shape in shapes if (folder, shape) not in lacking]
        assert chosen_files(names, kind) == fetched_files(names, rule.hub.folders)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A user's home with the tool `fetch`."""
    with installed(tmp_path / "home") as home:
        folder = home.path / ".config" / "remote-trainer" / "tools" / "fetch" / "1"
        folder.mkdir(parents=True)
        (tmp_path / "find.py").write_text(FIND)
        (folder / "tool.yaml").write_text(RECIPE.replace("PYTHON", sys.executable).replace("FIND", str(tmp_path / "find.py")))
        yield home


def fetch(home: Home, hub: FakeHub, base: str, *arguments: str, **environment: str) -> tuple[int, str]:
    """Run a job on this machine; its exit code and everything it said."""
    asked = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", **environment}
    done = home.run_training("--tool", "fetch@1", "--base", base, *arguments, **asked)
    return done.returncode, (done.stdout + done.stderr).decode()


def weights_sent(hub: FakeHub) -> dict[str, int]:
    """How often the hub sent each file of weights."""
    return {name: times for name, times in hub.sent.items() if name.endswith(".safetensors")}


def test_jobs_with_a_base_from_the_hub(hub: FakeHub, home: Home) -> None:
    """What no token opens is refused at submit, and by the worker where submit could not ask. A gated model without a token is told of,
    fails on this machine, and goes through once the token is there, with the commit of its submit. Jobs of one host fetch a file once.
    """
    code, said = fetch(home, hub, "acme/gated@v9")
    assert code == 12 and "the hub has no revision v9 of acme/gated" in said
    code, said = fetch(home, hub, "acme/gated")
    assert code == 10 and "acme/gated is gated and there is no HF_TOKEN" in said and "accept its licence" in said
    code, said = fetch(home, hub, "acme/gated@v9", HF_HUB_OFFLINE="1")
    assert code == 10 and "was not looked up: HF_HUB_OFFLINE is set" in said and "the hub has no revision v9" in said
    jobs = {each["reason"]: each for each in home.document("list", "--all")["jobs"]}
    assert set(jobs) == {"step_failed", "model_refused"}

    secret = home.path / ".config" / "remote-trainer" / "secrets" / "HF_TOKEN"
    secret.parent.mkdir(mode=0o700)
    secret.write_text(TOKEN)
    secret.chmod(0o600)
    submitted = hub.head("acme/gated")
    hub.models["acme/gated"].commits.append(model("changed"))
    done = home.remote_trainer("retry", jobs["step_failed"]["id"], HF_ENDPOINT=hub.url)
    assert done.returncode == 0, done.stderr
    assert f"/hub/models--acme--gated/snapshots/{submitted}" in done.stdout.decode()
    assert set(weights_sent(hub).values()) == {1}
    code, said = fetch(home, hub, f"acme/gated@{submitted}")
    assert code == 0 and f"snapshots/{submitted}" in said and TOKEN not in said
    assert len(weights_sent(hub)) == 4 and set(weights_sent(hub).values()) == {1}
