"""Which files of a model in the layout of diffusers a training fetches, so that their size is known before a machine is rented.

Rules for editing: pure. The trainer chooses by the same rules in scripts/lora/base.py (``chosen_files``), which imports nothing of
ours; tests/train/test_lora_hub.py compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

INDEX = "model_index.json"

#: Weights are NAME.safetensors or NAME.fp16.safetensors, whole or in shards.
_WEIGHTS = re.compile(r"[^./]+(?P<half>\.fp16)?(-\d{5}-of-\d{5})?\.safetensors")
_FOREIGN = re.compile(r"\.(bin|ckpt|pt|pth|h5|msgpack|pb|onnx(_data)?|xml|gguf)$|flax|openvino")


def fetched_files(names: Collection[str], folders: Sequence[str]) -> list[str]:
    """Return what is fetched: the descriptions, and of each folder one set of weights.

    That is the one in half precision if the first folder, the net that learns, has it: it takes half the time.
    """
    half = any(_is_weight(name, folders[0], half=True) for name in names)
    halved = {folder for folder in folders if half and any(_is_weight(name, folder, half=True) for name in names)}
    return sorted(name for name in names if _is_fetched(name, folders, halved))


def lacking_weights(names: Collection[str], folders: Sequence[str]) -> list[str]:
    """Return the folders that have weights in other forms only, or no files at all."""
    fetched = fetched_files(names, folders)
    there = {name.split("/")[0] for name in fetched}
    foreign = {folder for folder in folders if any(name.startswith(f"{folder}/") and _FOREIGN.search(name) for name in names)}
    safe = {name.split("/")[0] for name in fetched if name.endswith(".safetensors")}
    return [folder for folder in folders if folder not in there or (folder in foreign and folder not in safe)]


def _is_weight(name: str, folder: str, *, half: bool) -> bool:
    owner, _, file = name.partition("/")
    found = _WEIGHTS.fullmatch(file)
    return owner == folder and found is not None and (found["half"] is not None) == half


def _is_fetched(name: str, folders: Sequence[str], halved: Collection[str]) -> bool:
    folder, slash, file = name.partition("/")
    if not slash:
        return name == INDEX
    if folder not in (*folders, "scheduler") or _FOREIGN.search(file):
        return False
    return not file.endswith(".safetensors") or _is_weight(name, folder, half=folder in halved)
