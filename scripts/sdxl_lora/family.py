"""What is particular to SDXL: two text encoders side by side, size conditioning, and its original layer names.

Editing rules: what SDXL shares with Stable Diffusion 1.5 is in ../lora/unet.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from lora.data import Photo
from lora.ends import WrongFile
from lora.family import Tensors
from lora.unet import UnetFamily


def size_conditions(photo: Photo) -> list[float]:
    """Original height and width, top and left of the crop, target height and width, in px."""
    _, (left, top) = photo.placement()
    return [float(n) for n in (photo.height, photo.width, top, left, photo.bucket[1], photo.bucket[0])]


class Sdxl(UnetFamily):
    """Stable Diffusion XL."""

    TEXTS: ClassVar = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
    LEARNING_TEXTS = ("text_encoder", "text_encoder_2")
    VERSION = "sdxl_base_v1-0"
    ARCHITECTURE = "stable-diffusion-xl-v1-base/lora"
    IMPLEMENTATION = "https://github.com/Stability-AI/generative-models"
    READER = "StableDiffusionXLLoraLoaderMixin"
    PREFIXES: ClassVar = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}

    @staticmethod
    def encode_texts(tokenizers: Mapping[str, Any], encoders: Mapping[str, Any], captions: Sequence[str]) -> Tensors:
        """Both encoders' last but one hidden state side by side, and the second one's pooled projection."""
        hidden, pooled = [], None
        for name, encoder in encoders.items():
            ids = tokenizers[name](
                list(captions), padding="max_length", max_length=77, truncation=True, return_tensors="pt"
            ).input_ids
            result = encoder(ids.to(encoder.device), output_hidden_states=True)
            hidden.append(result.hidden_states[-2])
            pooled = result[0]  # of the second encoder: its projected embedding
        assert pooled is not None
        return {"hidden": torch.cat(hidden, dim=-1), "pooled": pooled}

    def conditions(self, photos: Sequence[Photo]) -> Tensors:
        return {"time_ids": torch.tensor([size_conditions(photo) for photo in photos], device=self.device)}

    def sample_conditions(self, size: tuple[int, int]) -> Tensors:
        width, height = size
        return {"time_ids": torch.tensor([[height, width, 0, 0, height, width]] * 2, dtype=torch.float32, device=self.device)}

    def more_conditions(self, batch: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        return {"added_cond_kwargs": {"text_embeds": batch["pooled"], "time_ids": batch["time_ids"]}}

    @staticmethod
    def original_name(name: str) -> str:
        """down_blocks.1.attentions.0.proj_in → input_blocks.4.1.proj_in"""
        if match := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", name):
            side, block, kind, index, rest = match.groups()
            place = 3 * int(block) + int(index) + (side == "down")
            return f"{'input' if side == 'down' else 'output'}_blocks.{place}.{int(kind == 'attentions')}.{original_inner(rest)}"
        if match := re.match(r"down_blocks\.(\d+)\.downsamplers\.0\.conv", name):
            return f"input_blocks.{3 * int(match[1]) + 3}.0.op"
        if match := re.match(r"up_blocks\.(\d+)\.upsamplers\.0\.conv", name):
            return f"output_blocks.{3 * int(match[1]) + 2}.{2 if int(match[1]) < 2 else 1}.conv"
        if match := re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", name):
            return f"middle_block.{1 if match[1] == 'attentions' else 2 * int(match[2])}.{original_inner(match[3])}"
        raise WrongFile(f"the layer {name} has no name in the original SDXL layout; this is a defect of the trainer")


def original_inner(rest: str) -> str:
    """The part of a layer's name inside a residual block; attention layers are called the same in both layouts."""
    return {
        "conv1": "in_layers.2",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
        "time_emb_proj": "emb_layers.1",
    }.get(rest, rest)
