"""What is particular to FLUX.1: flow matching, packed latents with their places, T5 beside CLIP, and matrices that kohya fuses.

Noise is mixed in along a straight line, and the net says in which direction it lies. Times are the share of noise, 0..1.

Editing rules: T5 never learns, for no program loads a LoRA of it; the shift of noise levels is that of the base's own schedule.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from lora.base import Base
from lora.ends import WrongFile
from lora.family import Family, Tensors
from lora.options import Options

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
OTHERS = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp", "proj_out")
# Original matrix → the layers of diffusers that it holds, one below the other.
DOUBLE = {
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn_proj": ("attn.to_out.0",),
    "img_mlp_0": ("ff.net.0.proj",),
    "img_mlp_2": ("ff.net.2",),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn_proj": ("attn.to_add_out",),
    "txt_mlp_0": ("ff_context.net.0.proj",),
    "txt_mlp_2": ("ff_context.net.2",),
}
SINGLE = {"linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), "linear2": ("proj_out",)}


def pack(latents: torch.Tensor) -> torch.Tensor:
    """(n, c, h, w) → (n, h/2 · w/2, 4c): squares of two by two latents are one token."""
    n, c, h, w = latents.shape
    return latents.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w // 4, 4 * c)


def unpack(tokens: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """What `pack` made, back in its shape."""
    n, c, h, w = shape
    return tokens.view(n, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(n, c, h, w)


def places(height: int, width: int, device: torch.device) -> torch.Tensor:
    """(h/2 · w/2, 3): nothing, row and column of each token."""
    rows, columns = torch.meshgrid(torch.arange(height // 2), torch.arange(width // 2), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1).to(device, torch.float32)


def shifted(times: torch.Tensor, factor: float) -> torch.Tensor:
    """Times moved towards noise: factor 1 moves nothing."""
    return factor * times / (1 + (factor - 1) * times)


class Flux(Family):
    """FLUX.1, the guided (dev) and the distilled (schnell)."""

    TEXTS: ClassVar = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
    LEARNING_TEXTS = ("text_encoder",)
    TARGETS: ClassVar = {"attention": ATTENTION, "all": (*ATTENTION, *OTHERS)}
    EXCLUDED = "proj_out"  # the last layer of all, which ends as the single blocks' do
    VERSION = "flux1"
    ARCHITECTURE = "flux-1-dev/lora"
    IMPLEMENTATION = "https://github.com/black-forest-labs/flux"
    READER = "FluxLoraLoaderMixin"
    PREFIXES: ClassVar = {"transformer": "lora_unet_", "text_encoder": "lora_te1_"}

    def __init__(self, base: Base, options: Options, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(base, options, device, dtype)
        self.schedule = base.scheduler_config()
        # Without autocast, latents become narrow here; the net then rounds times likewise, as it does in diffusers' own trainings.
        self.net.x_embedder.register_forward_pre_hook(lambda _, given: (given[0].to(dtype),))

    @classmethod
    def tokenizer(cls, base: Base, encoder: str, options: Options) -> Any:
        found = super().tokenizer(base, encoder, options)
        if encoder == "text_encoder_2":
            found.model_max_length = options.text_length
        return found

    @staticmethod
    def text_settings(options: Options) -> tuple[object, ...]:
        return (options.text_length,)

    @staticmethod
    def text_precision(encoder: str, device: torch.device) -> torch.dtype:
        """T5 has 5 billion weights and was trained in bf16."""
        return torch.bfloat16 if encoder == "text_encoder_2" and device.type == "cuda" else torch.float32

    @staticmethod
    def encode_pixels(vae: Any, pixels: torch.Tensor) -> Tensors:
        posterior, scale = vae.encode(pixels).latent_dist, vae.config.scaling_factor
        return {"mean": (posterior.mean[0] - vae.config.shift_factor) * scale, "std": posterior.std[0] * scale}

    @staticmethod
    def decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
        return vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample[0]

    @staticmethod
    def encode_texts(tokenizers: Mapping[str, Any], encoders: Mapping[str, Any], captions: Sequence[str]) -> Tensors:
        """T5's hidden states, as many as its tokenizer is set to, and CLIP's pooled one."""
        found = {}
        for name, encoder in encoders.items():
            length = tokenizers[name].model_max_length
            more = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
            result = encoder(tokenizers[name](list(captions), **more).input_ids.to(encoder.device))
            found |= {"hidden": result[0]} if name == "text_encoder_2" else {"pooled": result.pooler_output}
        return found

    def factor(self, latents: torch.Size) -> float:
        """How far the base's schedule moves noise levels for latents of that shape: larger images need more noise."""
        if self.options.timestep_shift:
            return float(self.options.timestep_shift)
        if not self.schedule.get("use_dynamic_shifting"):
            return float(self.schedule.get("shift", 1.0))
        return math.exp(self.dynamic_shift(latents))

    def dynamic_shift(self, latents: torch.Size) -> float:
        """The schedule's mu: a straight line through its two lengths."""
        low, high = self.schedule.get("base_image_seq_len", 256), self.schedule.get("max_image_seq_len", 4096)
        start, end = self.schedule.get("base_shift", 0.5), self.schedule.get("max_shift", 1.15)
        return float(start + (end - start) * (latents[2] * latents[3] / 4 - low) / (high - low))

    def pick_times(self, draw: torch.Generator, latents: torch.Size) -> torch.Tensor:
        """Logit-normal, then shifted."""
        times = torch.sigmoid(torch.randn(latents[0], generator=draw))
        return shifted(times, self.factor(latents)).to(self.device)

    def even_times(self, places: torch.Tensor, latents: torch.Size) -> torch.Tensor:
        return shifted(torch.sigmoid(torch.special.ndtri(places)), self.factor(latents)).to(self.device)

    def mix(self, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        share = times.view(-1, 1, 1, 1)
        return (1 - share) * latents + share * noise, noise - latents

    def predict(self, noisy: torch.Tensor, times: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self.ask(noisy, times, batch, self.options.train_guidance)

    def ask(self, noisy: torch.Tensor, times: torch.Tensor, texts: Mapping[str, torch.Tensor], guidance: float) -> torch.Tensor:
        """The direction of noise; `guidance` is told to a base that takes it."""
        told = torch.full((len(noisy),), guidance, device=self.device) if self.net.config.guidance_embeds else None
        tokens = self.net(
            hidden_states=pack(noisy),
            timestep=times,
            guidance=told,
            pooled_projections=texts["pooled"].to(self.dtype),
            encoder_hidden_states=texts["hidden"].to(self.dtype),
            txt_ids=torch.zeros(texts["hidden"].shape[1], 3, device=self.device),
            img_ids=places(noisy.shape[2], noisy.shape[3], self.device),
            return_dict=False,
        )[0]
        return unpack(tokens, noisy.shape)

    def denoise(self, texts: Tensors, size: tuple[int, int], draw: torch.Generator) -> torch.Tensor:
        """Euler's method along the base's schedule; guidance is a number that the base is told, not a second prompt."""
        from diffusers import FlowMatchEulerDiscreteScheduler

        scheduler = FlowMatchEulerDiscreteScheduler.from_config(self.schedule)
        width, height = size
        latents = torch.randn((1, 16, height // 8, width // 8), generator=draw).to(self.device)
        count, wanted = self.options.sample_steps, {key: value[1:] for key, value in texts.items()}
        moved = {"mu": self.dynamic_shift(latents.shape)} if self.schedule.get("use_dynamic_shifting") else {}
        scheduler.set_timesteps(sigmas=[1 - i / count for i in range(count)], device=self.device, **moved)
        for timestep in scheduler.timesteps:
            with self.asking():
                predicted = self.ask(latents, timestep.expand(1) / 1000, wanted, self.options.sample_guidance).float()
            latents = scheduler.step(predicted, timestep, latents, return_dict=False)[0]
        return latents

    def kohya_groups(self, rows: Mapping[str, int]) -> dict[str, list[tuple[str | None, int]]]:
        """The original's matrices; LyCORIS kinds cannot be fused, and ComfyUI knows them by diffusers' names."""
        if self.options.network != "lora":
            return {"lycoris_" + name.replace(".", "_"): [(name, count)] for name, count in rows.items()}
        found: dict[str, list[tuple[str | None, int]]] = {}
        for name in rows:
            key, members = self.matrix(name)
            found[key] = [(m, rows[m]) if m in rows else (None, len(self.net.get_submodule(m).weight)) for m in members]
        return found

    @staticmethod
    def matrix(name: str) -> tuple[str, list[str]]:
        """(the original's matrix in kohya's format, all layers of diffusers that it holds) of a layer."""
        match = re.fullmatch(r"(single_)?transformer_blocks\.(\d+)\.(.+)", name)
        for matrix, members in ((SINGLE if match[1] else DOUBLE) if match else {}).items():
            if match and match[3] in members:
                kind = "single" if match[1] else "double"
                block = name.removesuffix(match[3])
                return f"lora_unet_{kind}_blocks_{match[2]}_{matrix}", [block + member for member in members]
        raise WrongFile(f"the layer {name} has no name in the original FLUX layout; this is a defect of the trainer")

    def diffusers_reads(self, kohya: bool) -> bool:
        """Its reader of kohya's format knows matrices of the real size only, and finds layers where a fused matrix has gaps."""
        return not kohya and self.options.network in ("lora", "dora")
