"""Captions: beside the images, in metadata.jsonl or in a folder's name; the trigger word; other orders of their tags.

Editing rules: standard library only; a caption's other orders follow from the caption and the seed, so that all can be encoded once.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from pathlib import Path

from lora.options import Options

METADATA = "metadata.jsonl"
COLUMNS = ("text", "caption", "prompt")
# Each image is seen with this many orders of its tags, or its embeddings could not be kept.
ORDERS = 8


def repeats(path: Path) -> tuple[int, str]:
    """(how often an image counts, what its folder calls it) from a folder named 10_name; (1, "") elsewhere."""
    match = re.fullmatch(r"(\d{1,4})_(.+)", path.parent.name)
    return (int(match[1]), match[2].replace("_", " ")) if match else (1, "")


def read_metadata(folder: Path) -> tuple[dict[Path, str], list[str]]:
    """(captions by image, what is wrong) of every metadata.jsonl below a folder: a JSON object a line with file_name and text."""
    found: dict[Path, str] = {}
    faults = []
    for file in sorted(folder.rglob(METADATA)):
        for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), 1):
            place = f"{file.relative_to(folder)}:{number}"
            try:
                entry = json.loads(line) if line.strip() else None
            except ValueError as error:
                faults.append(f"{place}: it is not JSON ({error})")
                continue
            if entry is None:
                continue
            text = next((entry[key] for key in COLUMNS if key in entry), None) if isinstance(entry, dict) else None
            if not isinstance(text, str) or not isinstance(entry.get("file_name"), str):
                faults.append(f"{place}: it needs file_name and one of {', '.join(COLUMNS)}, both text")
            elif not (file.parent / entry["file_name"]).is_file():
                faults.append(f"{place}: the image {entry['file_name']} is not there")
            else:
                found[file.parent / entry["file_name"]] = text
    return found, faults


def read_caption(path: Path, metadata: Mapping[Path, str]) -> str:
    """The caption of an image: the text beside it, else that of metadata.jsonl, else its repeat folder's name, else nothing."""
    beside = path.with_suffix(".txt")
    text = beside.read_text(encoding="utf-8-sig") if beside.is_file() else metadata.get(path, "")
    return " ".join(text.split()) or repeats(path)[1]


def with_trigger(text: str, trigger: str) -> str:
    """The caption with the trigger word in it."""
    if not trigger or trigger in text:
        return text
    return f"{trigger}, {text}" if text else trigger


def orders(caption: str, options: Options) -> list[str]:
    """The caption in the orders of its tags that training sees; the first --keep-tags stay where they are."""
    tags = [tag.strip() for tag in caption.split(",") if tag.strip()]
    kept, others = tags[: options.keep_tags], tags[options.keep_tags :]
    if not options.shuffle_tags or len(others) < 2:
        return [caption]
    rng = random.Random(f"tags-{options.seed}-{caption}")
    return [", ".join([*kept, *rng.sample(others, len(others))]) for _ in range(ORDERS)]
