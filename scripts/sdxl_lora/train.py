"""Train an SDXL LoRA from a folder of captioned images.

    python train.py --dataset photos --output out                              # a real base from the hub, 1500 steps at 1024²
    python train.py --base model/ --dataset photos --output out --rank 32      # a base on this disk
    python train.py --config options.json                                      # options named as the flags, in a file
    python train.py --smoke                                                    # everything made up, on a CPU, under a minute

Reads RT_DATASET, RT_OUTPUT, RT_METRICS, RT_BASE and RT_CACHE where no flag says otherwise. Run the same command again after any
interruption: it goes on from the newest checkpoint. Needs torch, diffusers, transformers, peft, accelerate, safetensors, pillow,
numpy; nothing else, and no part of the program that may have sent it here.

In OUTPUT: final/NAME.safetensors (diffusers), final/NAME_kohya.safetensors (ComfyUI and others), final/training.json,
samples/, checkpoints/, metrics.jsonl, cache/.

Exit codes: 0 done · 2 bad input · 69 the hub cannot be reached · 70 a written LoRA is wrong · 71 out of memory · 74 a file cannot
be written · 75 interrupted, run again to resume · 76 the loss is no longer a number.

Editing rules: what can be checked without torch is checked before torch is loaded; every foreseen error is one message.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

from base import find
from data import survey
from ends import CannotWrite, End, Interrupted
from options import Options, parse
from safetensors import SafetensorError


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


def smoke_options(options: Options) -> Options:
    """Tiny settings over a made-up base and made-up images in a temporary folder."""
    from PIL import Image

    folder = Path(tempfile.mkdtemp(prefix="sdxl-lora-smoke-"))
    maker = Path(__file__).resolve().parent.parent / "make_tiny_sdxl.py"
    subprocess.run([sys.executable, str(maker), str(folder / "base")], check=True)
    (folder / "dataset").mkdir()
    for number, (colour, name) in enumerate([("red", "red"), ("navy", "blue"), ("olive", "green"), ("gold", "yellow")]):
        shape = Image.new("RGB", (96 + 32 * (number % 2), 96), colour)
        shape.paste("white", (24, 24, 72, 72))
        shape.save(folder / "dataset" / f"{name}.png")
        (folder / "dataset" / f"{name}.txt").write_text(f"a white square on {name}\n")
    tiny: dict[str, Any] = {"resolution": 64, "bucket_step": 32, "targets": "locon", "rank": 8, "steps": 20, "lr": 3e-3}
    tiny |= {"batch_size": 4, "sample_steps": 4, "sample_every": 10, "checkpoint_every": 10, "metrics": "", "cache": ""}
    tiny |= {place: str(folder / place) for place in ("base", "dataset", "output")}
    return dataclasses.replace(options, **tiny)


def main() -> int:
    """Check everything that is cheap to check, then load torch and train."""
    stop = Stop()
    options, smoke = parse(sys.argv[1:], os.environ)
    try:
        options = smoke_options(options) if smoke else options
        photos, base = survey(options), find(options.base)
        print(f"{len(photos)} images, base {base.name}", flush=True)
        stop()
        from loop import train

        train(options, photos, base, stop)
    except End as end:
        print(f"{'stopped' if isinstance(end, Interrupted) else 'error'}: {end}", file=sys.stderr, flush=True)
        return end.exit_code
    except (OSError, SafetensorError) as error:
        print(f"error: {error}; free disk space or fix the permission, then run again to resume", file=sys.stderr, flush=True)
        return CannotWrite.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
