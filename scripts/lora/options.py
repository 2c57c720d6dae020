"""Every flag that all trainers have, declared once: name, default, unit, limits and help are the fields of `Options`.

A family's train.py derives its own class: other defaults (`revised`) and flags of its own (`flag`). The command line, the
`--config` file (a JSON object with the same names) and the tables in docs/flags.md all come from these fields; flags.py beside
this file says how.

Editing rules: standard library only. Mark a field `free=True` only if it cannot change what is learnt: a training resumes only
with the same values of all others.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lora.flags import Settings, flag, flags

PLACES = "where things are"
IMAGES = "images and captions"
NETWORK = "network"
TRAINING = "training"
MACHINE = "memory and speed"
REPORTS = "samples and validation"
SAVING = "checkpoints"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(Settings):
    """The settings of one training, checked; the defaults suit a real SDXL base on one GPU of 24 GB or more."""

    PROGRAM: ClassVar[str] = "Train a LoRA from a folder of captioned images."
    ENDS: ClassVar[str] = (
        "0 done, 2 bad input, 69 the hub cannot be reached, 70 the written LoRA is wrong, 71 out of memory,"
        " 74 a file cannot be written, 75 interrupted (run again to resume), 76 the loss is no longer a number"
    )
    USUAL_ALPHA: ClassVar[float] = 0.5
    """Which share of the rank alpha is where it is not given."""
    GROUPS: ClassVar = (PLACES, IMAGES, NETWORK, TRAINING, MACHINE, REPORTS, SAVING)

    base: str = flag(
        "stabilityai/stable-diffusion-xl-base-1.0",
        PLACES,
        "model to train on: a diffusers folder, a single .safetensors file or a hub id",
        env="RT_BASE",
        free=True,
    )
    dataset: str = flag(
        "dataset", PLACES, "folder with images and, beside each, its caption as a .txt file", env="RT_DATASET", free=True
    )
    output: str = flag("output", PLACES, "folder for checkpoints/, samples/, final/ and cache/", env="RT_OUTPUT", free=True)
    metrics: str = flag(
        "", PLACES, "file that gets one JSON object a line (default OUTPUT/metrics.jsonl)", env="RT_METRICS", free=True
    )
    cache: str = flag("", PLACES, "folder for encoded images and captions (default OUTPUT/cache)", env="RT_CACHE", free=True)
    name: str = flag("lora", PLACES, "name of the LoRA: final/NAME.safetensors and final/NAME_kohya.safetensors", free=True)

    smoke: bool = flag(False, PLACES, "train on a made-up base and made-up images in a temporary folder", free=True)

    resolution: int = flag(
        1024, IMAGES, "training size, px: an image keeps its shape and gets about this squared", low=32, high=4096
    )
    more_resolutions: str = flag(
        "", IMAGES, "further sizes, px, separated by commas: images at least that large are seen in each, too"
    )
    bucket_step: int = flag(64, IMAGES, "sides are multiples of this, px; itself a multiple of 32", low=32, high=512)
    bucket_min: int = flag(0, IMAGES, "shortest side of a bucket, px (0: half the resolution)", low=0, high=4096)
    bucket_max: int = flag(0, IMAGES, "longest side of a bucket, px (0: twice the resolution)", low=0, high=8192)
    min_image: int = flag(
        0, IMAGES, "refuse images whose shorter side is below this, px (0: a quarter of the resolution)", low=0, free=True
    )
    convert_images: bool = flag(
        False, IMAGES, "accept CMYK, 16-bit and transparent images: to RGB, to 8 bit, onto white", free=True
    )
    trigger: str = flag("", IMAGES, "word put in front of captions that lack it; the whole caption of an image without one")
    allow_missing_captions: bool = flag(False, IMAGES, "an image without a caption trains with an empty one", free=True)
    shuffle_tags: bool = flag(False, IMAGES, "show the comma-separated tags of captions in other orders, eight for each caption")
    keep_tags: int = flag(1, IMAGES, "first tags that --shuffle-tags leaves in place, such as the trigger", low=0, high=1000)
    flip: bool = flag(False, IMAGES, "show half of the draws mirrored; only for what has no left and right")
    masks: str = flag(
        "none", IMAGES, "where images count: their opacity (alpha), or NAME.mask.png beside them, white where they do (files)",
        choices=("none", "alpha", "files"),
    )  # fmt: skip
    mask_background: float = flag(0.0, IMAGES, "how much the masked parts count", low=0, high=1)
    prior: str = flag(
        "", IMAGES, "folder of images of what the base should not forget, captioned without the trigger; each epoch has as many"
        " of them as of the dataset's", env="RT_PRIOR", free=True,
    )  # fmt: skip
    prior_prompt: str = flag("", IMAGES, "let the base itself make the prior images, of this prompt, such as: photo of a cat")
    prior_images: int = flag(100, IMAGES, "how many images it makes", low=1, high=10_000)
    prior_weight: float = flag(1.0, IMAGES, "how much prior images count", low=0, high=100)
    caption_dropout: float = flag(0.05, IMAGES, "share of draws that train with an empty caption", low=0, high=1)

    network: str = flag(
        "lora", NETWORK, "what learns beside each layer: LoRA, DoRA (own strength for each output), LoHa or LoKr (products of factors)",
        choices=("lora", "dora", "loha", "lokr"),
    )  # fmt: skip
    targets: str = flag(
        "attention", NETWORK, "layers that learn: attention, or locon: also feed-forward, projections and convolutions",
        choices=("attention", "locon"),
    )  # fmt: skip
    rank: int = flag(16, NETWORK, "rank of each layer's update", low=1, high=1024)
    alpha: float = flag(0.0, NETWORK, "strength; the update is scaled by alpha / rank (0: half the rank)", low=0, high=4096)
    dropout: float = flag(
        0.0, NETWORK, "share of what goes into each update that is left out at random while it learns, against learning by heart",
        low=0, high=0.9,
    )  # fmt: skip
    text_lr: float = flag(0.0, NETWORK, "learning rate of the CLIP text encoders (0: they do not learn)", low=0, high=10)
    text_rank: int = flag(0, NETWORK, "rank in the text encoders (0: as the others)", low=0, high=1024)
    text_alpha: float = flag(0.0, NETWORK, "alpha in the text encoders (0: scaled as the others are)", low=0, high=4096)

    steps: int = flag(1500, TRAINING, "optimiser steps", low=1, high=1_000_000)
    batch_size: int = flag(1, TRAINING, "images a pass", low=1, high=256)
    grad_accumulation: int = flag(1, TRAINING, "passes an optimiser step", low=1, high=1024)
    optimizer: str = flag(
        "adamw", TRAINING, "adamw; adamw8bit, adafactor or came to save memory; prodigy to find the rate by itself (with --lr 1)",
        choices=("adamw", "adamw8bit", "prodigy", "adafactor", "came"),
    )  # fmt: skip
    lr: float = flag(1e-4, TRAINING, "learning rate", low=1e-9, high=10)
    lr_schedule: str = flag(
        "constant", TRAINING, "course of the rate after warm-up; stable falls over the last fifth",
        choices=("constant", "cosine", "cosine-restarts", "linear", "rex", "stable"),
    )  # fmt: skip
    lr_cycles: int = flag(3, TRAINING, "falls of the rate with cosine-restarts", low=1, high=1000)
    warmup: int = flag(0, TRAINING, "steps over which the rate rises from 0", low=0, high=1_000_000)
    weight_decay: float = flag(
        0.01, TRAINING, "share of the weights that is taken away at each step, times the rate", low=0, high=1
    )
    clip: float = flag(1.0, TRAINING, "largest gradient norm (0: no limit)", low=0, high=1000)
    ema: float = flag(
        0.0, TRAINING, "keep a running average of the adapter, of this decay, and use it for all that is shown and saved (0: off)",
        low=0, high=0.99999,
    )  # fmt: skip
    seed: int = flag(42, TRAINING, "seed of everything random", low=0, high=2**31 - 1)
    spike: float = flag(
        3.0, TRAINING, "a loss this many times the largest of the last 200 steps is not learnt from (0: any is, while it is a number)",
        low=0, high=1000,
    )  # fmt: skip
    rollbacks: int = flag(
        2, TRAINING, "how often such a loss, or one that is no number, may send the training back to its last checkpoint, at half the"
        " rate from there on", low=0, high=100,
    )  # fmt: skip
    plateau: str = flag(
        "none", TRAINING, "when the validation loss no longer falls: go on (none), end the training (stop), or halve the rate (cut)",
        choices=("none", "stop", "cut"),
    )  # fmt: skip
    patience: int = flag(3, TRAINING, "validations without a lower loss that make a plateau", low=1, high=1000)

    precision: str = flag("auto", MACHINE, "auto: bf16 where the GPU has it, else fp32", choices=("auto", "bf16", "fp32"))
    quantize: str = flag(
        "auto", MACHINE, "hold the frozen net in 8 or 4 bits: slower and less exact, and smaller; auto: only if the GPU is too small",
        choices=("auto", "none", "fp8", "int8", "nf4"),
    )  # fmt: skip
    gradient_checkpointing: str = flag(
        "auto", MACHINE, "halve memory for 1.8 times the time; auto: only if the GPU is too small", choices=("auto", "on", "off"),
        free=True,
    )  # fmt: skip
    vram: float = flag(0.0, MACHINE, "GPU memory to make do with, GiB (0: all that the GPU has)", low=0, high=1000, free=True)
    compile: bool = flag(
        False, MACHINE, "compile the net's blocks first: minutes at the start, faster steps, other roundings", free=True
    )
    ranks: int = flag(
        1, MACHINE, "processes that train together, one a GPU; each step learns from the passes of all of them (0: one for each GPU)",
        low=0, high=64, free=True,
    )  # fmt: skip
    threads: int = flag(0, MACHINE, "CPU threads of each process (0: as torch chooses)", low=0, high=1024, free=True)

    log_every: int = flag(10, REPORTS, "steps between progress lines", low=1, free=True)
    val_every: int = flag(250, REPORTS, "steps between validations (0: only at start and end)", low=0, free=True)
    val_fraction: float = flag(
        0.0, REPORTS, "share of images held out for validation (0: validate on training images)", low=0, high=0.5
    )
    sample_every: int = flag(250, REPORTS, "steps between sample images (0: only at the end)", low=0, free=True)
    sample_count: int = flag(
        2, REPORTS, "captions of the dataset that are sampled when no prompts are given (0: none)", low=0, high=64, free=True
    )
    sample_prompts: str = flag("", REPORTS, "prompts to sample instead, separated by |", free=True)
    sample_steps: int = flag(25, REPORTS, "denoising steps of a sample", low=1, high=1000, free=True)
    sample_guidance: float = flag(5.0, REPORTS, "guidance scale of a sample", low=0, high=100, free=True)
    tensorboard: bool = flag(True, REPORTS, "write the metrics to OUTPUT/tensorboard, too", free=True)

    checkpoint_every: int = flag(250, SAVING, "steps between checkpoints (0: only when stopped and at the end)", low=0, free=True)
    keep_checkpoints: int = flag(3, SAVING, "newest checkpoints that are kept", low=1, high=1000, free=True)
    export_every: int = flag(
        0,
        SAVING,
        "steps between LoRAs for use on the way: final/NAME-000250.safetensors and so on (0: only at the end)",
        low=0,
        free=True,
    )

    @property
    def strength(self) -> float:
        """Alpha: as given, else as is usual for the rank."""
        return self.alpha or self.rank * self.USUAL_ALPHA

    @property
    def output_dir(self) -> Path:
        """Where everything goes."""
        return Path(self.output)

    @property
    def metrics_path(self) -> Path:
        """The file of metrics."""
        return Path(self.metrics) if self.metrics else self.output_dir / "metrics.jsonl"

    @property
    def cache_dir(self) -> Path:
        """Where encoded images and captions are kept."""
        return Path(self.cache) if self.cache else self.output_dir / "cache"

    @property
    def resolutions(self) -> tuple[int, ...]:
        """All training sizes, px, the main one first."""
        return self.resolution, *(int(size) for size in self.more_resolutions.split(",") if size.strip())

    def bucket_limits(self, resolution: int) -> tuple[int, int]:
        """Shortest and longest side of a resolution's buckets, px, rounded to the step."""
        step = self.bucket_step
        low = self.bucket_min or resolution // 2
        high = self.bucket_max or resolution * 2
        return max(step, low // step * step), max(step, high // step * step)

    @property
    def smallest_image(self) -> int:
        """Shortest side an image may have, px."""
        return self.min_image or self.resolution // 4

    def problems(self) -> list[str]:
        """Everything wrong with the values, each as one sentence that names the flag."""
        found = Settings.problems(self)
        if self.bucket_step % 32:
            found.append(f"--bucket-step is {self.bucket_step}, it must be a multiple of 32")
        try:
            sizes = {"--resolution": self.resolutions[:1], "--more-resolutions": self.resolutions[1:]}
        except ValueError:
            return [*found, f"--more-resolutions is {self.more_resolutions!r}, it must be whole numbers separated by commas"]
        for shown, size in ((shown, size) for shown, several in sizes.items() for size in several):
            low, high = self.bucket_limits(size)
            if size < max(32, self.bucket_step):
                found.append(f"{shown} is {size}, it must be at least --bucket-step, {self.bucket_step}")
            elif not low <= size <= high:
                found.append(f"{shown} is {size}, outside the bucket sides {low} to {high}")
        if self.prior_prompt and not self.prior_prompt.strip():
            found.append("--prior-prompt is blank: say what the prior images are to show, or leave it out")
        if self.prior and self.prior_prompt:
            found.append("--prior is a folder of prior images and --prior-prompt lets the base make them: give one of the two")
        if self.smoke and self.ranks != 1:
            found.append(f"--ranks is {self.ranks} with --smoke, which makes everything up for one process")
        if self.plateau != "none" and not self.val_every:
            found.append(f"--plateau {self.plateau} needs --val-every: a plateau is seen by validations")
        if self.network == "dora" and self.quantize not in ("auto", "none"):
            found.append(
                f"--quantize {self.quantize} with --network dora: its strengths are those of exact weights; use another network"
            )
        if not self.name or any(not (c.isalnum() or c in "-_.") for c in self.name) or self.name.startswith("."):
            found.append(f"--name is {self.name!r}: letters, digits, '-', '_' and '.' only, and no leading '.'")
        return found

    def fingerprint(self) -> dict[str, Any]:
        """The values that decide what is learnt: a checkpoint only continues under the same ones."""
        decisive = {name: getattr(self, name) for name, (_, _, about) in flags(type(self)).items() if not about.free}
        if self.prior_prompt:
            # The base makes the prior images as it makes samples.
            decisive |= {name: getattr(self, name) for name in ("sample_steps", "sample_guidance")}
        if self.plateau != "none":
            decisive["val_every"] = self.val_every
        # More steps at a constant rate are the same training, longer. What auto stands for, and how many passes all ranks make, is added
        # where it is known.
        return {**decisive, "steps": "any" if self.lr_schedule == "constant" else self.steps}


@dataclass(frozen=True, slots=True, kw_only=True)
class UnetOptions(Options):
    """What families with a UNet have besides: convolutions, and noise that is removed step by step."""

    conv_rank: int = flag(0, NETWORK, "rank of convolutions wider than a pixel (0: as the others)", low=0, high=1024)
    conv_alpha: float = flag(0.0, NETWORK, "their alpha, with --conv-rank (0: scaled as the others are)", low=0, high=4096)
    min_snr_gamma: float = flag(5.0, TRAINING, "min-SNR weighting of the loss (0: off)", low=0, high=100)
    debiased: bool = flag(
        False, TRAINING, "weight the loss by one over the root of the signal-to-noise ratio, instead of min-SNR"
    )
    noise_offset: float = flag(
        0.0, TRAINING, "noise added to whole channels, so that very dark and bright pictures can be learnt (0: off; 0.0357 is usual)",
        low=0, high=1,
    )  # fmt: skip
