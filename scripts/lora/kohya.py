"""Kohya's format: how each kind of adapter is written for ComfyUI, A1111 and sd-scripts, and how they read it.

    tensors(family)   everything of the file, in fp16 where that holds it
    read(tensors)     the update of each layer as those readers compute it
    grouped(…)        the trained updates under the file's names

A layer of the file may hold several layers of diffusers: FLUX's original has query, key and value in one matrix.

Editing rules: `read` and the trained updates share nothing with `factors`, so that they check it; strengths are folded in so that
every reader's own scale, alpha over the rank, comes out right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from lora.adapters import Updates, layers, weights
from lora.ends import WrongFile
from lora.family import Family

Tensors = dict[str, torch.Tensor]
Group = list[tuple[str | None, int]]

# What fp16 may lose of a tensor, relative to its largest value: what rounding loses of a number that is not among the smallest, 2⁻¹¹.
FP16_LOSES = 5e-4


def balanced(*parts: torch.Tensor) -> list[torch.Tensor]:
    """All made about equally large by powers of two: the product is the same, and fp16 holds all of them well.

    Early in a training one factor is so small that fp16 alone would lose most of it.
    """
    sizes = [float(part.abs().max()) for part in parts]
    if min(sizes) == 0:
        return list(parts)
    logs = [math.log2(size) for size in sizes]
    shifts = [round(sum(logs) / len(logs) - log) for log in logs]
    shifts[0] -= sum(shifts)
    return [part * 2.0**shift for part, shift in zip(parts, shifts, strict=True)]


def precision(content: Tensors) -> torch.dtype:
    """What a file is written in: fp16, as its readers expect, unless that would lose what is learnt, for it is too small; else fp32."""

    def holds(value: torch.Tensor) -> bool:
        largest = value.abs().max()
        return bool((value.half().float() - value).abs().max() <= FP16_LOSES * largest)

    return torch.float16 if all(holds(value) for key, value in content.items() if not key.endswith(".alpha")) else torch.float32


def factors(layer: Any) -> Tensors:
    """One layer's tensors by their names in the file, fp32."""
    scaling, rank = float(next(iter(layer.scaling.values()))), int(next(iter(layer.r.values())))
    held = weights(layer)
    if "lora_A" in held:
        down, up = balanced(held["lora_A"], held["lora_B"])
        made = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(scaling * rank)}
        if "lora_magnitude_vector" in held:
            shape = (-1, *[1] * (layer.get_base_layer().weight.dim() - 1))
            made["dora_scale"] = held["lora_magnitude_vector"].reshape(shape)
        return made
    if "hada_w1_a" in held:
        names = [f"hada_w{number}_{side}" for number in (1, 2) for side in "ab"]
        made = zip(names, balanced(*(held[name] for name in names)), strict=True)
        return {**dict(made), "alpha": torch.tensor(scaling * rank)}
    if "lokr_w1" in held:
        # Readers scale by alpha over rank or, when both are whole, not at all: with the strength folded in both are 1.
        first, alpha = held["lokr_w1"] * scaling, torch.tensor(float(rank))
        if "lokr_w2" in held:
            first, second = balanced(first, held["lokr_w2"])
            return {"lokr_w1": first, "lokr_w2": second, "alpha": alpha}
        first, left, right = balanced(first, held["lokr_w2_a"], held["lokr_w2_b"])
        return {"lokr_w1": first, "lokr_w2_a": left, "lokr_w2_b": right, "alpha": alpha}
    raise WrongFile(f"an adapter of {type(layer).__name__} has no form in kohya's format; this is a defect of the trainer")


def delta(parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What the tensors of one layer add to its weight, (out, in · kernel), as the readers compute it."""
    found = {key: value.float() for key, value in parts.items()}
    alpha = float(found["alpha"])
    if "lora_up.weight" in found:
        up, down = found["lora_up.weight"].flatten(1), found["lora_down.weight"].flatten(1)
        return alpha / len(down) * (up @ down)
    if "hada_w1_a" in found:
        product = (found["hada_w1_a"] @ found["hada_w1_b"]) * (found["hada_w2_a"] @ found["hada_w2_b"])
        return alpha / len(found["hada_w1_b"]) * product
    whole, rank = "lokr_w2" in found, found.get("lokr_w2_b")
    second = found["lokr_w2"].flatten(1) if rank is None else found["lokr_w2_a"] @ rank.flatten(1)
    return (1.0 if whole or rank is None else alpha / len(rank)) * torch.kron(found["lokr_w1"], second)


def rounded(part: torch.nn.Module, dtype: torch.dtype) -> Updates:
    """What the layers of a part add when their factors are rounded as the file holds them."""

    def make(layer: Any) -> torch.Tensor:
        return delta({key: value if key == "alpha" else value.to(dtype) for key, value in factors(layer).items()})

    return Updates({name: partial(make, layer) for name, layer in layers(part).items()})


def groups(family: Family) -> dict[str, tuple[str, Group]]:
    """Layer of the file → (part, which of its layers it holds, one below the other, with how many rows; None: none)."""
    found = {}
    for component, part in family.parts().items():
        rows = {name: len(layer.get_base_layer().weight) for name, layer in layers(part).items()}
        if part is family.net:
            found |= {key: (component, group) for key, group in family.kohya_groups(rows).items()}
        else:
            prefix = family.PREFIXES[component] + "text_model."
            keys = {(prefix + name.removeprefix("text_model.")).replace(".", "_"): name for name in rows}
            found |= {key: (component, [(name, rows[name])]) for key, name in keys.items()}
    return found


def joined(members: list[Tensors | None], rows: list[int]) -> Tensors:
    """Several LoRA layers as one: the downs one below the other, the ups in blocks along the diagonal; equal strengths."""
    (scale,) = {float(member["alpha"]) / len(member["lora_down.weight"]) for member in members if member}
    down = torch.cat([member["lora_down.weight"] for member in members if member])
    up, top, left = torch.zeros(sum(rows), len(down)), 0, 0
    for member, height in zip(members, rows, strict=True):
        if member:
            block = member["lora_up.weight"]
            up[top : top + height, left : left + block.shape[1]] = block
            left += block.shape[1]
        top += height
    return {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(scale * len(down))}


def tensors(family: Family) -> Tensors:
    """All of the file: factors, in fp16 where that holds them, and for each layer the alpha that gives the scale it was trained with."""
    found: Tensors = {}
    parts = {component: layers(part) for component, part in family.parts().items()}
    for key, (component, group) in groups(family).items():
        members = [factors(parts[component][name]) if name else None for name, _ in group]
        made = members[0] if len(members) == 1 else joined(members, [rows for _, rows in group])
        assert made is not None
        found |= {f"{key}.{suffix}": value for suffix, value in made.items()}
    dtype = precision(found)
    return {key: value if key.endswith(".alpha") else value.to(dtype).contiguous() for key, value in found.items()}


def read(content: Mapping[str, torch.Tensor]) -> Updates:
    """The update of each layer of a file; a DoRA layer's own strength is beside it."""
    by_layer: dict[str, Tensors] = {}
    for key, value in content.items():
        layer, suffix = key.split(".", 1)
        by_layer.setdefault(layer, {})[suffix] = value
    makers: dict[str, Callable[[], torch.Tensor]] = {layer: partial(delta, parts) for layer, parts in by_layer.items()}
    scales = {layer: parts["dora_scale"] for layer, parts in by_layer.items() if "dora_scale" in parts}
    return Updates(makers | {f"{layer}.magnitude": scale.flatten().float for layer, scale in scales.items()})


def grouped(family: Family, updates: Mapping[str, torch.Tensor]) -> Updates:
    """Trained updates under the file's names; layers that the file holds together are one below the other."""
    makers: dict[str, Callable[[], torch.Tensor]] = {}

    def make(component: str, group: Group) -> torch.Tensor:
        present = {name: updates[f"{component}.{name}"] for name, _ in group if name}
        blank = torch.zeros_like(next(iter(present.values()))[:1])
        return torch.cat([present[name] if name else blank.expand(rows, -1) for name, rows in group])

    for key, (component, group) in groups(family).items():
        makers[key] = partial(make, component, group)
        if (strength := f"{component}.{group[0][0]}.magnitude") in updates:
            makers[f"{key}.magnitude"] = partial(updates.__getitem__, strength)
    return Updates(makers)
