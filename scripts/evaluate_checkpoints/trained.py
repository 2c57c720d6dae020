"""What a training left behind: its options, its checkpoints' losses, and which trainer it was.

    find_tool(family)       the trainer, as scripts/lora/program.py knows it
    read(tool, options)     the training's options, found without torch: from final/training.json, and from its checkpoints

Editing rules: standard library only; whether a checkpoint is whole is lora.checkpoint's to say.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evaluate_checkpoints.options import EvaluationOptions
from lora.ends import BadInput
from lora.flags import flags
from lora.options import Options
from lora.program import Tool

SCRIPTS = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Training:
    """A training as it was told to be, with the places where things are now."""

    folder: Path
    options: Options
    losses: Mapping[int, float]
    """Step → validation loss, where it was measured."""
    base_digest: str

    def as_shown(self, options: EvaluationOptions) -> Options:
        """The same with the size, steps and guidance of the evaluation's pictures; BadInput if they do not go together."""
        # Nothing is learnt: what would cost memory or time only for that is left out.
        changed: dict[str, Any] = {"batch_size": 1, "gradient_checkpointing": "on", "compile": False}
        changed |= {"sample_steps": options.steps, "sample_prompts": options.prompts, "sample_count": options.count}
        if options.resolution:
            changed |= {"resolution": options.resolution, "more_resolutions": "", "bucket_min": 0, "bucket_max": 0}
        if options.guidance:
            changed["sample_guidance"] = options.guidance
        shown = replace(self.options, **changed)
        if found := shown.problems():
            raise BadInput("\n".join(found))
        return shown


def find_tool(family: str) -> Tool:
    """The trainer of a family; without one, the only trainer that lies beside this program."""
    present = sorted(file.parent.name.removesuffix("_lora") for file in SCRIPTS.glob("*_lora/train.py"))
    chosen = family or (present[0] if len(present) == 1 else "")
    if not chosen:
        raise BadInput(f"say with --family what was trained: {', '.join(present)}")
    if chosen not in present:
        raise BadInput(f"the trainer of --family {chosen} does not lie beside this program; there are: {', '.join(present)}")
    tool: Tool = importlib.import_module(f"{chosen}_lora.train").TOOL
    return tool


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object, or BadInput that names the file."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(f"{path} cannot be read: {error}") from error


def states(folder: Path) -> list[dict[str, Any]]:
    """What the checkpoints say of themselves, oldest first; one that cannot be read is told as damaged when it is verified."""
    paths = sorted((folder / "checkpoints").glob("step-*/state.json"))
    if not paths:
        raise BadInput(f"there is no checkpoint in {folder / 'checkpoints'}; give the folder that a trainer filled (--trained)")
    found = []
    for path in paths:
        try:
            found.append(read_object(path))
        except BadInput:
            continue
    return found


def read(tool: Tool, options: EvaluationOptions) -> Training:
    """The training in a folder; options that this trainer does not know any more are left out."""
    folder = Path(options.trained or options.output)
    told, summary = states(folder), {}
    if (folder / "final" / "training.json").is_file():
        summary = read_object(folder / "final" / "training.json")
    identity = told[-1].get("identity", {}) if told else {}
    if not identity:
        raise BadInput(
            f"no checkpoint in {folder / 'checkpoints'} says how it was trained; give the folder that a trainer filled"
        )
    values = dict(summary.get("options", {}))
    # Beside its own names for base and dataset, an identity has the options that decide what is learnt, and "any" for the number of steps.
    decisive = [
        name for name, (_, _, about) in flags(tool.options).items() if not about.free and identity.get(name, "any") != "any"
    ]
    values |= {name: identity[name] for name in decisive}
    known = {name: values[name] for name in flags(tool.options) if name in values}
    places = {
        "output": options.output,
        "cache": options.cache,
        "metrics": "",
        "prior": "",
        "prior_prompt": "",
        "threads": options.threads,
    }
    places |= {name: value for name in ("base", "dataset", "name") if (value := getattr(options, name))}
    try:
        chosen = tool.options(**{**known, **places})
    except TypeError as error:
        raise BadInput(f"{folder} was not made by {tool.name}: {error}") from error
    validations = [*(state.get("validations", {}) for state in told), summary.get("val_loss", {})]
    losses = {int(step): float(loss) for several in validations for step, loss in several.items()}
    return Training(folder, chosen, losses, str(identity.get("base", "")))
