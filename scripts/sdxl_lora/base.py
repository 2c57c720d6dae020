"""The base model: find it, make sure that it is SDXL, name it by content, and load its parts one at a time.

    find(name)      → Base: a folder or file on this disk, downloaded first if the name is a hub id; BadInput if it is not SDXL
    Base.load(part) → one part ("unet", "vae", "text_encoder", …) as a frozen module on the CPU

Editing rules: `find` reads a few kilobytes and imports neither torch nor diffusers, so a wrong model is reported at once; weights
are safetensors only, never pickle.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ends import BadInput, Unavailable

PARTS = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "tokenizer_2": ("transformers", "CLIPTokenizer"),
}
WEIGHTS = ("unet", "vae", "text_encoder", "text_encoder_2")
HUB_FILES = ["*.json", "*.txt", "unet/*", "vae/*", "text_encoder/*", "text_encoder_2/*", "tokenizer/*", "tokenizer_2/*"]
# What only an SDXL checkpoint in one file has: the second text encoder's projection.
SINGLE_FILE_MARK = "conditioner.embedders.1.model.text_projection"
SAMPLE_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Base:
    """An SDXL model on this disk."""

    path: Path
    name: str
    """What the user called it."""
    digest: str
    """Identity by content: the same model under another path has the same digest."""
    variant: str | None
    """"fp16" when only the half-precision weights are there."""

    def load(self, part: str, dtype: Any) -> Any:
        """One part, frozen, on the CPU; tokenizers ignore `dtype`."""
        import diffusers
        import transformers

        package, kind = PARTS[part]
        loader = getattr({"diffusers": diffusers, "transformers": transformers}[package], kind)
        if self.path.is_file():
            return load_from_file(self.path, part, dtype)
        if part.startswith("tokenizer"):
            return loader.from_pretrained(str(self.path / part), local_files_only=True)
        model = loader.from_pretrained(
            str(self.path / part), dtype=dtype, variant=self.variant, local_files_only=True, use_safetensors=True
        )
        return model.requires_grad_(False).eval()

    def scheduler_config(self) -> dict[str, Any]:
        """The noise schedule; SDXL's own where the model is a single file."""
        file = self.path / "scheduler" / "scheduler_config.json"
        if self.path.is_dir() and file.is_file():
            return dict(json.loads(file.read_text(encoding="utf-8")))
        return {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def load_from_file(path: Path, part: str, dtype: Any) -> Any:
    """One part of a single-file checkpoint; its configuration is SDXL's, which diffusers fetches from the hub once."""
    from diffusers import StableDiffusionXLPipeline

    others = dict.fromkeys(set(WEIGHTS) - {part})
    try:
        pipeline = StableDiffusionXLPipeline.from_single_file(str(path), torch_dtype=dtype, **others)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{part} cannot be read from {path} (SDXL's configuration is fetched from the hub once): {error}"
        ) from error
    found = getattr(pipeline, part)
    return found if part.startswith("tokenizer") else found.requires_grad_(False).eval()


def find(name: str) -> Base:
    """The model of that name, checked to be SDXL."""
    path = Path(name).expanduser()
    if path.is_dir():
        return from_folder(path, name)
    if path.is_file():
        return from_file(path, name)
    if path.is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise BadInput(
            f"the base {name} does not exist; give a diffusers folder, a .safetensors file, or a hub id such as owner/model"
        )
    return from_folder(download(name), name)


def download(name: str) -> Path:
    """A hub model's files on this disk; half-precision weights where the hub has them, which halves the transfer."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        files = huggingface_hub.list_repo_files(name)
        half = "unet/diffusion_pytorch_model.fp16.safetensors" in files
        unwanted = ["*.bin", "*.ckpt", "*.msgpack", "*.onnx*", "*flax*", "*openvino*"]
        if half:
            unwanted += [f for f in files if f.endswith(".safetensors") and not f.endswith(".fp16.safetensors")]
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=HUB_FILES, ignore_patterns=unwanted))
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


def from_folder(path: Path, name: str) -> Base:
    """A diffusers folder; refused when its classes or its UNet are of another family."""
    index = read_json(path / "model_index.json")
    kind = str(index.get("_class_name", "an unknown model"))
    config = read_json(path / "unet" / "config.json") if "StableDiffusion" in kind else {}
    if "XL" not in kind or config.get("addition_embed_type") != "text_time":
        raise BadInput(f"the base {name} is not SDXL: {path / 'model_index.json'} says {kind}; give an SDXL model")
    if (channels := config.get("in_channels", 4)) != 4:
        raise BadInput(
            f"the base {name} is an SDXL variant for other inputs ({channels} channels in {path / 'unet'}), not the plain model"
        )
    weights = {part: sorted((path / part).glob("*.safetensors")) for part in WEIGHTS}
    if empty := [part for part, files in weights.items() if not files]:
        raise BadInput(f"the base {name} has no .safetensors weights in {', '.join(str(path / part) for part in empty)}")
    half = all(".fp16" in file.name for file in weights["unet"])
    return Base(
        path,
        name,
        digest_of([*path.glob("*/*.json"), *(f for files in weights.values() for f in files)], path),
        "fp16" if half else None,
    )


def from_file(path: Path, name: str) -> Base:
    """A checkpoint in one .safetensors file; refused when the header lacks what only SDXL has."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length)) if length < 100_000_000 else {}
    except (OSError, ValueError, struct.error) as error:
        raise BadInput(f"the base {name} is not a readable .safetensors file: {error}") from error
    if SINGLE_FILE_MARK not in header:
        raise BadInput(f"the base {name} is not an SDXL checkpoint: it has no {SINGLE_FILE_MARK}")
    return Base(path, name, digest_of([path], path.parent), None)


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
