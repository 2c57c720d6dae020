"""What report.json says; docs/evaluation.md describes it.

Editing rules: plain data only; raise FORMAT when a field changes its meaning or goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from evaluate_checkpoints import best
from evaluate_checkpoints.metrics import COPIED, FID_IMAGES, quantiles
from evaluate_checkpoints.options import NO_CLIP
from evaluate_checkpoints.scoring import METRICS, Verdict
from lora.base import Base

if TYPE_CHECKING:
    from evaluate_checkpoints.judge import Evaluation

FORMAT = 1


def rounded(value: Any) -> Any:
    """Numbers with as many digits as mean anything; all else as it is."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list | tuple) else value


def missing(run: Evaluation) -> dict[str, str]:
    """Metric → why it was not measured of every checkpoint."""
    found = {}
    for name in METRICS:
        lacking = [step for step, values in run.measured.items() if values[name] is None]
        if not lacking:
            continue
        if name == "val_loss":
            steps = ", ".join(str(step) for step in lacking)
            found[name] = f"the training did not validate at step {steps}: --val-every should divide --checkpoint-every"
        elif run.options.clip == NO_CLIP:
            found[name] = "it needs a CLIP model, and --clip is none"
        elif name == "consistency":
            found[name] = "it needs two seeds or more"
        else:
            found[name] = "it needs two pictures and two training images or more"
    if all(values.get("fid") is None for values in run.measured.values()):
        found["fid"] = f"it says nothing below {FID_IMAGES} pictures of a checkpoint and {FID_IMAGES} training images"
    return found


def checkpoint_entry(run: Evaluation, verdict: Verdict, step: int) -> dict[str, Any]:
    """All of one checkpoint."""
    (found,) = (each for each in run.checkpoints if each.step == step)
    images = [
        {"file": f"images/{picture.path.name}", "prompt": picture.prompt, "seed": picture.seed, **run.details[picture.path]}
        for picture in run.of(found)
    ]
    return {
        "step": step,
        "score": verdict.scores[step],
        "values": run.measured[step],
        "points": verdict.points[step],
        "sharpness": quantiles([image["sharpness"] for image in images]),
        "images": images,
    }


def build(run: Evaluation, verdict: Verdict, base: Base) -> dict[str, Any]:
    """The whole report."""
    steps, shown = sorted(run.measured), run.shown
    name = best.best_name(run.training.options)
    told = {
        "format": FORMAT,
        "name": run.training.options.name,
        "base": {"name": base.name, "family": base.kind.name, "digest": base.digest},
        "best": {
            "step": verdict.best,
            "is_last": verdict.best == steps[-1],
            "score": verdict.scores[verdict.best],
            "why": verdict.why,
            "files": [f"final/{name}.safetensors", f"final/{name}_kohya.safetensors"],
        },
        "prompts": list(run.prompts),
        "seeds": list(run.options.seed_list),
        "settings": {
            "resolution": shown.resolution, "steps": shown.sample_steps, "guidance": shown.sample_guidance, "clip": run.options.clip,
        },
        "weights": dict(verdict.weights),
        "metrics": {
            key: {"title": metric.title, "better": "higher" if metric.higher else "lower", "matters": metric.matters,
                  "about": metric.about}
            for key, metric in METRICS.items()
        },
        "missing": missing(run),
        "copied_above": COPIED,
        "training_images": {"count": len(run.photos), "sharpness": quantiles(run.own_sharpness)},
        "checkpoints": [checkpoint_entry(run, verdict, step) for step in steps],
        "damaged": list(run.damaged),
    }  # fmt: skip
    found: dict[str, Any] = rounded(told)
    return found
