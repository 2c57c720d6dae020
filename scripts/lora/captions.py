"""Captions: beside the images, in metadata.jsonl or in a folder's name; the trigger word; other orders of their tags.

Editing rules: standard library only; a caption's other orders follow from the caption and the seed, so that all can be encoded once.
"""

from __future__ import annotations

import codecs
import json
import os
import random
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path

from lora.files import below, shown
from lora.options import Options

METADATA = "metadata.jsonl"
# How a caption's file beside its image may end.
TEXTS = (".txt", ".TXT", ".caption")
COLUMNS = ("text", "caption", "prompt")
# Each image is seen with this many orders of its tags, or its embeddings could not be kept.
ORDERS = 8


def repeats(path: Path) -> tuple[int, str]:
    """(how often an image counts, what its folder calls it) from a folder named 10_name; (1, "") elsewhere.

    The path is that within the dataset, whose own name does not travel with it. Four digits are a year.
    """
    match = re.fullmatch(r"(\d{1,3})_(.+)", path.parent.name)
    return (int(match[1]), match[2].replace("_", " ")) if match else (1, "")


def decoded(path: Path) -> str:
    """The text of a file in UTF-8; ValueError says what it seems to be instead."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        seems = "UTF-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "not UTF-8"
        raise ValueError(f"it is {seems} (byte {error.start}: {error.reason}); save it as UTF-8") from error


def plain(text: str) -> str:
    """The text with single spaces; ValueError where it holds what no text does, as a file in UTF-16 or a binary one would."""
    words = " ".join(text.split())
    if odd := next((c for c in words if unicodedata.category(c) in ("Cc", "Cs")), None):
        raise ValueError(f"it holds U+{ord(odd):04X}, which is no character of a text; save it as plain UTF-8")
    return words


def read_metadata(folder: Path) -> tuple[dict[Path, str], list[str]]:
    """(captions by image, what is wrong) of every metadata.jsonl below a folder: a JSON object a line with file_name and text."""
    found: dict[Path, str] = {}
    faults = []
    for file in below(folder, METADATA.__eq__):
        place = shown(file.relative_to(folder))
        try:
            lines = decoded(file).split("\n")
        except ValueError as error:
            faults.append(f"{place}: {error}")
            continue
        for number, line in enumerate(lines, 1):
            try:
                if line.strip():
                    image, text = read_line(line, file.parent)
                    if image in found:
                        raise ValueError(f"the image {shown(image.name)} has a caption in an earlier line")
                    found[image] = text
            except ValueError as error:
                faults.append(f"{place}:{number}: {error}")
    return found, faults


def read_line(line: str, folder: Path) -> tuple[Path, str]:
    """(image, caption) of one line of metadata; ValueError says what is wrong with it."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({error})") from error
    text = next((entry[key] for key in COLUMNS if key in entry), None) if isinstance(entry, dict) else None
    if not isinstance(text, str) or not isinstance(entry.get("file_name"), str):
        raise ValueError(f"it needs file_name and one of {', '.join(COLUMNS)}, both text")
    image = Path(os.path.normpath(folder / entry["file_name"]))
    if not os.path.isfile(image):
        raise ValueError(f"the image {shown(entry['file_name'])} is not there")
    return image, plain(text)


def text_file(path: Path) -> Path | None:
    """The caption's file beside an image."""
    return next((file for suffix in TEXTS if (file := path.with_suffix(suffix)).is_file()), None)


def read_caption(path: Path, metadata: Mapping[Path, str], name: str) -> str:
    """The caption of an image: the text beside it, else that of metadata.jsonl, else the name that its folder gives it.

    What cannot be read is a ValueError or an OSError that names the file.
    """
    text = metadata.get(path, "")
    if beside := text_file(path):
        try:
            text = plain(decoded(beside))
        except ValueError as error:
            raise ValueError(f"{shown(beside.name)}: {error}") from error
    try:
        return text or plain(name)
    except ValueError as error:
        raise ValueError(f"the folder's name: {error}") from error


def with_trigger(text: str, trigger: str) -> str:
    """The caption with the trigger word in it, as a word of its own: a category holds no cat."""
    if not trigger or re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", text):
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
