"""Make a tiny FLUX.1 base model with random weights, offline: the stand-in for a 34 GB download in demos and tests.

    python make_tiny_flux.py OUT            # about 3 MB, trains in seconds on a CPU

The folder has the layout of a diffusers pipeline, with both kinds of blocks, so any program loads it. Pictures made with it are
noise. T5's vocabulary is one token for each character.

Editing rules: the same seed gives the same bytes on the same library versions; nothing is downloaded; what all tiny bases share is
in make_tiny_sdxl.py.
"""

from __future__ import annotations

import argparse
import json
import string
from pathlib import Path
from typing import Any

from lora.libraries import loading
from make_tiny_sdxl import END, make_vae, save, text_config, write_index, write_tokenizer, write_whole

TEXT_WIDTH, T5_WIDTH, HEAD_WIDTH, HEADS = 32, 32, 16, 2
CHARACTERS = sorted({*string.printable[:95]} - {" "})
SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}


def write_t5_tokenizer(folder: Path) -> None:
    """Write the two files that T5TokenizerFast reads: a unigram vocabulary of single characters, as sentencepiece would have it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    special = ["<pad>", "</s>", "<unk>"]
    pieces = [*((token, 0.0) for token in special), ("▁", -2.0), *((character, -3.0) for character in CHARACTERS)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, "extra_ids": 0, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def make_transformer() -> Any:
    """Two blocks that keep image and text apart, two that do not."""
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=HEAD_WIDTH,
        num_attention_heads=HEADS,
        joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )


def make(out: Path, *, seed: int = 0) -> None:
    """Write the model to `out`."""

    def write(part: Path) -> None:
        from transformers import CLIPTextModel, T5Config, T5EncoderModel

        sizes = {"d_model": T5_WIDTH, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": len(CHARACTERS) + 4}
        t5 = T5EncoderModel(T5Config(**sizes, feed_forward_proj="gated-gelu", is_encoder_decoder=False))
        clip = CLIPTextModel(text_config(TEXT_WIDTH, 2))
        quantless = {"use_quant_conv": False, "use_post_quant_conv": False}
        vae = make_vae(0.3611, shift_factor=0.1159, latent_channels=16, **quantless)
        save({"transformer": make_transformer(), "vae": vae, "text_encoder": clip, "text_encoder_2": t5}, part)
        write_tokenizer(part / "tokenizer", END)
        write_t5_tokenizer(part / "tokenizer_2")
        index = {
            "_class_name": "FluxPipeline",
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "text_encoder_2": ["transformers", "T5EncoderModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "tokenizer_2": ["transformers", "T5TokenizerFast"],
            "transformer": ["diffusers", "FluxTransformer2DModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }
        write_index(part, index, SCHEDULER)

    write_whole(out, seed, write)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Make a tiny random-weight FLUX.1 base model, offline.")
    parser.add_argument("out", type=Path, help="folder to write; one that already holds a model is left as it is")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights (default 0)")
    options = parser.parse_args()
    with loading():
        make(options.out, seed=options.seed)


if __name__ == "__main__":
    main()
