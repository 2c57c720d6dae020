"""The base model: find it, make sure that it is of the family, name it by content, and load its parts one at a time.

    find(name, kind) → Base: a folder or file on this disk, fetched first if the name is owner/model or owner/model@revision of the hub;
                       BadInput if it is of another family
    Base.load(part)  → one part ("unet", "vae", "text_encoder", …) as a frozen module on the CPU

Editing rules: `find` reads a few kilobytes and imports neither torch nor diffusers, so a wrong model is reported at once; weights
are safetensors only, never pickle.
"""

from __future__ import annotations

import glob
import hashlib
import json
import math
import re
import struct
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora.ends import BadInput, Unavailable
from lora.memory import Footprint

SAMPLE_BYTES = 65536
INDEX = "model_index.json"
SCHEDULE = "scheduler/scheduler_config.json"
HUB_NAME = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[A-Za-z0-9][\w./-]*))?", re.ASCII)
WEIGHTS = re.compile(r"[^./]+(?P<half>\.fp16)?(-\d{5}-of-\d{5})?\.safetensors")
FOREIGN = re.compile(r"\.(bin|ckpt|pt|pth|h5|msgpack|pb|onnx(_data)?|xml|gguf)$|flax|openvino")
# How the names of the net's tensors begin in a checkpoint in one file.
SINGLE_FILE_NET = "model.diffusion_model."
# Empty tensors by which a checkpoint in one file says that its noise is not the family's usual one.
MARKS: Mapping[str, Mapping[str, Any]] = {
    "v_pred": {"prediction_type": "v_prediction"},
    "ztsnr": {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
}


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
        net = f"{self.kind.net}/"
        chosen = [] if single else chosen_files(local_files(self.path), self.kind)
        files = [self.path / file for file in chosen if file.startswith(net) and file.endswith(".safetensors")] or [self.path]
        found = {name: entry for file in files for name, entry in read_header(file).items() if name != "__metadata__"}
        prefix = SINGLE_FILE_NET if single else ""
        return sum(math.prod(entry["shape"]) for name, entry in found.items() if name.startswith(prefix)) / 1e9

    def variant_of(self, part: str) -> str | None:
        """The variant of a part's weights: the hub has some parts in half precision only."""
        return self.variant if self.variant and any((self.path / part).glob(f"*.{self.variant}*")) else None

    def scheduler_config(self) -> dict[str, Any]:
        """The noise schedule: as it is described, else the family's own; what a single file says of itself counts more."""
        single = self.path.is_file()
        folder = self.path.parent if single else self.path
        file = folder / SCHEDULE
        known = (described(folder) or not single) and file.is_file()
        config = dict(json.loads(file.read_text(encoding="utf-8")) if known else self.kind.scheduler)
        marks = MARKS.keys() & read_header(self.path).keys() if single else ()
        return config | {name: value for mark in sorted(marks) for name, value in MARKS[mark].items()}


def load_from_file(path: Path, part: str, dtype: Any, kind: Kind) -> Any:
    """One part of a single-file checkpoint; its configuration lies beside it, else diffusers fetches the family's from the hub once."""
    import diffusers
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    others = dict.fromkeys(set(kind.weights) - {part})
    beside = {"config": str(path.parent), "local_files_only": True} if described(path.parent) else {}
    try:
        pipeline = getattr(diffusers, kind.pipeline).from_single_file(str(path), torch_dtype=dtype, **others, **beside)
    except (OSError, ValueError, SingleFileComponentError) as error:
        end = Unavailable if isinstance(error, OSError) and not beside else BadInput
        raise end(
            f"{part} cannot be read from {path}: {error}\nA single file holds weights alone; the configuration and the tokenizers of "
            f"{kind.name} are fetched from the hub once, or taken from the file's folder if its {INDEX} and folders lie there"
        ) from error
    found = getattr(pipeline, part)
    return found if part.startswith("tokenizer") else found.requires_grad_(False).eval()


def described(folder: Path) -> bool:
    """Does a folder say what the parts of a model are?"""
    return (folder / INDEX).is_file()


def find(name: str, kind: Kind) -> Base:
    """The model of that name, checked to be of the family."""
    path = Path(name).expanduser()
    if path.is_dir():
        file = single_file_in(path, kind)
        return from_file(file, name, kind) if file else from_folder(path, name, kind)
    if path.is_file():
        return from_file(path, name, kind)
    if not (found := HUB_NAME.fullmatch(name)):
        raise BadInput(
            f"the base {name} does not exist; give a diffusers folder, a .safetensors file, or a hub id such as owner/model, "
            "owner/model@revision"
        )
    return from_folder(download(found["name"], found["revision"], kind), found["name"], kind)


def single_file_in(folder: Path, kind: Kind) -> Path | None:
    """The checkpoint of a folder that holds a single one and no parts: it may have the configuration beside it."""
    files = sorted(folder.glob("*.safetensors"))
    return files[0] if len(files) == 1 and not any((folder / kind.net).glob("*.safetensors")) else None


def chosen_files(names: Collection[str], kind: Kind) -> list[str]:
    """A model's files that are needed: descriptions, and one set of weights of each part, in half precision if the net has that.

    remote_trainer/hub/files.py foresees by the same rules what will be fetched; a test compares the two.
    """

    def weights(part: str, *, half: bool) -> list[str]:
        found = ((name, WEIGHTS.fullmatch(name.removeprefix(f"{part}/"))) for name in names if name.startswith(f"{part}/"))
        return [name for name, match in found if match and (match["half"] is not None) == half]

    chosen = [INDEX] if INDEX in names else []
    half = bool(weights(kind.net, half=True))
    for part in ("scheduler", *kind.parts):
        own = [name for name in names if name.startswith(f"{part}/")]
        chosen += [name for name in own if not name.endswith(".safetensors") and not FOREIGN.search(name)]
        chosen += (half and weights(part, half=True)) or weights(part, half=False)
    return sorted(chosen)


def local_files(folder: Path) -> list[str]:
    """The files of a model's parts, as the hub would list them."""
    return [file.relative_to(folder).as_posix() for file in folder.glob("*/*") if file.is_file()]


def download(name: str, revision: str | None, kind: Kind) -> Path:
    """A hub model's files on this disk: what was fetched before is not fetched again, and serves where the hub cannot be asked."""
    import huggingface_hub
    from huggingface_hub import errors

    unreachable = (
        *errors.HfHubHTTPError.__bases__,
        OSError,
    )  # the first is the HTTP client's class, which depends on the version
    try:
        found = huggingface_hub.HfApi().model_info(name, revision=revision)
        wanted = chosen_files([file.rfilename for file in found.siblings or ()], kind)
        # What lies in the cache under a commit's name is complete, file by file; downloads side by side wait for each other.
        return Path(huggingface_hub.snapshot_download(name, revision=found.sha, allow_patterns=[glob.escape(n) for n in wanted]))
    except errors.GatedRepoError as error:
        raise BadInput(f"the hub does not let us have {name}: accept its licence there, and set HF_TOKEN") from error
    except errors.RevisionNotFoundError as error:
        raise BadInput(f"the hub has no revision {revision} of {name}") from error
    except errors.RepositoryNotFoundError as error:
        raise BadInput(f"the hub has no model {name}, or it is private: check the name, set HF_TOKEN") from error
    except unreachable as error:
        if (response := getattr(error, "response", None)) is not None and response.status_code in (401, 403):
            raise BadInput(
                f"the hub does not take HF_TOKEN for {name} (status {response.status_code}): make a new one"
            ) from error
        return cached(name, revision, error)


def cached(name: str, revision: str | None, why: Exception) -> Path:
    """What is here of a hub model that cannot be asked for now: that commit, or the newest; whether it is whole is seen later."""
    from huggingface_hub import constants

    store = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    ref = store / "refs" / (revision or "main")
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision
    found = [index.parent for index in store.glob(f"snapshots/{commit or '*'}/{INDEX}")]
    if not found:
        raise Unavailable(f"the base {name} is not on this disk and could not be downloaded: {why}") from why
    print(f"base: the hub cannot be asked for {name} now, it is taken from the cache", flush=True)
    return max(found, key=lambda folder: folder.stat().st_mtime)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of the model, or BadInput that names it."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(f"the base model's {path} cannot be read: {error}") from error


def from_folder(path: Path, name: str, kind: Kind) -> Base:
    """A diffusers folder; refused when its classes or its configuration are of another family, or files are missing."""
    pipeline = str(read_json(path / INDEX).get("_class_name", "an unknown model"))
    config = read_json(path / kind.net / "config.json") if (path / kind.net).is_dir() else {}
    if reason := kind.foreign(pipeline, config):
        raise BadInput(f"the base {name} is not {kind.name}: {path / INDEX} says {pipeline}, {reason}")
    files = chosen_files(local_files(path), kind)
    weights = {part: [f for f in files if f.startswith(f"{part}/") and f.endswith(".safetensors")] for part in kind.weights}
    if empty := [part for part, found in weights.items() if not found]:
        raise BadInput(f"the base {name} has no .safetensors weights in {', '.join(str(path / part) for part in empty)}")
    check_shards(path, name, files)
    half = ".fp16" in weights[kind.net][0]
    known = [path / file for file in files if file.endswith((".json", ".safetensors"))]
    return Base(path, name, digest_of(known, path), "fp16" if half else None, kind)


def check_shards(path: Path, name: str, files: Collection[str]) -> None:
    """Refuse weights in shards of which some are missing, as after a copy or a download that broke off."""
    for index in (file for file in files if ".safetensors.index." in file):
        folder = index.split("/")[0]
        there = {file for file in files if file.startswith(f"{folder}/") and file.endswith(".safetensors")}
        named = {f"{folder}/{shard}" for shard in read_json(path / index).get("weight_map", {}).values()}
        applies = (".fp16." in index) == any(".fp16" in file for file in there)
        if applies and (missing := sorted(named - there)):
            raise BadInput(f"the base {name} is not complete: {path / missing[0]} is missing, which {path / index} names")


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
    schedule = path.parent / SCHEDULE
    beside = [schedule] if described(path.parent) and schedule.is_file() else []
    return Base(path, name, digest_of([path, *beside], path.parent), None, kind)


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
