"""The finished LoRA: written for diffusers and for kohya's readers (ComfyUI, A1111, sd-scripts), then read back and compared.

    write(…)    NAME.safetensors (PEFT keys and the adapter's settings) and NAME_kohya.safetensors (fp16, SDXL's original layer names)
    verify(…)   loads each into a fresh UNet with diffusers' own reader; every layer's update must be what was trained

Both formats have traps: converting PEFT keys drops attention layers when others are trained too, a file without the adapter's
settings is read as alpha = rank, and so is diffusers' own kohya conversion. Hence the own writer, and hence `verify`.

Editing rules: nothing is reported as finished before `verify` has passed.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from checkpoint import sync
from data import Photo
from ends import WrongFile
from options import Options
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save

Updates = dict[str, torch.Tensor]
ADAPTER = "default"


def write_atomically(path: Path, content: bytes) -> None:
    """All of the file or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    sync(part)
    os.replace(part, path)
    sync(path.parent)


def layers(unet: Any) -> dict[str, Any]:
    """The layers that learn, by name."""
    return {name: module for name, module in unet.named_modules() if len(getattr(module, "lora_A", ()))}


def factors(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(down, up) in fp32, made equally large by a power of two: their product is the same, and fp16 holds both well.

    Early in a training the up factor is so small that fp16 alone would lose most of it.
    """
    (adapter,) = layer.lora_A.keys()
    down, up = (part[adapter].weight.detach().cpu().float() for part in (layer.lora_A, layer.lora_B))
    sizes = [float(part.abs().max()) for part in (down, up)]
    shift = round(math.log2(sizes[0] / sizes[1]) / 2) if min(sizes) > 0 else 0
    return down * 2.0**-shift, up * 2.0**shift


def updates(unet: Any, rounding: torch.dtype = torch.float32) -> Updates:
    """What each layer adds to its weight, flattened to (out, in · kernel), from factors rounded as a file of that dtype holds them."""
    found = {}
    for name, layer in layers(unet).items():
        down, up = (part.to(rounding).float().flatten(1) for part in factors(layer))
        (scaling,) = layer.scaling.values()
        found[name] = scaling * (up @ down)
    return found


def original_name(name: str) -> str:
    """diffusers' name of an SDXL layer → the original one: down_blocks.1.attentions.0.proj_in → input_blocks.4.1.proj_in"""
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


def kohya_tensors(unet: Any) -> dict[str, torch.Tensor]:
    """Factors in fp16 and, for each layer, the alpha that gives the scale it was trained with."""
    found = {}
    for name, layer in layers(unet).items():
        key = "lora_unet_" + original_name(name).replace(".", "_")
        down, up = factors(layer)
        found[f"{key}.lora_down.weight"] = down.half().contiguous()
        found[f"{key}.lora_up.weight"] = up.half().contiguous()
        found[f"{key}.alpha"] = torch.tensor(float(layer.scaling[ADAPTER] * layer.r[ADAPTER]))
    return found


def kohya_metadata(options: Options, photos: Sequence[Photo], base_name: str, prediction: str) -> dict[str, str]:
    """What model managers show: network, training settings, and how often each tag of the captions occurs."""
    tags = Counter(tag.strip() for photo in photos for tag in photo.caption.split(",") if tag.strip())
    network_args = {"conv_dim": options.rank, "conv_alpha": options.alpha} if options.targets == "locon" else {}
    size = f"{options.resolution}x{options.resolution}"
    facts: dict[str, Any] = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": options.rank,
        "ss_network_alpha": options.alpha,
        "ss_network_args": json.dumps(network_args),
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_sd_model_name": base_name,
        "ss_output_name": options.name,
        "ss_resolution": size,
        "ss_num_train_images": len(photos),
        "ss_batch_size_per_device": options.batch_size,
        "ss_gradient_accumulation_steps": options.grad_accumulation,
        "ss_steps": options.steps,
        "ss_max_train_steps": options.steps,
        "ss_learning_rate": options.lr,
        "ss_unet_lr": options.lr,
        "ss_optimizer": "torch.optim.AdamW",
        "ss_lr_scheduler": options.lr_schedule,
        "ss_lr_warmup_steps": options.warmup,
        "ss_max_grad_norm": options.clip,
        "ss_min_snr_gamma": options.min_snr_gamma or None,
        "ss_caption_dropout_rate": options.caption_dropout,
        "ss_seed": options.seed,
        "ss_tag_frequency": json.dumps({"dataset": dict(tags.most_common())}, ensure_ascii=False),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": options.name,
        "modelspec.resolution": size,
        "modelspec.prediction_type": "v" if prediction == "v_prediction" else "epsilon",
        "modelspec.trigger_phrase": options.trigger,
    }
    return {key: str(value) for key, value in facts.items() if value != ""}


def with_hashes(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata plus the hashes by which model sites recognise a file: of its tensor bytes, and of 64 KiB at 1 MiB."""
    content = serialize(tensors, {key: value for key, value in metadata.items() if key.startswith("ss_")})
    body = content[8 + int.from_bytes(content[:8], "little") :]
    digest = hashlib.sha256(body).hexdigest()
    legacy = io.BytesIO(content)
    legacy.seek(0x100000)
    return {
        **metadata,
        "modelspec.hash_sha256": "0x" + digest,
        "sshs_model_hash": digest,
        "sshs_legacy_hash": hashlib.sha256(legacy.read(0x10000)).hexdigest()[:8],
    }


def adapter_settings(unet: Any) -> dict[str, str]:
    """The adapter's settings as diffusers stores them; without them a reader assumes alpha = rank."""
    settings = unet.peft_config[ADAPTER].to_dict()
    plain = {f"unet.{key}": sorted(value) if isinstance(value, set) else value for key, value in settings.items()}
    return {"format": "pt", "lora_adapter_metadata": json.dumps(plain, indent=2, sort_keys=True)}


def serialize(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file with its metadata in order: the library's own order varies, and so would the file's digest."""
    content = save(dict(tensors), dict(metadata))
    end = 8 + int.from_bytes(content[:8], "little")
    header = {"__metadata__": dict(sorted(metadata.items()))} | {
        k: v for k, v in json.loads(content[8:end]).items() if k != "__metadata__"
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + content[end:]


def write(unet: Any, final: Path, name: str, metadata: Mapping[str, str]) -> tuple[Path, Path]:
    """Write both files; (diffusers file, kohya file)."""
    plain = {f"unet.{key}": value.detach().cpu().contiguous() for key, value in get_peft_model_state_dict(unet).items()}
    diffusers_file, kohya_file = final / f"{name}.safetensors", final / f"{name}_kohya.safetensors"
    write_atomically(diffusers_file, serialize(plain, adapter_settings(unet)))
    kohya = kohya_tensors(unet)
    write_atomically(kohya_file, serialize(kohya, with_hashes(kohya, metadata)))
    return diffusers_file, kohya_file


def fresh_unet(config: Mapping[str, Any]) -> Any:
    """A UNet of the same shape whose weights are never filled in, so that it takes addresses but next to no memory."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(config))
    return unet.to_empty(device="cpu")


def read_back(path: Path, config: Mapping[str, Any]) -> Updates:
    """What diffusers' own reader makes of a file."""
    from diffusers.loaders.lora_pipeline import StableDiffusionXLLoraLoaderMixin as Reader

    unet = fresh_unet(config)
    tensors, alphas, metadata = Reader.lora_state_dict(
        str(path), unet_config=unet.config, return_lora_metadata=True, local_files_only=True
    )
    Reader.load_lora_into_unet(tensors, network_alphas=alphas, unet=unet, metadata=metadata, low_cpu_mem_usage=True)
    return updates(unet)


def compare(path: Path, expected: Updates, found: Updates) -> float:
    """The largest difference relative to the layer's largest value; raises WrongFile unless all are rounding."""
    missing = sorted(set(expected) ^ set(found))
    if missing:
        raise WrongFile(
            f"{path} does not read back: {len(missing)} of {len(expected)} layers are missing or foreign, such as {missing[0]}"
        )
    worst = 0.0
    for name, update in expected.items():
        error = (found[name] - update).abs().max() / update.abs().max().clamp_min(1e-30)
        if not error <= 1e-5:
            raise WrongFile(f"{path} does not read back: the update of {name} differs by {error:.3g} of its largest value")
        worst = max(worst, float(error))
    return worst


def verify(unet: Any, diffusers_file: Path, kohya_file: Path) -> None:
    """Read both files back; raises WrongFile unless every layer's update is what was trained."""
    for path, rounding in ((diffusers_file, torch.float32), (kohya_file, torch.float16)):
        expected = updates(unet, rounding)
        worst = compare(path, expected, read_back(path, unet.config))
        print(f"verified {path.name}: {len(expected)} layers read back, largest difference {worst:.1e}", flush=True)
