"""What a finished file says of itself: the ss_* and modelspec.* metadata that model managers show.

Editing rules: everything follows from the options and the dataset, and no time of day is among it, so that a resumed training
gives the very bytes of one that was never interrupted.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora.data import Photo, group, of_epoch
from lora.family import Family
from lora.options import Options, UnetOptions

OPTIMIZERS = {
    "adamw": "torch.optim.AdamW",
    "adamw8bit": "bitsandbytes.optim.AdamW8bit",
    "prodigy": "Prodigy(use_bias_correction=True,safeguard_warmup=True)",
    "adafactor": "transformers.optimization.Adafactor(scale_parameter=False,relative_step=False)",
    "came": "CAME",
}


def network(options: Options) -> dict[str, Any]:
    """The network: LoRA by kohya's own module, the others as LyCORIS names them."""
    wide = {}
    if isinstance(options, UnetOptions) and options.targets == "locon":
        rank = options.conv_rank or options.rank
        wide = {
            "conv_dim": rank,
            "conv_alpha": (options.conv_rank and options.conv_alpha) or options.strength * rank / options.rank,
        }
    algorithm = {"lora": {}, "dora": {"algo": "lora", "dora_wd": True}}.get(options.network, {"algo": options.network})
    return {
        "ss_network_module": "lycoris.kohya" if algorithm else "networks.lora",
        "ss_network_dim": options.rank,
        "ss_network_alpha": options.strength,
        "ss_network_dropout": options.dropout or None,
        "ss_network_args": json.dumps({**algorithm, **wide}),
    }


def dataset(options: Options, photos: Sequence[Photo]) -> dict[str, Any]:
    """Images, their buckets, and how often each tag of the captions occurs."""
    own = [photo for photo in photos if not photo.prior]
    captions = {photo.path: photo.caption for photo in own}.values()
    tags = Counter(tag.strip() for caption in captions for tag in caption.split(",") if tag.strip())
    sizes = Counter(dict.fromkeys(sorted({photo.bucket for photo in own}), 0))
    for photo in own:
        sizes[photo.bucket] += photo.repeats
    buckets = {str(number): {"resolution": list(size), "count": count} for number, (size, count) in enumerate(sizes.items())}
    per_epoch = len(group(of_epoch(photos, 0), options.batch_size, options.seed, epoch=0))
    steps_per_epoch = math.ceil(per_epoch / options.grad_accumulation)
    return {
        "ss_num_train_images": sum(sizes.values()),
        "ss_num_reg_images": len(photos) - len(own),
        "ss_prior_loss_weight": options.prior_weight if len(own) < len(photos) else None,
        "ss_shuffle_caption": options.shuffle_tags,
        "ss_keep_tokens": options.keep_tags if options.shuffle_tags else None,
        "ss_flip_aug": options.flip,
        "ss_masked_loss": options.masks != "none",
        "ss_num_batches_per_epoch": per_epoch,
        "ss_num_epochs": math.ceil(options.steps / steps_per_epoch),
        "ss_epoch": math.ceil(options.steps / steps_per_epoch),
        "ss_enable_bucket": True,
        "ss_bucket_info": json.dumps({"buckets": buckets}),
        "ss_tag_frequency": json.dumps({"dataset": dict(tags.most_common())}, ensure_ascii=False),
        "modelspec.tags": ", ".join(tag for tag, _ in tags.most_common(20)),
    }


def training(options: Options) -> dict[str, Any]:
    """How it was trained."""
    debiased = getattr(options, "debiased", False)
    return {
        "ss_batch_size_per_device": options.batch_size,
        "ss_gradient_accumulation_steps": options.grad_accumulation,
        "ss_steps": options.steps,
        "ss_max_train_steps": options.steps,
        "ss_learning_rate": options.lr,
        "ss_unet_lr": options.lr,
        "ss_text_encoder_lr": options.text_lr or None,
        "ss_optimizer": OPTIMIZERS[options.optimizer],
        "ss_lr_scheduler": options.lr_schedule,
        "ss_lr_warmup_steps": options.warmup,
        "ss_max_grad_norm": options.clip,
        "ss_min_snr_gamma": (not debiased and getattr(options, "min_snr_gamma", 0)) or None,
        "ss_debiased_estimation": debiased or None,
        "ss_noise_offset": getattr(options, "noise_offset", 0) or None,
        "ss_caption_dropout_rate": options.caption_dropout,
        "ss_seed": options.seed,
    }


def model_name(name: str) -> str:
    """A base as others may know it: where it lies on this disk is nobody's business, and differs from machine to machine."""
    path = Path(name).expanduser()
    return path.name if path.exists() else name


def metadata(family: Family, photos: Sequence[Photo], options: Options) -> dict[str, str]:
    """All of it, as text; the options are those that came true, such as the steps of a training that ended early."""
    size = f"{options.resolution}x{options.resolution}"
    facts: dict[str, Any] = {
        **network(options),
        "ss_base_model_version": family.VERSION,
        "ss_sd_model_name": model_name(family.base.name),
        "ss_output_name": options.name,
        "ss_resolution": size,
        **dataset(options, photos),
        **training(options),
        "ss_mixed_precision": "bf16" if "bfloat16" in str(family.dtype) else "no",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": family.ARCHITECTURE,
        "modelspec.implementation": family.IMPLEMENTATION,
        "modelspec.title": options.name,
        "modelspec.resolution": size,
        "modelspec.trigger_phrase": options.trigger,
        **family.spec(),
    }
    return {key: str(value) for key, value in facts.items() if value not in ("", None)}
