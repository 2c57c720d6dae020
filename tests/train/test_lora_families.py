"""Each family and each kind of network, by pictures: what a fresh pipeline makes of a file is what the training saw."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.train.conftest import Train, chosen_options, tool

PROMPT = "a cat on a wall"
# Enough of a change that a lost layer or a wrong strength shows in the picture.
SHOWN = {"steps": 3, "lr": 2e-2, "sample_count": 1, "sample_prompts": PROMPT, "sample_steps": 2, "sample_guidance": 2.0}


def pipeline_of(family: str, base: Path) -> Any:
    import diffusers
    import torch

    pipeline = getattr(diffusers, tool(family).kind.pipeline).from_pretrained(base, dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def picture(family: str, pipeline: Any, stream: int = 2) -> Any:
    """What diffusers makes of the prompt from the noise of our samples, or of another stream of noise."""
    import numpy as np
    import torch
    from lora.loss import generator

    noise = torch.randn((1, 16 if family == "flux" else 4, 8, 8), generator=generator(42, 0, stream))
    more = {"negative_prompt": ""}
    if family == "flux":
        noise, more = pipeline._pack_latents(noise, 1, 16, 8, 8), {"max_sequence_length": 512}
    made = pipeline(prompt=PROMPT, latents=noise, num_inference_steps=2, guidance_scale=2.0, height=64, width=64, **more)
    return np.asarray(made.images[0]).astype(int)


def apart(one: Any, other: Any) -> int:
    return int(abs(one - other).max())


def read_as_comfyui(family: str, pipeline: Any, file: Path, model: Any) -> None:
    """Add what the kohya file holds to the weights, by the formulas of its readers."""
    from lora import kohya
    from safetensors.torch import load_file

    found = kohya.read(load_file(file))
    for key, (part, group) in kohya.groups(model).items():
        top = 0
        for name, rows in group:
            if name:
                weight = getattr(pipeline, part).get_submodule(name).weight.data
                changed = weight + found[key][top : top + rows].view_as(weight)
                if (strength := found.get(f"{key}.magnitude")) is not None:
                    shape = (-1, *[1] * (weight.dim() - 1))
                    changed *= strength.view(shape) / changed.flatten(1).norm(dim=1).view(shape)
                weight.copy_(changed)
            top += rows
        assert top == len(found[key])


NETWORKS = {
    ("sd15", "lora"): {"targets": "locon", "conv_rank": 2, "conv_alpha": 3.0, "text_lr": 1e-2, "text_rank": 2},
    ("sd15", "dora"): {"targets": "attention"},
    ("sd15", "loha"): {"targets": "locon", "conv_rank": 2, "text_lr": 1e-2},
    ("sd15", "lokr"): {"targets": "locon"},
    ("sdxl", "lora"): {"targets": "locon", "conv_rank": 2, "text_lr": 1e-2},
    ("sdxl", "dora"): {"targets": "attention"},
    ("flux", "lora"): {"targets": "all", "text_lr": 1e-2},
    ("flux", "dora"): {"targets": "attention"},
    ("flux", "loha"): {"targets": "all", "lr": 0.2},
    ("flux", "lokr"): {"targets": "all", "lr": 0.2},
}


@pytest.mark.parametrize(("family", "network"), NETWORKS)
def test_every_network_makes_the_trained_picture_elsewhere(
    family: str, network: str, train: Train, bases: Callable[[str], Path]
) -> None:
    """Each file in a fresh pipeline, by diffusers, by PEFT or by the formulas of ComfyUI, gives the training's last sample."""
    import numpy as np
    import torch
    from lora.adapters import attach
    from lora.base import find
    from lora.export import read_by_peft
    from PIL import Image

    options = {**SHOWN, "network": network, **NETWORKS[family, network]}
    output = train(family, **options)
    with Image.open(output / "samples" / "step-000003-0.png") as image:
        trained = np.asarray(image).astype(int)
    plain, kohya_file = output / "final" / "lora.safetensors", output / "final" / "lora_kohya.safetensors"
    pipeline, base = pipeline_of(family, bases(family)), bases(family)
    assert apart(picture(family, pipeline), trained) > 5
    if network in ("lora", "dora"):
        pipeline.load_lora_weights(str(plain), local_files_only=True)
    else:
        parts = [tool(family).kind.net, *(["text_encoder"] if "text_lr" in options else [])]
        for part in parts:
            read_by_peft(plain, part, getattr(pipeline, part))
    assert apart(picture(family, pipeline), trained) <= 1
    if network == "lora" and family != "flux":
        pipeline = pipeline_of(family, base)
        pipeline.load_lora_weights(str(kohya_file), local_files_only=True)
        assert apart(picture(family, pipeline), trained) <= 3
    if family == "sdxl":
        return  # its kohya file has been read by diffusers, and the formulas are the same for all
    chosen = chosen_options(family, rank=4, alpha=2.0, **options)
    model = tool(family).family()(find(str(base), tool(family).kind), chosen, torch.device("cpu"), torch.float32)
    attach(model, chosen)
    pipeline = pipeline_of(family, base)
    read_as_comfyui(family, pipeline, kohya_file, model)
    assert apart(picture(family, pipeline), trained) <= 3


STOPPED = {
    "data": {
        "flip": True,
        "shuffle_tags": True,
        "masks": "files",
        "mask_background": 0.1,
        "more_resolutions": "96",
        "prior_weight": 0.5,
    },
    "sd15": {"targets": "attention", "noise_offset": 0.1, "debiased": True, "dropout": 0.3, "text_lr": 1e-3},
    "adamw": {"text_lr": 1e-3, "network": "loha", "dropout": 0.2},
    "prodigy": {"optimizer": "prodigy", "lr": 1.0},
    "adafactor": {"optimizer": "adafactor", "targets": "attention"},
    "bits": {"optimizer": "adamw8bit", "rank": 32, "alpha": 16.0, "quantize": "nf4", "gradient_checkpointing": "on"},
    "came": {"optimizer": "came", "network": "dora", "targets": "attention"},
}


@pytest.mark.parametrize("what", STOPPED)
def test_a_stopped_training_resumes_bit_for_bit_with_every_optimiser(
    what: str, train: Train, photographs: Path, tmp_path: Path
) -> None:
    """Stopped after some steps, with averaged weights, it ends with the very files of one never interrupted."""
    from lora.ends import Interrupted

    options = {"steps": 4, "lr_schedule": "cosine", "batch_size": 2, "ema": 0.9, **STOPPED[what]}
    family = "sd15" if what == "sd15" else "flux"
    if what == "data":
        options |= {"prior": photographs, "dataset": tmp_path / "masked"}
        shutil.copytree(photographs, options["dataset"])
        Image.linear_gradient("L").resize((161, 114)).save(options["dataset"] / "cat00.mask.png")
    whole = train(family, **options, output=tmp_path / "whole")
    looks = iter(range(100))

    def stop() -> None:
        if (tmp_path / "stopped" / "metrics.jsonl").exists() and next(looks) == 2:
            raise Interrupted("enough")

    with pytest.raises(Interrupted):
        train(family, stop, **options, output=tmp_path / "stopped")
    (kept,) = (tmp_path / "stopped" / "checkpoints").iterdir()
    assert "step-000000" < kept.name < "step-000004"
    again = train(family, **options, output=tmp_path / "stopped")
    for name in ("lora.safetensors", "lora_kohya.safetensors"):
        assert (again / "final" / name).read_bytes() == (whole / "final" / name).read_bytes()


@pytest.mark.parametrize("network", ["lora", "dora", "loha", "lokr"])
def test_dropout_is_for_learning_alone(network: str, bases: Callable[[str], Path], cache: Path, photographs: Path) -> None:
    """A pass leaves out the same again whenever it is made, recomputed or not, another pass something else, and a validation nothing."""
    import torch
    from lora.adapters import attach
    from lora.base import find
    from lora.cache import Cache, fill
    from lora.data import survey
    from lora.loss import training_loss, validation_loss
    from lora.ranks import Ranks

    more = {
        "dataset": photographs,
        "resolution": 64,
        "bucket_step": 32,
        "rank": 4,
        "alpha": 4.0,
        "network": network,
        "text_lr": 1.0,
    }
    base, kind, cpu = find(str(bases("sd15")), tool("sd15").kind), tool("sd15").family(), torch.device("cpu")

    def learner(dropout: float) -> Callable[[int], tuple[float, float]]:
        """position → (loss of the pass, the gradient's size) of a model whose adapters have something to leave out."""
        options = chosen_options("sd15", dropout=dropout, **more)
        photos, entries, model = survey(options)[:2], Cache(cache, base, kind, options), kind(base, options, cpu, torch.float32)
        fill(entries, photos, [photo.caption for photo in photos], cpu, lambda: None)
        attach(model, options)
        learning = [p for part in model.parts().values() for p in part.parameters() if p.requires_grad]
        for number, parameter in enumerate(learning):
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(number))

        def ask(position: int) -> tuple[float, float]:
            if position < 0:
                return validation_loss(model, entries, photos, 42, Ranks()), 0.0
            if position > 100:
                model.net.enable_gradient_checkpointing()
            loss = training_loss(model, entries, photos, options, position % 100)
            loss.backward()
            size = float(sum(p.grad.abs().sum() for p in learning))
            for parameter in learning:
                parameter.grad = None
            return float(loss.detach()), size

        return ask

    without, asked = learner(0.0), learner(0.5)
    validated, first = asked(-1), asked(1)
    assert validated == without(-1) and first[0] != without(1)[0]
    assert asked(2) != first and asked(-1) == validated and asked(1) == first
    again = asked(101)
    assert again[0] == first[0] and again[1] == pytest.approx(first[1], rel=1e-4)


def test_the_arithmetic_of_flux_is_that_of_diffusers(bases: Callable[[str], Path]) -> None:
    """Packing, places, mixing and shift agree with its pipeline and scheduler; times are logit-normal."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift
    from flux_lora.family import pack, places, unpack
    from lora.base import find

    trainer = tool("flux")
    model = trainer.family()(find(str(bases("flux")), trainer.kind), chosen_options("flux"), torch.device("cpu"), torch.float32)
    latents, noise = torch.randn(2, 2, 16, 4, 6, generator=torch.Generator().manual_seed(1))
    packed = pack(latents)
    assert torch.equal(packed, FluxPipeline._pack_latents(latents, 2, 16, 4, 6))
    assert torch.equal(unpack(packed, latents.shape), latents)
    ours = places(4, 6, model.device)
    assert torch.equal(ours, FluxPipeline._prepare_latent_image_ids(2, 2, 3, model.device, torch.float32))
    assert model.dynamic_shift(torch.Size((1, 16, 128, 96))) == pytest.approx(calculate_shift(64 * 48))
    times = model.even_times(torch.tensor([0.1, 0.5, 0.9]), latents.shape)
    theirs = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).time_shift(model.dynamic_shift(latents.shape), 1.0, 0.5)
    assert float(times[1]) == pytest.approx(theirs) and times[0] < times[1] < times[2]
    drawn = model.pick_times(torch.Generator().manual_seed(1), torch.Size((4000, 16, 4, 6)))
    assert float(drawn.median()) == pytest.approx(theirs, abs=0.02)
    noisy, target = model.mix(latents, noise, torch.tensor([0.25, 1.0]))
    assert torch.allclose(noisy[0], 0.75 * latents[0] + 0.25 * noise[0]) and torch.equal(noisy[1], noise[1])
    assert torch.equal(target, noise - latents)


def test_diffusers_takes_fused_matrices_of_the_real_size_apart() -> None:
    """Its reader of kohya's format finds in each fused matrix of FLUX the very updates that went in, and nothing in a gap."""
    import torch
    from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers
    from lora.kohya import joined

    draw = torch.Generator().manual_seed(1)

    def member(rows: int) -> dict[str, torch.Tensor]:
        down, up = torch.randn(2, 3072, generator=draw), torch.randn(rows, 2, generator=draw)
        return {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(3.0)}

    members, rows = [member(3072), member(3072), member(3072), None], [3072, 3072, 3072, 12288]
    fused = joined(members, rows)
    found = _convert_kohya_flux_lora_to_diffusers(
        {f"lora_unet_single_blocks_0_linear1.{key}": value for key, value in fused.items()}
    )
    names = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    for name, sent in zip(names, members, strict=True):
        down, up = (found[f"transformer.single_transformer_blocks.0.{name}.lora_{side}.weight"] for side in "AB")
        expected = 1.5 * (sent["lora_up.weight"] @ sent["lora_down.weight"]) if sent else torch.zeros(1)
        assert torch.allclose(up @ down, expected, atol=1e-4)


def test_kohyas_file_holds_the_smallest_updates() -> None:
    """Factors are made equally large, their product exactly kept; where fp16 would still lose what is learnt, the file is in fp32."""
    import torch
    from lora.kohya import balanced, precision

    given = [scale * torch.randn(4, 4, generator=torch.Generator().manual_seed(1)) for scale in (1e-9, 0.2, 3.0)]
    made = balanced(*given)
    assert torch.equal(made[0] @ made[1] @ made[2], given[0] @ given[1] @ given[2])
    sizes = [float(part.abs().max()) for part in made]
    assert max(sizes) < 4 * min(sizes)
    names = ("a.lokr_w1", "a.lokr_w2_a", "a.lokr_w2_b")
    assert precision({**dict(zip(names, made, strict=True)), "a.alpha": torch.tensor(1e-9)}) is torch.float16
    assert precision(dict(zip(names, given, strict=True))) is torch.float32
    assert precision({"a.lora_up.weight": torch.full((2, 2), 1e6)}) is torch.float32
    assert precision({"a.lora_up.weight": torch.zeros(2, 2)}) is torch.float16


@pytest.mark.parametrize(
    ("family", "other", "expected"),
    [("sd15", "sdxl", "is not Stable Diffusion 1.5"), ("sdxl", "sd15", "is not SDXL"), ("flux", "sdxl", "is not FLUX.1")],
)
def test_a_base_of_another_family_is_named(family: str, other: str, expected: str, bases: Callable[[str], Path]) -> None:
    """Each trainer refuses the base of another with what the model says it is."""
    from lora.base import find
    from lora.ends import BadInput

    with pytest.raises(BadInput, match=expected) as caught:
        find(str(bases(other)), tool(family).kind)
    assert tool(other).kind.pipeline in str(caught.value)


@pytest.mark.parametrize("family", ["sd15", "flux"])
def test_tiny_bases_come_from_their_seed(family: str, bases: Callable[[str], Path], tmp_path: Path) -> None:
    """The same seed gives the same bytes, few of them."""
    import importlib

    importlib.import_module(f"make_tiny_{family}").make(tmp_path / "again")
    files = {str(f.relative_to(bases(family))): f.read_bytes() for f in bases(family).rglob("*") if f.is_file()}
    assert {
        str(f.relative_to(tmp_path / "again")): f.read_bytes() for f in (tmp_path / "again").rglob("*") if f.is_file()
    } == files
    assert sum(map(len, files.values())) <= 10_000_000
