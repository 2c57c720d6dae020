"""What is computed: the loss, the fixed validation loss, and sample images.

Everything random comes from generators made from (seed, step) on the CPU, so a step gives the same numbers on every device and
after every resume.

Editing rules: nothing here keeps state between calls but the models; the schedule's tables are on the training device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cache import Cache
from data import Photo, buckets, group, nearest
from options import Options
from PIL import Image

Tensors = Mapping[str, torch.Tensor]
VALIDATION_BATCH = 8


def generator(*parts: int) -> torch.Generator:
    """A generator for these numbers; neighbouring ones give unrelated streams."""
    mixed = int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(mixed >> 1)


def noise_levels(config: Mapping[str, Any]) -> torch.Tensor:
    """alphas_cumprod, (steps,): the share of signal variance left at each timestep of the base's training."""
    from diffusers import DDPMScheduler

    names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
    return DDPMScheduler(**{name: config[name] for name in names if name in config}).alphas_cumprod


@dataclass(frozen=True, slots=True)
class Model:
    """The UNet that learns, with what is needed to ask it something."""

    unet: Any
    signal: torch.Tensor
    """alphas_cumprod on the training device."""
    prediction: str
    """"epsilon" or "v_prediction": what the base was trained to output."""
    device: torch.device
    dtype: torch.dtype
    """Precision of the frozen weights and of the forward pass; the adapter itself is fp32."""

    def errors(self, batch: Tensors, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Mean squared error of each image's prediction, (n,)."""
        signal = self.signal[timesteps].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
        target = noise if self.prediction == "epsilon" else signal.sqrt() * noise - (1 - signal).sqrt() * latents
        condition = {"text_embeds": batch["pooled"], "time_ids": batch["time_ids"]}
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            predicted = self.unet(noisy, timesteps, batch["hidden"], added_cond_kwargs=condition).sample
        return (predicted.float() - target).square().mean(dim=(1, 2, 3))

    def weights(self, timesteps: torch.Tensor, gamma: float) -> torch.Tensor:
        """Min-SNR weights, (n,): easy, nearly clean timesteps do not drown the others. gamma 0 is no weighting."""
        if gamma == 0:
            return torch.ones(len(timesteps), device=self.device)
        ratio = self.signal[timesteps] / (1 - self.signal[timesteps])
        divisor = ratio if self.prediction == "epsilon" else ratio + 1
        return ratio.clamp(max=gamma) / divisor.clamp_min(1e-8)


def training_loss(model: Model, cache: Cache, photos: Sequence[Photo], options: Options, position: int) -> torch.Tensor:
    """The loss of one pass; `position` counts passes from the start of the training."""
    draw = generator(options.seed, position)
    dropped = torch.rand(len(photos), generator=draw) < options.caption_dropout
    captions = ["" if drop else photo.caption for photo, drop in zip(photos, dropped.tolist(), strict=True)]
    batch = cache.batch(photos, captions, model.device)
    shape = batch["mean"].shape
    spread, noise = (torch.randn(shape, generator=draw).to(model.device) for _ in range(2))
    timesteps = torch.randint(0, len(model.signal), (shape[0],), generator=draw).to(model.device)
    errors = model.errors(batch, batch["mean"] + batch["std"] * spread, noise, timesteps)
    return (errors * model.weights(timesteps, options.min_snr_gamma)).mean()


@torch.no_grad()
def validation_loss(model: Model, cache: Cache, photos: Sequence[Photo], seed: int) -> float:
    """Mean error over the photos with noise and timesteps that are the same at every call; timesteps are spread evenly."""
    total, number = 0.0, 0
    for members in group(photos, VALIDATION_BATCH, seed, epoch=0):
        batch = cache.batch(members, [photo.caption for photo in members], model.device)
        noise = torch.randn(batch["mean"].shape, generator=generator(seed, number, 1)).to(model.device)
        places = (torch.arange(number, number + len(members)) + 0.5) / len(photos)
        timesteps = (places * len(model.signal)).long().to(model.device)
        total += float(model.errors(batch, batch["mean"], noise, timesteps).sum())
        number += len(members)
    return total / number


class Sampler:
    """Makes sample images with the UNet as it is; the VAE is loaded at the first one."""

    def __init__(self, cache: Cache, options: Options, prompts: Sequence[str]) -> None:
        self.cache, self.options, self.prompts = cache, options, prompts
        sizes = buckets(options.resolution, options.bucket_step, *options.bucket_limits)
        self.size = nearest(1, 1, sizes)
        self._vae: Any = None

    @torch.no_grad()
    def write(self, model: Model, step: int, stopping: Callable[[], None]) -> list[Path]:
        """samples/step-000100-0.png and so on, one for each prompt, always from the same noise; those that are there are kept."""
        folder = self.options.output_dir / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"step-{step:06d}-{number}.png" for number in range(len(self.prompts))]
        for number, (path, prompt) in enumerate(zip(paths, self.prompts, strict=True)):
            if path.exists():
                continue
            stopping()
            part = path.with_name(f".{path.name}.part")
            self._image(model, prompt, number).save(part, format="PNG")
            part.replace(path)
        return paths

    def _image(self, model: Model, prompt: str, number: int) -> Image.Image:
        latents = self._denoise(model, prompt, generator(self.options.seed, number, 2))
        if self._vae is None:
            self._vae = self.cache.base.load("vae", model.dtype).to(model.device)
        pixels = self._vae.decode(latents.to(model.dtype) / self._vae.config.scaling_factor).sample[0]
        levels = ((pixels.float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return Image.fromarray(levels.permute(1, 2, 0).numpy())

    def _denoise(self, model: Model, prompt: str, draw: torch.Generator) -> torch.Tensor:
        """Euler's method with classifier-free guidance against the empty prompt."""
        from diffusers import EulerDiscreteScheduler

        scheduler = EulerDiscreteScheduler.from_config(self.cache.base.scheduler_config())
        scheduler.set_timesteps(self.options.sample_steps, device=model.device)
        width, height = self.size
        texts = [self.cache.text(text, model.device) for text in ("", prompt)]
        hidden, pooled = (torch.stack([text[key] for text in texts]) for key in ("hidden", "pooled"))
        time_ids = torch.tensor([[height, width, 0, 0, height, width]] * 2, dtype=torch.float32, device=model.device)
        latents = torch.randn((1, 4, height // 8, width // 8), generator=draw).to(model.device) * scheduler.init_noise_sigma
        for timestep in scheduler.timesteps:
            pair = scheduler.scale_model_input(torch.cat([latents, latents]), timestep)
            with torch.autocast(model.device.type, model.dtype, enabled=model.dtype != torch.float32):
                condition = {"text_embeds": pooled, "time_ids": time_ids}
                predicted = model.unet(pair, timestep, hidden, added_cond_kwargs=condition).sample.float()
            empty, wanted = predicted.chunk(2)
            latents = scheduler.step(empty + self.options.sample_guidance * (wanted - empty), timestep, latents).prev_sample
        return latents


def prompts_of(options: Options, photos: Sequence[Photo]) -> list[str]:
    """The prompts to sample: the given ones, else captions spread over the dataset."""
    if options.sample_prompts.strip():
        return [prompt.strip() for prompt in options.sample_prompts.split("|") if prompt.strip()]
    captions = list(dict.fromkeys(photo.caption for photo in photos))
    count = min(options.sample_count, len(captions))
    return [captions[i * len(captions) // count] for i in range(count)]
