"""Bases and images for lora.py: the published sizes with random weights, or small ones, and pictures as large as a training needs.

    make_base(family, size, folder)   real: as published; deep: all of its layers, narrow; tiny: the base of the tests
    make_images(folder, pixels)       captioned noise, laid out for each of the programs

Speed and memory depend on shapes and precision, not on what a model knows. A large base is written one shard at a time, so that
neither memory nor a GPU has to hold it.

    python -m bench.lora_bases FAMILY SIZE FOLDER

Rules for editing: a base is a tiny one (scripts/make_tiny_*.py) whose parts are made anew with other sizes; it appears whole or not at all.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
IMAGES, LINKS = 16, 32
SHARD_BYTES = 4_000_000_000
POOL = 1 << 26

CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size": 49408}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20, "vocab_size": 49408}
VAE = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "sample_size": 1024}
# What differs from the tiny bases: the published configurations of stable-diffusion-xl-base-1.0 and FLUX.1-dev.
REAL: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "sdxl": {
        "unet": {
            "sample_size": 128,
            "block_out_channels": [320, 640, 1280],
            "transformer_layers_per_block": [1, 2, 10],
            "attention_head_dim": [5, 10, 20],
            "cross_attention_dim": 2048,
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        "vae": VAE,
        "text_encoder": {**CLIP_L, "projection_dim": 768},
        "text_encoder_2": {**CLIP_G, "projection_dim": 1280},
    },
    "flux": {
        "transformer": {
            "num_layers": 19,
            "num_single_layers": 38,
            "attention_head_dim": 128,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 768,
            "axes_dims_rope": [16, 56, 56],
        },
        "vae": VAE,
        "text_encoder": {**CLIP_L, "projection_dim": 768},
        "text_encoder_2": {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 32128},
    },
}
DEEP: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "sdxl": {"unet": {"transformer_layers_per_block": [1, 2, 10]}},
    "flux": {"transformer": {"num_layers": 19, "num_single_layers": 38}},
}
# Half of what the hub gives: SDXL in fp16, FLUX in bf16.
DTYPES = {"sdxl": "float16", "flux": "bfloat16"}
GIGABYTES = {"sdxl": 7, "flux": 34}


def make_base(family: str, size: str, folder: Path) -> None:
    """Write the base to `folder` unless it is there."""
    if (folder / "model_index.json").exists():
        return
    sys.path.insert(0, str(SCRIPTS))
    maker, part = importlib.import_module(f"make_tiny_{family}"), folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    maker.make(part)
    for name, changes in {"real": REAL, "deep": DEEP, "tiny": {}}[size].get(family, {}).items():
        remake(part / name, changes, DTYPES[family])
    os.replace(part, folder)


def remake(folder: Path, changes: Mapping[str, Any], dtype: str) -> None:
    """Replace a part by one of other sizes with random weights."""
    import torch

    with torch.device("meta"):
        model = blank(folder, changes)
    tied = {name for name in getattr(model, "_tied_weights_keys", None) or () if "shared" not in name}
    shapes = {name: value.shape for name, value in model.state_dict().items() if name not in tied}
    shutil.rmtree(folder)
    folder.mkdir()
    write_weights(folder, shapes, getattr(torch, dtype), "diffusion_pytorch_model" if hasattr(model, "save_config") else "model")
    (model.save_config if hasattr(model, "save_config") else model.config.save_pretrained)(folder)


def blank(folder: Path, changes: Mapping[str, Any]) -> Any:
    """The part's class with a changed configuration."""
    import diffusers
    import transformers

    config = {**json.loads((folder / "config.json").read_text()), **changes}
    if name := config.get("_class_name"):
        return getattr(diffusers, name).from_config(config)
    kind = getattr(transformers, config["architectures"][0])
    return kind(kind.config_class(**config))


def write_weights(folder: Path, shapes: Mapping[str, Any], dtype: Any, name: str) -> None:
    """Write random weights of those shapes, in shards, with the index that the libraries read."""
    from safetensors.torch import save_file

    parts = list(shards(shapes, dtype.itemsize))
    index: dict[str, str] = {}
    for number, names in enumerate(parts):
        file = f"{name}.safetensors" if len(parts) == 1 else f"{name}-{number + 1:05}-of-{len(parts):05}.safetensors"
        save_file({each: random_weight(each, shapes[each], dtype) for each in names}, folder / file, {"format": "pt"})
        index |= dict.fromkeys(names, file)
    if len(parts) > 1:
        total = sum(shape.numel() for shape in shapes.values()) * dtype.itemsize
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=1)
        (folder / f"{name}.safetensors.index.json").write_text(text + "\n")


def shards(shapes: Mapping[str, Any], itemsize: int) -> Iterator[list[str]]:
    """Names of weights, as many at a time as a file may hold."""
    names, held = list[str](), 0
    for name, shape in shapes.items():
        size = shape.numel() * itemsize
        if names and held + size > SHARD_BYTES:
            yield names
            names, held = [], 0
        names.append(name)
        held += size
    yield names


def random_weight(name: str, shape: Any, dtype: Any) -> Any:
    """Weights as small as fresh layers have; numbers are cut from one pool, since no two layers have to differ in all of them."""
    import torch

    if len(shape) < 2:
        return (torch.ones if "norm" in name and name.endswith("weight") else torch.zeros)(shape, dtype=dtype)
    count, width = shape.numel(), max(1, shape[1:].numel())
    numbers = pool(min(POOL, count))
    repeated = numbers.repeat(-(-count // len(numbers)))[:count]
    return (repeated.view(shape) * (3 * width) ** -0.5).to(dtype)


def pool(count: int) -> Any:
    """Normal numbers, the same ones for the same count."""
    import torch

    return torch.randn(count, generator=torch.Generator().manual_seed(count), dtype=torch.float32)


def make_images(folder: Path, pixels: int) -> None:
    """Write ours/ (images with .txt), sdxl/ (with metadata.jsonl, many names for each image) and flux/ (images alone)."""
    import numpy as np
    from PIL import Image

    if (folder / "ours").is_dir():
        return
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    for name in ("ours", "sdxl", "flux"):
        (part / name).mkdir(parents=True)
    draw, rows = np.random.default_rng(0), []
    for number in range(IMAGES):
        file = part / "ours" / f"{number:02}.jpg"
        coarse = Image.fromarray(draw.integers(0, 255, (16, 16, 3), dtype=np.uint8)).resize(
            (pixels, pixels), Image.Resampling.BICUBIC
        )
        fine = draw.integers(-20, 20, (pixels, pixels, 3))
        Image.fromarray((np.asarray(coarse) + fine).clip(0, 255).astype(np.uint8)).save(file, quality=92)
        caption = f"picture {number} of a field of colours, with grain, made for a benchmark"
        file.with_suffix(".txt").write_text(caption + "\n")
        os.link(file, part / "flux" / file.name)
        for copy in range(LINKS):  # enough that a program which reads images again in each epoch does not begin one all the time
            os.link(file, part / "sdxl" / f"{copy:02}-{file.name}")
            rows.append({"file_name": f"{copy:02}-{file.name}", "text": caption})
    (part / "sdxl" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.replace(part, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=sorted(REAL))
    parser.add_argument("size", choices=["real", "deep", "tiny"])
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    make_base(given.family, given.size, given.folder)


if __name__ == "__main__":
    main()
