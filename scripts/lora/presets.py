"""Settings that suit the number of images, kept as data in presets.json, each with its reason.

A preset replaces only what was left at its default, so whatever somebody has chosen stays. It never changes the number of steps, for
that has been paid for by whoever planned the training; how many would be usual is told.

Editing rules: standard library only; a value without a reason is none.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora.data import Photo
from lora.ends import BadInput
from lora.flags import Kind, flags
from lora.options import Options, UnetOptions

BUNDLED = Path(__file__).with_name("presets.json")


def load(options: Options) -> Sequence[Mapping[str, Any]]:
    """The presets of a family, by rising number of images: the bundled ones, or those of a file."""
    path = BUNDLED if options.preset == "size" else Path(options.preset)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["unet" if isinstance(options, UnetOptions) else "flux"]
        return [
            {
                "images": e["images"],
                "steps": [*map(int, e["steps"])],
                "values": {n: (v, str(why)) for n, (v, why) in e["values"].items()},
            }
            for e in found
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"--preset {options.preset}: not `size`, and no file of presets like {BUNDLED.name}: {error!r}") from error


def apply(options: Kind, photos: Sequence[Photo]) -> tuple[Kind, list[str]]:
    """(the options with the preset in them, what was chosen and why)."""
    if not options.preset:
        return options, []
    count = len({photo.path for photo in photos if not photo.prior})
    fitting = [entry for entry in load(options) if entry["images"] is None or count <= entry["images"]]
    if not fitting:
        raise BadInput(f"--preset {options.preset}: it has nothing for {count} images")
    entry, known = fitting[0], flags(type(options))
    if foreign := sorted(set(entry["values"]) - set(known)):
        raise BadInput(f"--preset {options.preset}: there is no option {', '.join(foreign)}")
    chosen = {name: value for name, (value, _) in entry["values"].items() if getattr(options, name) == known[name][1]}
    made = dataclasses.replace(options, **{name: known[name][0](value) for name, value in chosen.items()})
    if found := made.problems():
        raise BadInput(f"--preset {options.preset}: {'; '.join(found)}")
    lines = [f"preset for {count} images: {name} = {value}: {entry['values'][name][1]}" for name, value in chosen.items()]
    kept = [name for name in entry["values"] if name not in chosen]
    lines += [f"preset for {count} images: {', '.join(kept)} stay as you set them"] if kept else []
    low, views, high = entry["steps"]
    usual = max(low, min(high, count * views)) // (options.batch_size * options.grad_accumulation)
    return made, [*lines, f"preset for {count} images: about {usual} steps are usual, {options.steps} were asked for"]
