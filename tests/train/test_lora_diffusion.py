"""The arithmetic of training and sampling, held against diffusers' own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.train.conftest import chosen_options, tool


def model_of(base: Path, prediction: str = "epsilon", **more: object):
    import torch
    from lora.base import find

    trainer = tool("sdxl")
    options = chosen_options(resolution=64, bucket_step=32, **more)
    model = trainer.family()(find(str(base), trainer.kind), options, torch.device("cpu"), torch.float32)
    model.prediction = prediction
    return model


def test_a_sample_is_the_picture_that_diffusers_makes(base: Path, tmp_path: Path) -> None:
    """From the same noise and prompt, the pipeline of diffusers gives the same picture: embeddings, guidance and sizes agree."""
    import numpy as np
    import torch
    from diffusers import StableDiffusionXLPipeline
    from lora.cache import Cache, fill
    from lora.loss import generator
    from lora.ranks import Ranks
    from lora.sampling import Sampler
    from PIL import Image

    prompt = "a cat on a wall"
    model = model_of(base, output=tmp_path, sample_steps=4, sample_guidance=3)
    cache = Cache(tmp_path / "cache", model.base, type(model), model.options)
    fill(cache, [], ["", prompt], model.device, lambda: None)
    sampler = Sampler(cache, model.options, [prompt], Ranks())
    sampler.write(model, 7, lambda: None)
    pipeline = StableDiffusionXLPipeline.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn((1, 4, 8, 8), generator=generator(model.options.seed, 0, 2))
    wanted = {"prompt": prompt, "negative_prompt": "", "latents": noise, "num_inference_steps": 4, "guidance_scale": 3.0}
    theirs = np.asarray(pipeline(**wanted, height=64, width=64).images[0]).astype(int)
    with Image.open(tmp_path / "samples" / "step-000007-0.png") as ours:
        assert np.abs(np.asarray(ours).astype(int) - theirs).max() <= 1


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_noise_targets_and_weights_are_those_of_diffusers(base: Path, prediction: str) -> None:
    """Noising, target and signal-to-noise ratio agree with DDPMScheduler's and with the min-SNR paper's formula."""
    import torch
    from diffusers import DDPMScheduler
    from diffusers.training_utils import compute_snr

    model = model_of(base, prediction)
    config = {key: value for key, value in model.base.scheduler_config().items() if key.startswith(("beta", "num"))}
    theirs = DDPMScheduler(**config)
    times = torch.tensor([1, 400, 990])
    clean, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    batch = {"hidden": torch.zeros(3, 77, 96), "pooled": torch.zeros(3, 64), "time_ids": torch.zeros(3, 6)}
    with torch.no_grad():
        condition = {"text_embeds": batch["pooled"], "time_ids": batch["time_ids"]}
        predicted = model.net(theirs.add_noise(clean, noise, times), times, batch["hidden"], added_cond_kwargs=condition).sample
        target = noise if prediction == "epsilon" else theirs.get_velocity(clean, noise, times)
        expected = (predicted - target).square().mean((1, 2, 3))
        assert torch.allclose(model.errors(batch, clean, noise, times).mean((1, 2, 3)), expected, rtol=1e-4)
    ratio = compute_snr(theirs, times)
    weights = ratio.clamp(max=5) / (ratio if prediction == "epsilon" else ratio + 1)
    assert torch.allclose(model.weights(times), weights, rtol=1e-4)
    assert model_of(base, min_snr_gamma=0).weights(times).tolist() == [1, 1, 1]


def test_only_where_an_image_counts_is_learnt_from() -> None:
    """The error of an image is the mean over its mask's weight; without a mask it is the plain mean."""
    import torch
    from lora.loss import image_errors

    errors = torch.zeros(1, 4, 2, 2)
    errors[..., 0] = 8.0
    weight = torch.tensor([[0.0, 1.0], [0.0, 1.0]]).view(1, 1, 2, 2)
    assert image_errors(errors, {}).tolist() == [4]
    assert image_errors(errors, {"weight": weight}).tolist() == [0]
    assert image_errors(errors, {"weight": 1 - weight}).tolist() == [8]


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1, 1, 0.853553, 0.5, 0.146447]),
        ("cosine-restarts", [0.5, 1, 1, 0.5, 1, 0.5]),
        ("rex", [0.5, 1, 1, 0.857143, 0.666667, 0.4]),
        ("stable", [0.5, 1, 1, 1, 1, 1]),
    ],
)
def test_the_learning_rate_rises_and_then_follows_its_schedule(schedule: str, rates: list[float]) -> None:
    """Two steps of warm-up reach the full rate; from there it stays, or falls to nothing at the end."""
    from lora.optimisation import share

    options = chosen_options(steps=6, warmup=2, lr_schedule=schedule, lr_cycles=2)
    assert [share(options, step) for step in range(6)] == pytest.approx(rates, abs=1e-6)
