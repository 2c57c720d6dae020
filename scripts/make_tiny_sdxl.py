"""Make a tiny SDXL base model with random weights, offline: the stand-in for a 7 GB download in demos and tests.

    python make_tiny_sdxl.py OUT            # about 13 MB, trains in seconds on a CPU
    python make_tiny_sdxl.py OUT --full     # the depth of the real model, so every real layer name occurs

The folder has the layout of a diffusers SDXL pipeline and any SDXL program loads it. Pictures made with it are noise:
what it shows is that the whole path works and that a training lowers the loss.

Editing rules: the same seed gives the same bytes on the same library versions; nothing is downloaded; torch, diffusers and
transformers only.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lora.libraries import loading

# Widths are multiples of 32 because SDXL normalises in groups of 32 channels.
UNET_WIDTHS = (32, 64, 96)
VAE_WIDTHS = (32, 32, 64, 64)
TEXT_WIDTHS = (32, 64)
START, END = "<|startoftext|>", "<|endoftext|>"
# Frequent English letter pairs, two by two: enough that an ordinary caption fits in CLIP's 77 tokens.
PAIRS = "thheineranreonatenndtiesorteofedisitalarsttontngsehaasouiolevecomedehiriroicneearace"


def byte_symbols() -> list[str]:
    """The 256 printable stand-ins for bytes that every byte-level BPE vocabulary starts with, in GPT-2's order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]


def vocabulary() -> tuple[dict[str, int], list[str]]:
    """(token → id, merges): bytes, bytes that end a word, the letter pairs in both forms, and CLIP's two special tokens."""
    symbols = byte_symbols()
    pairs = [PAIRS[i : i + 2] for i in range(0, len(PAIRS), 2)]
    merges = [form for pair in pairs for form in (f"{pair[0]} {pair[1]}</w>", f"{pair[0]} {pair[1]}")]
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *(merge.replace(" ", "") for merge in merges), START, END]
    return {token: number for number, token in enumerate(tokens)}, merges


def write_tokenizer(folder: Path, pad: str) -> None:
    """Write the three files that CLIPTokenizer reads."""
    ids, merges = vocabulary()
    folder.mkdir(parents=True)
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, **special}
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def make_unet(full: bool) -> Any:
    """SDXL's UNet: three levels, attention on the lower two, text and size conditioning."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=UNET_WIDTHS,
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10) if full else (1, 1, 2),
        attention_head_dim=(1, 2, 3),
        use_linear_projection=True,
        cross_attention_dim=sum(TEXT_WIDTHS),
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=6 * 32 + TEXT_WIDTHS[1],
    )


def make_vae(scaling_factor: float = 0.13025, **more: Any) -> Any:
    """The image codec of all families: eight times smaller on a side, four channels unless told otherwise."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        sample_size=128,
        scaling_factor=scaling_factor,
        **{"latent_channels": 4, "block_out_channels": VAE_WIDTHS, **more},
    )


def text_config(width: int, layers: int, activation: str = "quick_gelu", pad: str = END) -> Any:
    """CLIP's text encoder in small."""
    from transformers import CLIPTextConfig

    ids, _ = vocabulary()
    return CLIPTextConfig(
        vocab_size=len(ids),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        projection_dim=TEXT_WIDTHS[1],
        hidden_act=activation,
        bos_token_id=ids[START],
        eos_token_id=ids[END],
        pad_token_id=ids[pad],
    )


def make_text_encoders(full: bool) -> tuple[Any, Any]:
    """CLIP L and CLIP bigG in small; their hidden states side by side are what the UNet attends to."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    first = CLIPTextModel(text_config(TEXT_WIDTHS[0], 12 if full else 2))
    second = CLIPTextModelWithProjection(text_config(TEXT_WIDTHS[1], 32 if full else 2, "gelu", "!"))
    return first, second


EULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}


def write_index(folder: Path, index: Mapping[str, Any], scheduler: Mapping[str, Any]) -> None:
    """Write the scheduler and the file that tells diffusers which class reads which folder."""
    import diffusers

    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler, indent=2) + "\n")
    whole = {"_class_name": index["_class_name"], "_diffusers_version": diffusers.__version__, **index}
    whole["scheduler"] = ["diffusers", scheduler["_class_name"]]
    (folder / "model_index.json").write_text(json.dumps(whole, indent=2) + "\n")


def write_whole(out: Path, seed: int, write: Callable[[Path], None]) -> None:
    """Have a model written to `out`; the folder appears whole or not at all, and one that is there is left as it is."""
    import diffusers
    import torch
    import transformers

    if (out / "model_index.json").exists():
        return
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    torch.manual_seed(seed)
    write(part)
    os.replace(part, out)


def save(models: Mapping[str, Any], folder: Path) -> None:
    """Write the weights in half precision."""
    import torch

    for name, model in models.items():
        model.to(torch.float16).save_pretrained(folder / name)


def make(out: Path, *, full: bool = False, seed: int = 0) -> None:
    """Write the model to `out`."""

    def write(part: Path) -> None:
        first, second = make_text_encoders(full)
        save({"unet": make_unet(full), "vae": make_vae(), "text_encoder": first, "text_encoder_2": second}, part)
        write_tokenizer(part / "tokenizer", END)
        write_tokenizer(part / "tokenizer_2", "!")
        index = {
            "_class_name": "StableDiffusionXLPipeline",
            "force_zeros_for_empty_prompt": True,
            "add_watermarker": None,
            "text_encoder": ["transformers", "CLIPTextModel"],
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }
        write_index(part, index, EULER)

    write_whole(out, seed, write)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Make a tiny random-weight SDXL base model, offline.")
    parser.add_argument("out", type=Path, help="folder to write; one that already holds a model is left as it is")
    parser.add_argument("--full", action="store_true", help="the real model's depth and layer names (about 35 MB)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights (default 0)")
    options = parser.parse_args()
    with loading():
        make(options.out, full=options.full, seed=options.seed)
    size = sum(file.stat().st_size for file in options.out.rglob("*") if file.is_file())
    sys.stdout.write(f"tiny SDXL base in {options.out}, {size / 1e6:.1f} MB\n")


if __name__ == "__main__":
    main()
