"""Compare the checkpoints of a LoRA's training by the pictures they make, and choose the best.

    python evaluate.py --family sdxl --output out                        # what train.py --output out has left
    python evaluate.py --family sdxl --output out --clip none            # without a CLIP model: only what needs none
    python evaluate.py --family sd15 --output out --prompts 'a cat|a cat on the moon' --seeds 1,2,3,4

Every checkpoint that verifies draws the same prompts from the same noise. In OUTPUT: evaluation/report.html, report.json, sheet.png
and images/; final/NAME_best.safetensors, final/NAME_best_kohya.safetensors and final/best.json. Run the same command again after any
interruption: pictures that are there are kept.

Exit codes: 0 done · 2 bad input · 69 the hub cannot be reached · 70 a written LoRA is wrong · 71 out of memory · 74 a file cannot
be written · 75 interrupted, run again to go on.

Editing rules: what can be checked without torch is checked before torch is loaded; every foreseen error is one message.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the trainers and what they share lie beside this folder

from evaluate_checkpoints import clip, trained
from evaluate_checkpoints.options import EvaluationOptions
from lora.base import find
from lora.data import survey
from lora.ends import BadInput, CannotWrite, End, Interrupted
from lora.flags import parse
from lora.libraries import loading
from lora.program import Stop, patient
from safetensors import SafetensorError


def run(options: EvaluationOptions, stop: Stop) -> None:
    """Check everything that is cheap to check, then load torch and evaluate."""
    found = clip.find(options.clip)
    if options.check:
        print(f"CLIP: {options.clip}", flush=True)
        return
    tool = trained.find_tool(options.family)
    training = trained.read(tool, options)
    training.as_shown(options)
    photos, base = survey(training.options), find(training.options.base, tool.kind)
    if training.base_digest != base.digest:
        raise BadInput(f"{training.folder} was trained on another base than {base.name}; give that one with --base")
    print(f"base: {base.name}", flush=True)
    stop()
    with loading():
        from evaluate_checkpoints.judge import Task, evaluate

        family = tool.family()
    evaluate(Task(options, training, photos, base, found), family, stop)


def main() -> int:
    """Run the program; the exit code says how it ended."""
    stop = Stop()
    patient()
    options = parse(sys.argv[1:], os.environ, EvaluationOptions, "evaluate.py")
    try:
        run(options, stop)
    except End as end:
        print(f"{'stopped' if isinstance(end, Interrupted) else 'error'}: {end}", file=sys.stderr, flush=True)
        return end.exit_code
    except (OSError, SafetensorError) as error:
        print(f"error: {error}; free disk space or fix the permission, then run again to go on", file=sys.stderr, flush=True)
        return CannotWrite.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
