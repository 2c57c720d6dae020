"""Families whose net is a UNet that removes noise step by step: Stable Diffusion 1.5 and XL.

Editing rules: the schedule's table is on the training device; what differs between the two is in their own family.py.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from lora.base import Base
from lora.family import Family, Tensors
from lora.options import UnetOptions

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
OTHERS = ("proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2", "conv_shortcut", "conv")


def noise_levels(config: Mapping[str, Any]) -> torch.Tensor:
    """alphas_cumprod, (steps,): the share of signal variance left at each timestep of the base's training."""
    from diffusers import DDPMScheduler

    names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
    return DDPMScheduler(**{name: config[name] for name in names if name in config}).alphas_cumprod


class UnetFamily(Family):
    """A UNet with its noise schedule."""

    TARGETS: ClassVar = {"attention": ATTENTION, "locon": (*ATTENTION, *OTHERS)}

    def __init__(self, base: Base, options: UnetOptions, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(base, options, device, dtype)
        config = base.scheduler_config()
        self.signal = noise_levels(config).to(device)
        self.prediction = config.get("prediction_type", "epsilon")

    def move(self, device: torch.device) -> None:
        super().move(device)
        self.signal = self.signal.to(device)

    @staticmethod
    def encode_pixels(vae: Any, pixels: torch.Tensor) -> Tensors:
        posterior, scale = vae.encode(pixels).latent_dist, vae.config.scaling_factor
        return {"mean": posterior.mean[0] * scale, "std": posterior.std[0] * scale}

    @staticmethod
    def decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
        return vae.decode(latents / vae.config.scaling_factor).sample[0]

    def pick_times(self, draw: torch.Generator, latents: torch.Size) -> torch.Tensor:
        return torch.randint(0, len(self.signal), (latents[0],), generator=draw).to(self.device)

    def even_times(self, places: torch.Tensor, latents: torch.Size) -> torch.Tensor:
        return (places * len(self.signal)).long().to(self.device)

    def noise(self, noise: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
        if not self.options.noise_offset:
            return noise
        return noise + self.options.noise_offset * torch.randn((*noise.shape[:2], 1, 1), generator=draw).to(self.device)

    def mix(self, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        signal = self.signal[times].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
        return noisy, noise if self.prediction == "epsilon" else signal.sqrt() * noise - (1 - signal).sqrt() * latents

    def predict(self, noisy: torch.Tensor, times: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self.net(noisy, times, batch["hidden"], **self.more_conditions(batch)).sample

    def weights(self, times: torch.Tensor) -> torch.Tensor:
        """Min-SNR or debiased: easy, nearly clean timesteps do not drown the others. Gamma 0 is no weighting."""
        gamma = self.options.min_snr_gamma
        if gamma == 0 and not self.options.debiased:
            return super().weights(times)
        ratio = self.signal[times] / (1 - self.signal[times])
        divisor = ratio if self.prediction == "epsilon" else ratio + 1
        if self.options.debiased:
            return 1 / (divisor.clamp(max=1000).sqrt() if self.prediction == "epsilon" else divisor)
        return ratio.clamp(max=gamma) / divisor.clamp_min(1e-8)

    def denoise(self, texts: Tensors, size: tuple[int, int], draw: torch.Generator) -> torch.Tensor:
        """Euler's method with classifier-free guidance against the empty prompt."""
        from diffusers import EulerDiscreteScheduler

        scheduler = EulerDiscreteScheduler.from_config(self.base.scheduler_config())
        scheduler.set_timesteps(self.options.sample_steps, device=self.device)
        width, height = size
        batch = {**texts, **self.sample_conditions(size)}
        latents = torch.randn((1, 4, height // 8, width // 8), generator=draw).to(self.device) * scheduler.init_noise_sigma
        for timestep in scheduler.timesteps:
            pair = scheduler.scale_model_input(torch.cat([latents, latents]), timestep)
            with self.autocast():
                predicted = self.predict(pair, timestep, batch).float()
            empty, wanted = predicted.chunk(2)
            latents = scheduler.step(empty + self.options.sample_guidance * (wanted - empty), timestep, latents).prev_sample
        return latents

    def spec(self) -> dict[str, str]:
        return {"modelspec.prediction_type": "v" if self.prediction == "v_prediction" else "epsilon"}

    def sample_conditions(self, size: tuple[int, int]) -> Tensors:
        """What the net is told of a pair of samples besides their prompts."""
        return {}

    @abstractmethod
    def more_conditions(self, batch: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Arguments of the UNet besides latents, times and text."""
