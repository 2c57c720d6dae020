"""What is particular to Stable Diffusion 1.5: one text encoder, whose last hidden state is all that the UNet is told.

Editing rules: what it shares with SDXL is in ../lora/unet.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from lora.family import Tensors
from lora.unet import UnetFamily


class Sd15(UnetFamily):
    """Stable Diffusion 1.5; kohya's format calls its layers as diffusers does."""

    TEXTS: ClassVar = {"text_encoder": "tokenizer"}
    LEARNING_TEXTS = ("text_encoder",)
    VERSION = "sd_v1"
    ARCHITECTURE = "stable-diffusion-v1/lora"
    IMPLEMENTATION = "https://github.com/CompVis/stable-diffusion"
    READER = "StableDiffusionLoraLoaderMixin"
    PREFIXES: ClassVar = {"unet": "lora_unet_", "text_encoder": "lora_te_"}

    @staticmethod
    def encode_texts(tokenizers: Mapping[str, Any], encoders: Mapping[str, Any], captions: Sequence[str]) -> Tensors:
        ((name, encoder),) = encoders.items()
        ids = tokenizers[name](
            list(captions), padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids
        return {"hidden": encoder(ids.to(encoder.device)).last_hidden_state}

    def more_conditions(self, batch: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        return {}
