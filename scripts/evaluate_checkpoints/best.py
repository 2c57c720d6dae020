"""The best checkpoint's adapter as files of their own, written and verified as the training's last one is.

Editing rules: best.json is written last and says what the files are; files that it vouches for are not written again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from evaluate_checkpoints.pictures import Model
from evaluate_checkpoints.scoring import Verdict
from evaluate_checkpoints.trained import Training, read_object
from lora import about, export
from lora.checkpoint import Checkpoint, sha256
from lora.data import Photo
from lora.options import Options

FORMAT = 1


def best_name(options: Options) -> str:
    """What the files are called before their endings."""
    return f"{options.name}_best"


def write(
    training: Training, photos: Sequence[Photo], model: Model, checkpoint: Checkpoint, verdict: Verdict
) -> dict[str, object]:
    """Write final/NAME_best.safetensors, final/NAME_best_kohya.safetensors and final/best.json; returns what the latter says."""
    final, name = Path(training.options.output) / "final", best_name(training.options)
    source = {"step": checkpoint.step, "checkpoint": sha256(checkpoint.path / "manifest.json")}
    files = kept(final, source)
    if not files:
        with model.at(checkpoint) as family:
            true = replace(training.options, name=name, steps=checkpoint.step)
            written = export.write(family, final, name, about.metadata(family, photos, true))
            export.verify(family, *written)
        files = {file.name: {"size": file.stat().st_size, "sha256": sha256(file)} for file in written}
    told = {
        "format": FORMAT,
        "name": name,
        **source,
        "last_step": max(verdict.scores),
        "is_last": checkpoint.step == max(verdict.scores),
        "score": round(verdict.scores[checkpoint.step], 6),
        "why": verdict.why,
        "files": files,
        "report": "evaluation/report.html",
    }
    export.write_atomically(final / "best.json", (json.dumps(told, indent=2) + "\n").encode())
    return told


def kept(final: Path, source: dict[str, object]) -> dict[str, object]:
    """The files of an earlier evaluation that chose the same checkpoint, if they are all whole."""
    if not (final / "best.json").is_file():
        return {}
    told = read_object(final / "best.json")
    files: dict[str, dict[str, object]] = told.get("files", {})
    same = all(told.get(key) == value for key, value in source.items())
    whole = all((final / file).is_file() and sha256(final / file) == facts["sha256"] for file, facts in files.items())
    return dict(files) if same and whole else {}
