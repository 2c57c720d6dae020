"""Every flag that all trainers have, declared once: name, default, unit, limits and help are the fields of `Options`.

A family's train.py derives its own class: other defaults (`revised`) and flags of its own (`flag`). The command line, the
`--config` file (a JSON object with the same names) and the tables in docs/training.md all come from these fields. Flags on the
command line win over the file, the file over the environment, the environment over the default.

Editing rules: standard library only, so that a wrong flag is reported before torch is loaded. Mark a field `free=True` only if
it cannot change what is learnt: a training resumes only with the same values of all others.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_type_hints

PLACES = "where things are"
IMAGES = "images and captions"
NETWORK = "network"
TRAINING = "training"
REPORTS = "samples and validation"
SAVING = "checkpoints"
GROUPS = (PLACES, IMAGES, NETWORK, TRAINING, REPORTS, SAVING)
Kind = TypeVar("Kind", bound="Options")


@dataclass(frozen=True, slots=True)
class Flag:
    """What the command line says about one option; `low` and `high` are inclusive limits."""

    group: str
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    env: str = ""
    free: bool = False
    """Whether a resumed training may change it: it says where things are or what is reported, not what is learnt."""


def flag(default: Any, group: str, text: str, **more: Any) -> Any:
    """One field of Options with its Flag beside it."""
    return field(default=default, metadata={"flag": Flag(group, text, **more)})


def revised(name: str, default: Any, text: str = "", **more: Any) -> Any:
    """A field of a family's class that has another default, and perhaps another help, than that of all trainers."""
    (known,) = (f.metadata["flag"] for f in dataclasses.fields(Options) if f.name == name)
    return field(default=default, metadata={"flag": dataclasses.replace(known, help=text or known.help, **more)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The settings of one training, checked; the defaults suit a real SDXL base on one GPU of 24 GB or more."""

    FAMILY: ClassVar[str] = "image model"

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
    prior_weight: float = flag(1.0, IMAGES, "how much prior images count", low=0, high=100)
    caption_dropout: float = flag(0.05, IMAGES, "share of draws that train with an empty caption", low=0, high=1)

    preset: str = flag(
        "",
        NETWORK,
        "size: what was left at its default is chosen by the number of images; or a file like scripts/lora/presets.json",
    )
    network: str = flag(
        "lora", NETWORK, "what learns beside each layer: LoRA, DoRA (own strength for each output), LoHa or LoKr (products of factors)",
        choices=("lora", "dora", "loha", "lokr"),
    )  # fmt: skip
    targets: str = flag(
        "attention", NETWORK, "layers that learn: attention, or locon: also feed-forward, projections and convolutions",
        choices=("attention", "locon"),
    )  # fmt: skip
    rank: int = flag(16, NETWORK, "rank of each layer's update", low=1, high=1024)
    alpha: float = flag(8.0, NETWORK, "strength; the update is scaled by alpha / rank", low=0.001, high=4096)
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
    precision: str = flag("auto", TRAINING, "auto: bf16 where the GPU has it, else fp32", choices=("auto", "bf16", "fp32"))
    gradient_checkpointing: str = flag(
        "auto",
        TRAINING,
        "halve memory for 1.8 times the time; auto: only if the GPU is too small",
        choices=("auto", "on", "off"),
        free=True,
    )
    threads: int = flag(0, TRAINING, "CPU threads (0: as torch chooses)", low=0, high=1024, free=True)

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

    checkpoint_every: int = flag(250, SAVING, "steps between checkpoints (0: only when stopped and at the end)", low=0, free=True)
    keep_checkpoints: int = flag(3, SAVING, "newest checkpoints that are kept", low=1, high=1000, free=True)

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

    def fingerprint(self) -> dict[str, Any]:
        """The values that decide what is learnt: a checkpoint only continues under the same ones."""
        decisive = {name: getattr(self, name) for name, (_, _, about) in flags(type(self)).items() if not about.free}
        # More steps at a constant rate are the same training, longer.
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


def flags(kind: type[Options]) -> dict[str, tuple[type, Any, Flag]]:
    """name → (type, default, Flag) of every option of a trainer, by group and in order."""
    kinds = get_type_hints(kind)
    fields = sorted(dataclasses.fields(kind), key=lambda f: GROUPS.index(f.metadata["flag"].group))
    return {f.name: (kinds[f.name], f.default, f.metadata["flag"]) for f in fields}


def build_parser(options: type[Options], env: Mapping[str, str]) -> argparse.ArgumentParser:
    """The command line; the environment replaces defaults where a flag names a variable."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        description=f"Train a LoRA for {options.FAMILY} from a folder of captioned images.",
        epilog="Exit codes: 0 done, 2 bad input, 69 the hub cannot be reached, 70 the written LoRA is wrong, 71 out of memory,"
        " 74 a file cannot be written, 75 interrupted (run again to resume), 76 the loss is no longer a number.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="JSON object of options, named as the flags are")
    parser.add_argument("--smoke", action="store_true", help="train on a made-up base and made-up images in a temporary folder")
    groups = {title: parser.add_argument_group(title) for title in GROUPS}
    for name, (kind, default, about) in flags(options).items():
        default = env.get(about.env) or default
        source = f", or ${about.env}" if about.env else ""
        text = f"{about.help} (default {default}{source})" if default not in ("", False) else f"{about.help}{source}"
        arguments: dict[str, Any] = {"help": text.replace("%", "%%"), "default": default}
        if kind is bool:
            arguments["action"] = argparse.BooleanOptionalAction
        else:
            arguments |= {"type": kind, "choices": about.choices or None, "metavar": None if about.choices else name.upper()}
        groups[about.group].add_argument("--" + name.replace("_", "-"), **arguments)
    return parser


def config_arguments(path: str) -> list[str]:
    """The options of a JSON file as arguments, so that one parser checks names and types of both."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the configuration {path}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"the configuration {path} must be a JSON object of options")
    arguments = []
    for key, value in content.items():
        name = "--" + key.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(name if value else "--no-" + name[2:])
        else:
            arguments.append(f"{name}={value}")
    return arguments


def problems(options: Options) -> list[str]:
    """Everything wrong with the values, each as one sentence that names the flag."""
    found = []
    for name, (_, _, about) in flags(type(options)).items():
        value, shown = getattr(options, name), "--" + name.replace("_", "-")
        if about.low is not None and not value >= about.low:
            found.append(f"{shown} is {value}, it must be at least {about.low:g}")
        if about.high is not None and not value <= about.high:
            found.append(f"{shown} is {value}, it must be at most {about.high:g}")
    if options.bucket_step % 32:
        found.append(f"--bucket-step is {options.bucket_step}, it must be a multiple of 32")
    try:
        sizes = {"--resolution": options.resolutions[:1], "--more-resolutions": options.resolutions[1:]}
    except ValueError:
        return [*found, f"--more-resolutions is {options.more_resolutions!r}, it must be whole numbers separated by commas"]
    for shown, size in ((shown, size) for shown, several in sizes.items() for size in several):
        low, high = options.bucket_limits(size)
        if size < max(32, options.bucket_step):
            found.append(f"{shown} is {size}, it must be at least --bucket-step, {options.bucket_step}")
        elif not low <= size <= high:
            found.append(f"{shown} is {size}, outside the bucket sides {low} to {high}")
    if not options.name or any(not (c.isalnum() or c in "-_.") for c in options.name) or options.name.startswith("."):
        found.append(f"--name is {options.name!r}: letters, digits, '-', '_' and '.' only, and no leading '.'")
    return found


def parse(argv: Sequence[str], env: Mapping[str, str], kind: type[Kind]) -> tuple[Kind, bool]:
    """(options, whether --smoke was asked for); a mistake ends the program with exit code 2, all mistakes in one message."""
    parser = build_parser(kind, env)
    first = parser.parse_args(argv)
    try:
        from_file = config_arguments(first.config) if first.config else []
    except ValueError as error:
        parser.error(str(error))
    values = vars(parser.parse_args([*from_file, *argv]))
    smoke = values.pop("smoke")
    values.pop("config")
    options = kind(**values)
    if found := problems(options):
        parser.exit(2, "".join(f"error: {line}\n" for line in found))
    return options, smoke
