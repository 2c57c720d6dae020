"""The finished adapter: written for diffusers and PEFT and for kohya's readers (ComfyUI, A1111, sd-scripts), then read back.

    write(…)    NAME.safetensors (PEFT keys and the adapters' settings) and NAME_kohya.safetensors (kohya's layer names, fp16)
    verify(…)   reads both back, with diffusers' own reader where it can; every layer's update must be what was trained

Both formats have traps: converting PEFT keys drops attention layers when others are trained too, a file without the adapters'
settings is read as alpha = rank, and so is diffusers' own kohya conversion. Hence the own writer, and hence `verify`.

Editing rules: nothing is reported as finished before `verify` has passed; the names and shapes of kohya's format are in kohya.py.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save

from lora import kohya
from lora.adapters import ADAPTER, Updates, layers, updates
from lora.checkpoint import sync
from lora.ends import WrongFile
from lora.family import Family

# What a file in fp16 may differ by; the same factors rounded alike must agree exactly.
EXACT, ROUNDED = 1e-5, 5e-3


def write_atomically(path: Path, content: bytes) -> None:
    """All of the file or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(content)
        sync(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    sync(path.parent)


def serialize_header(settings: Mapping[str, Any]) -> dict[str, str]:
    """Metadata of the diffusers file; without the settings a reader assumes alpha = rank."""
    return {"format": "pt", "lora_adapter_metadata": json.dumps(settings, indent=2, sort_keys=True)}


def with_hashes(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata plus the hashes by which model sites recognise a file: of its tensor bytes, and of 64 KiB at 1 MiB."""
    content = serialize(tensors, {key: value for key, value in metadata.items() if key.startswith("ss_")})
    body = content[8 + int.from_bytes(content[:8], "little") :]
    digest = hashlib.sha256(body).hexdigest()
    legacy = io.BytesIO(content)
    legacy.seek(0x100000)
    return {
        **metadata,
        "modelspec.hash_sha256": "0x" + digest,
        "sshs_model_hash": digest,
        "sshs_legacy_hash": hashlib.sha256(legacy.read(0x10000)).hexdigest()[:8],
    }


def serialize(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file with its metadata in order: the library's own order varies, and so would the file's digest."""
    content = save(dict(tensors), dict(metadata))
    end = 8 + int.from_bytes(content[:8], "little")
    header = {"__metadata__": dict(sorted(metadata.items()))} | {
        k: v for k, v in json.loads(content[8:end]).items() if k != "__metadata__"
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + content[end:]


def portable(name: str, component: str) -> str:
    """A layer's name as every version of transformers reads it: newer ones leave text_model out of some of them."""
    return f"text_model.{name}" if component.startswith("text") and not name.startswith("text_model.") else name


def plain_tensors(family: Family) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(PEFT's own keys behind each part's name, the settings of each part's adapter)."""
    found: dict[str, torch.Tensor] = {}
    settings: dict[str, Any] = {}
    for component, part in family.parts().items():
        for key, value in get_peft_model_state_dict(part).items():
            found[f"{component}.{portable(key, component)}"] = value.detach().cpu().contiguous()
        for key, value in part.peft_config[ADAPTER].to_dict().items():
            settings[f"{component}.{key}"] = sorted(value) if isinstance(value, set) else value
    return found, settings


def write(family: Family, final: Path, name: str, metadata: Mapping[str, str]) -> tuple[Path, Path]:
    """Write both files; (diffusers file, kohya file)."""
    plain, settings = plain_tensors(family)
    diffusers_file, kohya_file = final / f"{name}.safetensors", final / f"{name}_kohya.safetensors"
    write_atomically(diffusers_file, serialize(plain, serialize_header(settings)))
    tensors = kohya.tensors(family)
    write_atomically(kohya_file, serialize(tensors, with_hashes(tensors, metadata)))
    return diffusers_file, kohya_file


def forget(final: Path, name: str, step: int) -> None:
    """Remove what was written on the way after a step that the training goes back to."""
    for path in final.glob(f"{glob.escape(name)}-*.safetensors"):
        number = path.stem.removesuffix("_kohya").removeprefix(f"{name}-")
        if number.isdecimal() and int(number) > step:
            path.unlink()


def trained(family: Family) -> Updates:
    """What was trained: the update of each layer of each part."""
    return Updates(
        {key: maker for component, part in family.parts().items() for key, maker in updates(part).behind(component).items()}
    )


def fresh(part: torch.nn.Module) -> Any:
    """A part of the same shape whose weights are never filled in, so that it takes addresses but next to no memory."""
    base = type(part)
    config = part.config
    with torch.device("meta"):
        made = base.from_config(dict(config)) if hasattr(base, "from_config") else base(config)
    # In fp32 whatever the part is held in: PEFT rounds an adapter's weights to the precision of those beside it.
    return made.float().to_empty(device="cpu")


def read_by_diffusers(path: Path, family: Family) -> Updates:
    """What diffusers' own reader makes of the net's part of a file."""
    from diffusers.loaders import lora_pipeline

    reader, net = getattr(lora_pipeline, family.READER), fresh(family.net)
    more = {"unet_config": net.config} if family.base.kind.net == "unet" else {}
    tensors, *alphas, metadata = reader.lora_state_dict(str(path), return_lora_metadata=True, local_files_only=True, **more)
    known = {"network_alphas": alphas[0] if alphas else None, "metadata": metadata, "low_cpu_mem_usage": True}
    getattr(reader, f"load_lora_into_{family.base.kind.net}")(tensors, **{family.base.kind.net: net}, **known)
    return updates(net)


def read_by_peft(path: Path, component: str, part: torch.nn.Module) -> torch.nn.Module:
    """The part with the adapter that a file holds for it: how PEFT alone reads the first of the two files."""
    with safe_open(path, "pt") as file:
        settings = json.loads(file.metadata()["lora_adapter_metadata"])
    own = {key.removeprefix(f"{component}."): value for key, value in settings.items() if key.startswith(f"{component}.")}
    inject_adapter_in_model(PeftConfig.from_peft_type(**own), part, ADAPTER)
    names = {portable(name, component): name for name in layers(part)}
    tensors = {}
    for key, value in load_file(path).items():
        layer = next((n for n in (key.removeprefix(f"{component}.").rsplit(".", i)[0] for i in (1, 2)) if n in names), None)
        if key.startswith(f"{component}.") and layer is not None:
            tensors[names[layer] + key.removeprefix(f"{component}.{layer}")] = value
    set_peft_model_state_dict(part, tensors)
    return part


def compare(path: Path, expected: Updates, found: Updates, allowed: float = EXACT) -> float:
    """The largest difference relative to the layer's largest value; raises WrongFile unless all are rounding."""
    missing = sorted(set(expected) ^ set(found))
    if missing:
        raise WrongFile(
            f"{path} does not read back: {len(missing)} of {len(expected)} layers are missing or foreign, such as {missing[0]}"
        )
    worst = 0.0
    for name in expected:
        update = expected[name]
        error = (found[name] - update).abs().max() / update.abs().max().clamp_min(1e-30)
        if not error <= allowed:
            raise WrongFile(f"{path} does not read back: the update of {name} differs by {error:.3g} of its largest value")
        worst = max(worst, float(error))
    return worst


def verify(family: Family, diffusers_file: Path, kohya_file: Path) -> None:
    """Read both files back; raises WrongFile unless every layer's update is what was trained."""
    expected, makers = trained(family), {}
    for component, part in family.parts().items():
        makers |= updates(read_by_peft(diffusers_file, component, fresh(part))).behind(component)
    tell(diffusers_file, "verified", len(makers), compare(diffusers_file, expected, Updates(makers)))
    fused = kohya.grouped(family, expected)
    content = load_file(kohya_file)
    tell(kohya_file, "verified", len(fused), compare(kohya_file, fused, kohya.read(content), ROUNDED))
    if family.diffusers_reads(kohya=False):
        net = updates(family.net)
        tell(diffusers_file, "diffusers reads", len(net), compare(diffusers_file, net, read_by_diffusers(diffusers_file, family)))
    if family.diffusers_reads(kohya=True):
        net = kohya.rounded(family.net, kohya.precision(content))
        tell(kohya_file, "diffusers reads", len(net), compare(kohya_file, net, read_by_diffusers(kohya_file, family)))


def tell(path: Path, what: str, count: int, worst: float) -> None:
    """One line for each thing that was checked."""
    print(f"{what} {path.name}: {count} layers as trained, largest difference {worst:.1e}", flush=True)
