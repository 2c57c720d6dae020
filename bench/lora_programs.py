"""The programs that lora.py compares: their command lines with the same settings, and what one run of each was seen to do.

    ours(…), theirs(…)     the command of a setting
    look(…)                runs one under lora_probe.py and returns a Result

Tried with diffusers' examples of commit 58eb52c0803ea9af3abec60841c2a093bdf1f951 (0.40.0.dev0) beside the library 0.42.1. Theirs is
given what it offers for speed: TF32, workers that read images, latents and text encoded before the training where it can (FLUX).

Rules for editing: a setting that one program has and the other lacks is left at what makes them do the same work.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent
SCRIPTS = BENCH.parent / "scripts"
EXAMPLES = {
    "sdxl": "examples/text_to_image/train_text_to_image_lora_sdxl.py",
    "flux": "examples/dreambooth/train_dreambooth_lora_flux.py",
}
FLUX_LAYERS = "to_q,to_k,to_v,to_out.0,add_q_proj,add_k_proj,add_v_proj,to_add_out"
ENOUGH = 1_000_000  # steps: the probe ends the program


@dataclass(frozen=True, slots=True)
class Places:
    """What all runs share."""

    base: Path
    images: Path
    work: Path
    """Outputs, results and logs."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What is trained, the same for both programs."""

    family: str
    batch: int = 1
    checkpointing: bool = False
    resolution: int = 1024
    rank: int = 16
    precision: str = "bf16"
    vram: float = 0.0
    """GPU memory to make do with, GiB; 0: settings are given, none is left to the program."""
    extra: tuple[str, ...] = ()
    """Further flags of ours."""

    @property
    def label(self) -> str:
        """A name for files."""
        memory = f"vram{self.vram:g}" if self.vram else f"batch{self.batch}{'-checkpointing' if self.checkpointing else ''}"
        return f"{self.family}-{memory}"


@dataclass(frozen=True, slots=True)
class Look:
    """What the probe is told."""

    warmup: int
    steps: int
    count: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """What was seen of one run."""

    program: str
    setting: Setting
    end: str
    """"measured", "out of memory", or what went wrong."""
    step_s: float = 0.0
    first_step_s: float = 0.0
    """From the start of the process to the end of the first step."""
    start: Mapping[str, float] = field(default_factory=dict)
    """Where that went, seconds."""
    peak_gib: float = 0.0
    start_peak_gib: float = 0.0
    reserved_gib: float = 0.0
    outside_gib: float = 0.0
    """Beside what torch has reserved."""
    rss_gib: float = 0.0
    operations: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def measured(self) -> bool:
        return self.end == "measured"

    @property
    def images_per_s(self) -> float:
        return self.setting.batch / self.step_s if self.step_s else 0.0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "images_per_s": round(self.images_per_s, 4)}


def ours(setting: Setting, places: Places) -> list[str]:
    """The command of our trainer; nothing but training after the first validation."""
    given = {
        "base": places.base,
        "dataset": places.images / "ours",
        "output": places.work / f"ours-{setting.label}",
        "cache": places.work / f"cache-{setting.family}-{setting.resolution}",
        "steps": ENOUGH,
        "resolution": setting.resolution,
        "bucket-step": min(64, setting.resolution),
        "rank": setting.rank,
        "alpha": setting.rank,
        "caption-dropout": 0,
        "sample-count": 0,
        "val-every": 0,
        "checkpoint-every": 0,
        "log-every": 1,
    }
    if not setting.vram:
        fixed = {"batch-size": setting.batch, "precision": setting.precision, "quantize": "none"}
        given |= {**fixed, "gradient-checkpointing": "on" if setting.checkpointing else "off"}
    else:
        given |= {"vram": setting.vram}
    flags = [f"--{name}={value}" for name, value in given.items()]
    return [str(SCRIPTS / f"{setting.family}_lora" / "train.py"), *flags, *setting.extra]


def theirs(setting: Setting, places: Places, diffusers: Path) -> list[str]:
    """The command of diffusers' script."""
    given = {
        "pretrained_model_name_or_path": places.base,
        "output_dir": places.work / f"diffusers-{setting.label}",
        "resolution": setting.resolution,
        "rank": setting.rank,
        "train_batch_size": setting.batch,
        "max_train_steps": ENOUGH,
        "checkpointing_steps": ENOUGH,
        "mixed_precision": {"bf16": "bf16", "fp32": "no"}[setting.precision],
        "learning_rate": 1e-4,
        "adam_weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "seed": 42,
    }
    if setting.family == "sdxl":
        given |= {"train_data_dir": places.images / "sdxl", "snr_gamma": 5.0, "dataloader_num_workers": 4}
        switches = ["--center_crop"]
    else:
        given |= {
            "instance_data_dir": places.images / "flux",
            "instance_prompt": "a field of colours",
            "lora_alpha": setting.rank,
        }
        given |= {"guidance_scale": 1.0, "max_sequence_length": 512, "lora_layers": FLUX_LAYERS}
        switches = ["--center_crop", "--cache_latents"]
    switches += ["--allow_tf32"] if on_gpu() else []  # the script refuses it without a GPU
    switches += ["--gradient_checkpointing"] if setting.checkpointing else []
    return [str(diffusers / EXAMPLES[setting.family]), *(f"--{name}={value}" for name, value in given.items()), *switches]


def on_gpu() -> bool:
    """Whether the machine has a GPU that the driver knows."""
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidia0").exists()


def look(python: str, name: str, command: Sequence[str], setting: Setting, given: Look) -> Result:
    """Run a program until it was measured; its own output goes to a file beside the result."""
    work = Path(next(flag for flag in command if flag.startswith(("--output=", "--output_dir="))).partition("=")[2]).parent
    result, log = (work / f"{name}-{setting.label}.{ending}" for ending in ("json", "log"))
    result.unlink(missing_ok=True)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    settings = json.dumps({**asdict(given), "result": str(result), "began": time.time()})
    with log.open("wb") as file:
        called = [python, str(BENCH / "lora_probe.py"), settings, *command]
        subprocess.run(called, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=environment)
    if not result.exists():
        return Result(name, setting, "ended without a result")
    return read(name, setting, given, json.loads(result.read_text()))


def read(name: str, setting: Setting, given: Look, found: Mapping[str, Any]) -> Result:
    """What the probe wrote, as a Result; the time of a step is the mean from the end of the warm-up on."""
    ends = found["ends_s"]
    if found["end"] != "measured":
        return Result(name, setting, found["end"], start=found.get("start", {}))
    step_s = (ends[-1] - ends[given.warmup - 1]) / given.steps if given.steps else 0.0
    start = {"interpreter": round(found["started_s"], 2), **found["start"]}
    memory = {key: round(found[key], 2) for key in ("peak_gib", "start_peak_gib", "reserved_gib", "outside_gib", "rss_gib")}
    return Result(name, setting, "measured", step_s, ends[0], start, operations=found.get("operations", {}), **memory)


if __name__ == "__main__":
    sys.exit("this is a part of python -m bench.lora")
