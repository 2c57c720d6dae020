"""From measurements to one score: which metrics there are, what each counts, and which checkpoint is the best.

    points of a metric = 1 - (distance to the best checkpoint's value) / max(largest such distance, METRICS[…].matters)
    score              = mean of the points, weighted; metrics that some checkpoint lacks are left out for all

`matters` is a difference that is worth the whole scale: without it the worst of two nearly equal checkpoints would get no points.

Editing rules: standard library only; a number here is explained in docs/evaluation.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

Values = Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Metric:
    """One thing that is measured of each checkpoint."""

    title: str
    higher: bool
    """Whether more is better."""
    weight: float
    matters: float
    """A difference that is worth the whole scale of points."""
    about: str


METRICS = {
    "clip_score": Metric("CLIP score", True, 1.0, 0.02, "cosine of picture and prompt: does it show what was asked for"),
    "cmmd": Metric("CMMD", False, 1.0, 0.1, "distance of the pictures from the training images, by CLIP; for few images"),
    "kid": Metric("KID", False, 0.5, 0.02, "the same by another kernel, unbiased, on CLIP's features instead of Inception's"),
    "consistency": Metric("consistency", True, 0.5, 0.05, "cosine between the pictures of one prompt from different noise"),
    "copying": Metric("copying", False, 1.0, 0.25, "share of pictures that are nearly a training image"),
    "sharpness": Metric("sharpness", False, 0.5, 0.5, "how far from the training images' own, sharper or blurred: 0 is the same"),
    "val_loss": Metric("validation loss", False, 1.0, 0.01, "loss on images and noise that are the same at each look"),
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the measurements of all checkpoints amount to."""

    points: Mapping[int, Mapping[str, float]]
    """Step → metric → 0..1, for the metrics that count."""
    scores: Mapping[int, float]
    weights: Mapping[str, float]
    """The metrics that count, with their shares; together 1."""
    best: int
    why: str


def parse_weights(text: str) -> dict[str, float]:
    """The weight of each metric: the usual ones where the text says nothing. ValueError with the reason."""
    weights = {name: metric.weight for name, metric in METRICS.items()}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, number = (word.strip() for word in part.partition("="))
        if name not in METRICS:
            raise ValueError(f"there is no metric {name!r}; there are: {', '.join(METRICS)}")
        try:
            weights[name] = float(number)
        except ValueError:
            raise ValueError(f"{part!r} is not of the form {name}=1.5") from None
        if not (math.isfinite(weights[name]) and weights[name] >= 0):
            raise ValueError(f"the weight of {name} is {number}, it must be 0 or more")
    if not any(weights.values()):
        raise ValueError("every weight is 0, so that nothing would be compared")
    return weights


def points_of(name: str, values: Mapping[int, float]) -> dict[int, float]:
    """Step → 0..1 for one metric."""
    metric = METRICS[name]
    best = (max if metric.higher else min)(values.values())
    distances = {step: abs(value - best) for step, value in values.items()}
    scale = max(metric.matters, *distances.values())
    return {step: 1 - distance / scale for step, distance in distances.items()}


def judge(measured: Mapping[int, Values], weights: Mapping[str, float]) -> Verdict:
    """Compare the checkpoints; of equal ones the earlier is the best, which has learnt less by heart."""
    known = {name: {step: values[name] for step, values in measured.items()} for name in METRICS}
    counting: dict[str, dict[int, float]] = {}
    for name, values in known.items():
        present = {step: value for step, value in values.items() if value is not None}
        if weights[name] and len(present) == len(measured):
            counting[name] = points_of(name, present)
    total = sum(weights[name] for name in counting)
    shares = {name: weights[name] / total for name in counting}
    scores = {step: sum(shares[name] * counting[name][step] for name in counting) for step in measured}
    best = max(sorted(measured), key=lambda step: round(scores[step], 9))
    points = {step: {name: counting[name][step] for name in counting} for step in measured}
    return Verdict(points, scores, shares, best, reason(best, points, scores))


def reason(best: int, points: Mapping[int, Mapping[str, float]], scores: Mapping[int, float]) -> str:
    """Why a checkpoint is the best, in a sentence or two."""
    if not points[best]:
        return f"step {best} is the earliest: nothing that counts could be measured of every checkpoint"
    if len(scores) == 1:
        return f"step {best} is the only checkpoint"
    told = [name for name in points[best] if len({round(points[step][name], 9) for step in scores}) > 1]
    first = [METRICS[name].title for name in told if points[best][name] > 1 - 1e-9]
    low = [f"{METRICS[name].title} ({value:.2f})" for name, value in points[best].items() if value < 0.5]
    second = max((step for step in scores if step != best), key=lambda step: scores[step])
    parts = [f"step {best} has {scores[best]:.3f} of 1, the next, step {second}, {scores[second]:.3f}"]
    parts += [f"best in {', '.join(first)}"] if first else []
    parts += [f"weak in {', '.join(low)}"] if low else []
    return "; ".join(parts)
