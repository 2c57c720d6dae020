"""The base model: find it, make sure that it is of the family, name it by content, and load its parts one at a time.

    find(name, kind) → Base: a folder or file on this disk, downloaded first if the name is a hub id; BadInput if of another family
    Base.load(part)  → one part ("unet", "vae", "text_encoder", …) as a frozen module on the CPU

Editing rules: `find` reads a few kilobytes and imports neither torch nor diffusers, so a wrong model is reported at once; weights
are safetensors only, never pickle.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora.ends import BadInput, Unavailable
from lora.memory import Footprint

SAMPLE_BYTES = 65536
# How the names of the net's tensors begin in a checkpoint in one file.
SINGLE_FILE_NET = "model.diffusion_model."


@dataclass(frozen=True, slots=True)
class Kind:
    """What a family's base models look like on disk."""

    name: str
    """What people call the family."""
    net: str
    """The part that learns: "unet" or "transformer"."""
    parts: Mapping[str, tuple[str, str]]
    """Folder → (package, class)."""
    pipeline: str
    """diffusers' class for the whole; it reads single files."""
    scheduler: Mapping[str, Any]
    """The noise schedule where the model is a single file."""
    foreign: Callable[[str, Mapping[str, Any]], str]
    """(the pipeline's class, the net's configuration) → why it is not of this family, or an empty string."""
    single_file: Callable[[Mapping[str, Any]], str]
    """Header of a single file → why it is not of this family, or an empty string."""
    footprint: Footprint
    """What its training needs of a GPU's memory."""

    @property
    def weights(self) -> tuple[str, ...]:
        """The parts that have weights."""
        return tuple(part for part in self.parts if not part.startswith("tokenizer"))


@dataclass(frozen=True, slots=True)
class Base:
    """A model on this disk."""

    path: Path
    name: str
    """What the user called it."""
    digest: str
    """Identity by content: the same model under another path has the same digest."""
    variant: str | None
    """"fp16" when only the half-precision weights are there."""
    kind: Kind

    def load(self, part: str, dtype: Any) -> Any:
        """One part, frozen, on the CPU; tokenizers ignore `dtype`."""
        import diffusers
        import transformers

        if self.path.is_file():
            return load_from_file(self.path, part, dtype, self.kind)
        package, name = self.kind.parts[part]
        loader = getattr({"diffusers": diffusers, "transformers": transformers}[package], name)
        if part.startswith("tokenizer"):
            return loader.from_pretrained(str(self.path / part), local_files_only=True)
        model = loader.from_pretrained(
            str(self.path / part), dtype=dtype, variant=self.variant_of(part), local_files_only=True, use_safetensors=True
        )
        return model.requires_grad_(False).eval()

    def net_weights(self) -> float:
        """How many weights the net has, in billions."""
        single = self.path.is_file()
        files = [self.path] if single else sorted((self.path / self.kind.net).glob("*.safetensors"))
        found = {name: entry for file in files for name, entry in read_header(file).items() if name != "__metadata__"}
        prefix = SINGLE_FILE_NET if single else ""
        return sum(math.prod(entry["shape"]) for name, entry in found.items() if name.startswith(prefix)) / 1e9

    def variant_of(self, part: str) -> str | None:
        """The variant of a part's weights: the hub has some parts in half precision only."""
        return self.variant if self.variant and any((self.path / part).glob(f"*.{self.variant}*")) else None

    def scheduler_config(self) -> dict[str, Any]:
        """The noise schedule; the family's own where the model is a single file."""
        file = self.path / "scheduler" / "scheduler_config.json"
        if self.path.is_dir() and file.is_file():
            return dict(json.loads(file.read_text(encoding="utf-8")))
        return dict(self.kind.scheduler)


def load_from_file(path: Path, part: str, dtype: Any, kind: Kind) -> Any:
    """One part of a single-file checkpoint; its configuration is the family's, which diffusers fetches from the hub once."""
    import diffusers

    others = dict.fromkeys(set(kind.weights) - {part})
    try:
        pipeline = getattr(diffusers, kind.pipeline).from_single_file(str(path), torch_dtype=dtype, **others)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{part} cannot be read from {path} ({kind.name}'s configuration is fetched from the hub once): {error}"
        ) from error
    found = getattr(pipeline, part)
    return found if part.startswith("tokenizer") else found.requires_grad_(False).eval()


def find(name: str, kind: Kind) -> Base:
    """The model of that name, checked to be of the family."""
    path = Path(name).expanduser()
    if path.is_dir():
        return from_folder(path, name, kind)
    if path.is_file():
        return from_file(path, name, kind)
    if path.is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise BadInput(
            f"the base {name} does not exist; give a diffusers folder, a .safetensors file, or a hub id such as owner/model"
        )
    return from_folder(download(name, kind), name, kind)


def download(name: str, kind: Kind) -> Path:
    """A hub model's files on this disk; half-precision weights where the hub has them, which halves the transfer."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        files = huggingface_hub.list_repo_files(name)
        half = any(file.startswith(f"{kind.net}/") and file.endswith(".fp16.safetensors") for file in files)
        unwanted = ["*.bin", "*.ckpt", "*.msgpack", "*.onnx*", "*flax*", "*openvino*"]
        if half:
            halved = {f.split("/")[0] for f in files if f.endswith(".fp16.safetensors")}
            unwanted += [
                f
                for f in files
                if f.endswith(".safetensors") and not f.endswith(".fp16.safetensors") and f.split("/")[0] in halved
            ]
        wanted = ["*.json", "*.txt", *(f"{part}/*" for part in kind.parts)]
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted, ignore_patterns=unwanted))
    except RepositoryNotFoundError as error:
        raise BadInput(
            f"the hub has no model {name}, or it is private: check the name, accept its licence, set HF_TOKEN"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise Unavailable(f"the base {name} is not on this disk and could not be downloaded: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of the model, or BadInput that names it."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise BadInput(f"the base model's {path} cannot be read: {error}") from error


def from_folder(path: Path, name: str, kind: Kind) -> Base:
    """A diffusers folder; refused when its classes or its configuration are of another family."""
    pipeline = str(read_json(path / "model_index.json").get("_class_name", "an unknown model"))
    config = read_json(path / kind.net / "config.json") if (path / kind.net).is_dir() else {}
    if reason := kind.foreign(pipeline, config):
        raise BadInput(f"the base {name} is not {kind.name}: {path / 'model_index.json'} says {pipeline}, {reason}")
    weights = {part: sorted((path / part).glob("*.safetensors")) for part in kind.weights}
    if empty := [part for part, files in weights.items() if not files]:
        raise BadInput(f"the base {name} has no .safetensors weights in {', '.join(str(path / part) for part in empty)}")
    half = all(".fp16" in file.name for file in weights[kind.net])
    return Base(
        path,
        name,
        digest_of([*path.glob("*/*.json"), *(f for files in weights.values() for f in files)], path),
        "fp16" if half else None,
        kind,
    )


def read_header(path: Path) -> dict[str, Any]:
    """Name → type, shape and place of each tensor of a .safetensors file."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return dict(json.loads(file.read(length))) if length < 100_000_000 else {}


def from_file(path: Path, name: str, kind: Kind) -> Base:
    """A checkpoint in one .safetensors file; refused when the header lacks what only this family has."""
    try:
        header = read_header(path)
    except (OSError, ValueError, struct.error) as error:
        raise BadInput(f"the base {name} is not a readable .safetensors file: {error}") from error
    if reason := kind.single_file(header):
        raise BadInput(f"the base {name} is not a checkpoint of {kind.name}: {reason}")
    return Base(path, name, digest_of([path], path.parent), None, kind)


def digest_of(files: list[Path], root: Path) -> str:
    """SHA-256 over names, sizes, and the first and last 64 KiB of each: cheap for a 7 GB model, and another model differs in it."""
    total = hashlib.sha256()
    for file in sorted(files):
        size = file.stat().st_size
        total.update(f"{file.relative_to(root).as_posix()} {size}\n".encode())
        with file.open("rb") as stream:
            total.update(stream.read(SAMPLE_BYTES))
            stream.seek(max(0, size - SAMPLE_BYTES))
            total.update(stream.read(SAMPLE_BYTES))
    return total.hexdigest()
