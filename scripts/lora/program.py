"""The course of a trainer's command line, the same for every family.

Reads RT_DATASET, RT_OUTPUT, RT_METRICS, RT_BASE and RT_CACHE where no flag says otherwise. Run the same command again after any
interruption: it goes on from the newest checkpoint. Needs torch, diffusers, transformers, peft, accelerate, safetensors, pillow,
numpy, for TensorBoard's files tensorboardX; nothing else, and no part of the program that may have sent it here.

In OUTPUT: final/NAME.safetensors (diffusers), final/NAME_kohya.safetensors (ComfyUI and others), final/training.json,
samples/, checkpoints/, metrics.jsonl, cache/.

Exit codes: 0 done · 2 bad input · 69 the hub cannot be reached · 70 a written LoRA is wrong · 71 out of memory · 74 a file cannot
be written · 75 interrupted, run again to resume · 76 the loss is no longer a number.

Editing rules: what can be checked without torch is checked before torch is loaded; every foreseen error is one message.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from safetensors import SafetensorError

from lora.base import Kind, find
from lora.data import survey
from lora.ends import CannotWrite, End, Interrupted
from lora.flags import flags, parse
from lora.laps import Laps
from lora.libraries import loading
from lora.options import Options
from lora.ranks import launch, wanted
from lora.report import report


@dataclass(frozen=True, slots=True)
class Tool:
    """One trainer: a family's parts."""

    name: str
    kind: Kind
    options: type[Options]
    family: Callable[[], type]
    """Loads torch and gives the class that computes."""
    tiny: str
    """The script beside the trainers that makes a small base."""


class Stop:
    """Remembers that TERM or INT came; the training looks at it where it can stop."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        self.asked = True
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)  # a second Ctrl-C ends the program at once

    def __call__(self) -> None:
        if self.asked:
            raise Interrupted("asked to stop; the work is kept, run the same command again to resume")


def patient() -> None:
    """Let OpenMP's threads sleep while they wait: where cores are shared, those that spin cost a hundredfold. torch reads it once."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def smoke_options(tool: Tool, options: Options) -> Options:
    """Tiny settings over a made-up base and made-up images in a temporary folder."""
    from PIL import Image

    folder = Path(tempfile.mkdtemp(prefix=f"{tool.name}-smoke-"))
    maker = Path(__file__).resolve().parent.parent / tool.tiny
    subprocess.run([sys.executable, str(maker), str(folder / "base")], check=True)
    (folder / "dataset").mkdir()
    for number, (colour, name) in enumerate([("red", "red"), ("navy", "blue"), ("olive", "green"), ("gold", "yellow")]):
        shape = Image.new("RGB", (96 + 32 * (number % 2), 96), colour)
        shape.paste("white", (24, 24, 72, 72))
        shape.save(folder / "dataset" / f"{name}.png")
        (folder / "dataset" / f"{name}.txt").write_text(f"a white square on {name}\n")
    tiny: dict[str, Any] = {"resolution": 64, "bucket_step": 32, "rank": 8, "steps": 20, "lr": 3e-3}
    tiny["targets"] = flags(tool.options)["targets"][2].choices[-1]
    tiny |= {"batch_size": 4, "sample_steps": 4, "sample_every": 10, "checkpoint_every": 10, "metrics": "", "cache": ""}
    tiny |= {place: str(folder / place) for place in ("base", "dataset", "output")}
    return dataclasses.replace(options, **tiny)


def main(tool: Tool) -> int:
    """Check everything that is cheap to check, then load torch and train."""
    laps, stop = Laps(), Stop()
    patient()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it advises of packages that nobody needs here
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a name that cannot be printed is no reason to end
    options = parse(sys.argv[1:], os.environ, tool.options)
    try:
        options = smoke_options(tool, options) if options.smoke else options
        photos, base = survey(options), find(options.base, tool.kind)
        laps.mark("dataset")
        if (count := wanted(options.ranks)) > 1:
            return launch(sys.argv, count, stop)
        if os.environ.get("RANK", "0") == "0":
            ranks = int(os.environ.get("WORLD_SIZE", "1"))
            print("\n".join([*report(options, photos, ranks), f"base: {base.name}"]), flush=True)
        stop()
        with loading():
            from lora.loop import Task, train

            family = tool.family()
        train(Task(options, photos, base, family), stop, laps)
    except End as end:
        print(f"{'stopped' if isinstance(end, Interrupted) else 'error'}: {end}", file=sys.stderr, flush=True)
        return end.exit_code
    except (OSError, SafetensorError) as error:
        print(f"error: {error}; free disk space or fix the permission, then run again to resume", file=sys.stderr, flush=True)
        return CannotWrite.exit_code
    return 0
