"""The evaluation's course, once everything cheap has been checked: draw, measure, score, report, export the best.

Read `evaluate` first; the rest is in the order it is called.

Editing rules: what is measured is in metrics.py, what it counts is in scoring.py; every result can be made again from the pictures.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from evaluate_checkpoints import best, metrics, page, pictures, report, scoring, sheet
from evaluate_checkpoints.clip import Clip
from evaluate_checkpoints.options import EvaluationOptions
from evaluate_checkpoints.pictures import Model, Picture
from evaluate_checkpoints.trained import Training
from lora import checkpoint, export, memory
from lora.base import Base
from lora.cache import Cache
from lora.checkpoint import Checkpoint
from lora.data import Photo, split, survey
from lora.ends import BadInput, OutOfMemory
from lora.family import Family
from lora.images import load_pixels
from lora.loop import quieten
from lora.options import Options
from lora.sampling import prompts_of
from PIL import Image

# CLIP beside the base needs so much of the GPU's memory; where it is not free CLIP runs on the CPU, which is fast enough.
CLIP_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be evaluated, and by what."""

    options: EvaluationOptions
    training: Training
    photos: Sequence[Photo]
    """The dataset as the training saw it, without prior images."""
    base: Base
    clip: Path | None


@dataclass(slots=True)
class Evaluation:
    """What is compared, and what was found out so far."""

    options: EvaluationOptions
    training: Training
    shown: Options
    checkpoints: Sequence[Checkpoint]
    photos: Sequence[Photo]
    """The training images, each once, at the pictures' size."""
    prompts: Sequence[str]
    pictures: Sequence[Picture] = ()
    damaged: Sequence[str] = ()
    details: dict[Path, dict[str, Any]] = field(default_factory=dict)
    """What was measured of each picture."""
    measured: dict[int, dict[str, float | None]] = field(default_factory=dict)
    """Step → metric → value."""
    own_sharpness: Sequence[float] = ()

    @property
    def folder(self) -> Path:
        """Where the reports go."""
        return self.shown.output_dir / "evaluation"

    def of(self, found: Checkpoint) -> list[Picture]:
        """A checkpoint's pictures."""
        return [picture for picture in self.pictures if picture.checkpoint == found]


def evaluate(task: Task, kind: type[Family], stopping: Callable[[], None]) -> None:
    """Run the evaluation to its end; `stopping` raises when it has been asked to stop."""
    quieten()
    options, base = task.options, task.base
    if options.threads:
        torch.set_num_threads(options.threads)
    run = prepare(task)
    model = Model(base, kind, run.shown)
    try:
        run.pictures = pictures.plan(run.folder / "images", run.checkpoints, base, run.shown, (run.prompts, options.seed_list))
        pictures.draw(run.pictures, run.prompts, model, Cache(run.shown.cache_dir, base, kind, run.shown), stopping)
        pictures.tidy(run.folder / "images", run.pictures)
        measure(run, task.clip, model.settled.device, stopping)
        verdict = scoring.judge(run.measured, scoring.parse_weights(options.weights))
        conclude(run, verdict, learned(task), model)
    except RuntimeError as error:
        if not memory.is_short(error):
            raise
        advice = "lower --resolution, or take a larger GPU"
        raise OutOfMemory(f"the GPU's memory does not suffice: {advice} ({error})") from error


def learned(task: Task) -> list[Photo]:
    """The photos that were learnt from, as the training saw them."""
    return split(task.photos, task.training.options.val_fraction, task.training.options.seed)[0]


def prepare(task: Task) -> Evaluation:
    """What is compared; BadInput if no checkpoint is whole."""
    options, training = task.options, task.training
    whole, damaged = verified(training.folder / "checkpoints")
    shown = training.as_shown(options)
    seen = list(dict.fromkeys(photo.path for photo in learned(task)))
    sized = survey(shown) if options.resolution else task.photos
    first = {photo.path: photo for photo in reversed(sized)}
    photos = [first[path] for path in seen]
    prompts = prompts_of(shown, photos)
    names = ", ".join(found.path.name for found in whole)
    print(f"{len(whole)} checkpoints ({names}), {len(prompts)} prompts, {len(options.seed_list)} seeds", flush=True)
    return Evaluation(options, training, shown, whole, photos, prompts, damaged=damaged)


def verified(folder: Path) -> tuple[list[Checkpoint], list[str]]:
    """(the checkpoints that verify, by step; what is wrong with the others)."""
    whole, damaged = [], []
    for path in sorted(folder.glob("step-*")):
        if reason := checkpoint.fault(path):
            damaged.append(f"{path.name}: {reason}")
            print(f"checkpoint {path.name} is damaged ({reason}) and left out", flush=True)
        else:
            whole.append(Checkpoint(path, int(path.name.removeprefix("step-"))))
    if not whole:
        raise BadInput(f"no checkpoint in {folder} is whole: {'; '.join(damaged)}")
    return whole, damaged


def opener(path: Path) -> Callable[[], Image.Image]:
    """Opens a picture when its turn has come."""

    def load() -> Image.Image:
        with Image.open(path) as image:
            return image.convert("RGB")

    return load


def measure(run: Evaluation, clip: Path | None, device: torch.device, stopping: Callable[[], None]) -> None:
    """All metrics of all checkpoints."""
    loaders: list[Callable[[], Image.Image]] = [lambda photo=photo: load_pixels(photo) for photo in run.photos]
    run.own_sharpness = [metrics.sharpness(load()) for load in loaders]
    for found in run.checkpoints:
        stopping()
        values: dict[str, float | None] = dict.fromkeys(scoring.METRICS)
        for picture in run.of(found):
            run.details[picture.path] = {"sharpness": metrics.sharpness(opener(picture.path)())}
        sharp = [run.details[picture.path]["sharpness"] for picture in run.of(found)]
        values["sharpness"] = metrics.sharpness_gap(sharp, run.own_sharpness)
        values["val_loss"] = run.training.losses.get(found.step)
        run.measured[found.step] = values
    if clip is not None:
        look(run, Clip(clip, place_of_clip(device)), loaders, stopping)


def place_of_clip(device: torch.device) -> torch.device:
    """The GPU if CLIP fits beside the base."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what the pictures needed is not used any more, and only so is it free
    fits = device.type == "cuda" and torch.cuda.mem_get_info(device)[0] > CLIP_BYTES
    return device if fits else torch.device("cpu")


def look(run: Evaluation, judge: Clip, loaders: Sequence[Callable[[], Image.Image]], stopping: Callable[[], None]) -> None:
    """What CLIP has to say of every checkpoint."""
    print(f"CLIP looks at {len(run.pictures)} pictures and {len(loaders)} training images", flush=True)
    images, texts = judge.images(loaders, stopping), judge.texts(run.prompts)
    for found in run.checkpoints:
        own = run.of(found)
        features = judge.images([opener(picture.path) for picture in own], stopping)
        cosines = metrics.cosines(features, texts[[picture.prompt for picture in own]])
        closest = metrics.nearest(features, images)
        for picture, cosine, (similarity, index) in zip(own, cosines, closest, strict=True):
            near = {"similarity": similarity, "image": str(run.photos[index].path.relative_to(run.shown.dataset))}
            run.details[picture.path] |= {"clip_score": cosine, "nearest": near, "copied": similarity > metrics.COPIED}
        groups = [features[[i for i, picture in enumerate(own) if picture.prompt == n]] for n in range(len(run.prompts))]
        run.measured[found.step] |= {
            "clip_score": sum(cosines) / len(cosines),
            "cmmd": metrics.cmmd(features, images),
            "kid": metrics.kid(features, images),
            "fid": metrics.fid(features, images),
            "consistency": metrics.consistency(groups),
            "copying": sum(similarity > metrics.COPIED for similarity, _ in closest) / len(closest),
        }


def conclude(run: Evaluation, verdict: scoring.Verdict, learned: Sequence[Photo], model: Model) -> None:
    """The sheet, the report, and the best checkpoint's files, which the report names."""
    chosen = next(found for found in run.checkpoints if found.step == verdict.best)
    sheet.make(run.folder / "sheet.png", run.pictures, run.prompts, run.options.seed_list, verdict)
    told = report.build(run, verdict, model.base)
    export.write_atomically(run.folder / "report.json", (json.dumps(told, indent=2) + "\n").encode())
    export.write_atomically(run.folder / "report.html", page.render(told, run.folder, Path(run.shown.dataset)).encode())
    made = best.write(run.training, learned, model, chosen, verdict)
    print(f"best: {verdict.why}", flush=True)
    print(f"done: final/{made['name']}.safetensors, evaluation/report.html, evaluation/sheet.png", flush=True)
