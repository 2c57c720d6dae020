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

Exit codes: 0 done · 2 bad input · 70 a written LoRA is wrong · 71 out of memory · 75 interrupted, run again to resume ·
76 the loss is no longer a number.

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

from base import find
from data import BadInput, survey
from options import Options, parse

BAD_INPUT, WRONG_FILE, OUT_OF_MEMORY, INTERRUPTED, NOT_A_NUMBER = 2, 70, 71, 75, 76


class Interrupted(Exception):
    """The program was asked to stop. Exit code 75."""

    keeps_work = True


class Stop:
    """Remembers that TERM or INT came; the training looks at it where it can stop."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, signal.SIG_DFL)  # a second one ends the program at once

    def __call__(self) -> None:
        if self.asked:
            raise Interrupted


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
    places = {
        "base": str(folder / "base"),
        "dataset": str(folder / "dataset"),
        "output": str(folder / "output"),
        "metrics": "",
        "cache": "",
    }
    tiny = {"resolution": 64, "bucket_step": 32, "targets": "locon", "rank": 8, "steps": 20, "batch_size": 4, "lr": 3e-3}
    return dataclasses.replace(options, **places, **tiny, sample_steps=4, sample_every=10, checkpoint_every=10)


def main() -> int:
    """Check everything that is cheap to check, then train."""
    stop = Stop()
    options, smoke = parse(sys.argv[1:], os.environ)
    if smoke:
        options = smoke_options(options)
    try:
        photos = survey(options)
        base = find(options.base)
        stop()
        print(f"{len(photos)} images, base {base.name}", flush=True)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except Interrupted:
        return INTERRUPTED
    return guarded(options, photos, base, stop)


def guarded(options, photos, base, stop) -> int:
    """Train; each foreseen end is an exit code and one message."""
    import export
    import loop

    codes = {BadInput: BAD_INPUT, export.WrongFile: WRONG_FILE, loop.OutOfMemory: OUT_OF_MEMORY, loop.NotANumber: NOT_A_NUMBER}
    try:
        loop.train(options, photos, base, stop)
    except Interrupted:
        print("interrupted; the work is kept: run the same command again to resume", flush=True)
        return INTERRUPTED
    except tuple(codes) as error:
        print(f"error: {error}", file=sys.stderr)
        return codes[type(error)]
    return 0


if __name__ == "__main__":
    sys.exit(main())
