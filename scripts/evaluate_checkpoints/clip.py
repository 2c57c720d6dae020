"""The CLIP model that judges: found before anything expensive, and what it says of pictures and prompts.

    find(name)      the folder with the model, fetched from the hub if it must be; BadInput if it is no CLIP
    Clip(…)         embeddings of pictures and prompts, (n, d) on the CPU in fp32, as CLIP gives them

Editing rules: `find` imports no torch; pictures are prepared here, without torchvision; weights are safetensors only, never pickle.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluate_checkpoints.options import NO_CLIP
from lora.ends import BadInput, Unavailable

if TYPE_CHECKING:
    import torch
    from PIL import Image

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
FILES = ("*.json", "merges.txt", "*.safetensors")
BATCH = 16


def find(name: str) -> Path | None:
    """The folder of the model of that name; None if there is to be none."""
    if name == NO_CLIP:
        return None
    path = Path(name).expanduser()
    if not path.is_dir():
        if path.exists() or path.is_absolute() or name.startswith(".") or name.count("/") != 1:
            raise BadInput(f"--clip {name} is no folder; give one, a hub id such as openai/clip-vit-large-patch14, or none")
        path = download(name)
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"the CLIP model {name} has no readable config.json: {error}") from error
    if config.get("model_type") != "clip":
        raise BadInput(f"--clip {name} is not a CLIP model: {path / 'config.json'} says {config.get('model_type')}")
    if not any(path.glob("*.safetensors")):
        raise BadInput(f"the CLIP model {name} has no .safetensors weights; take one that has")
    if not any((path / file).is_file() for file in ("tokenizer.json", "vocab.json")):
        raise BadInput(f"the CLIP model {name} has no tokenizer (tokenizer.json, or vocab.json with merges.txt)")
    return path


def download(name: str) -> Path:
    """A hub model's files on this disk."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(FILES)))
    except RepositoryNotFoundError as error:
        raise BadInput(
            f"the hub has no model {name}, or it is private: check --clip, set HF_TOKEN, or pass --clip none"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise Unavailable(
            f"the CLIP model {name} is not on this disk and could not be downloaded; pass a folder, or --clip none: {error}"
        ) from error


class Clip:
    """The model, loaded."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        import torch
        from transformers import CLIPModel, CLIPTokenizer

        loaded = CLIPModel.from_pretrained(str(folder), dtype=torch.float32, local_files_only=True, use_safetensors=True)
        self.model, self.device = loaded.eval().to(device), device
        self.tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
        self.size = int(self.model.config.vision_config.image_size)
        file = folder / "preprocessor_config.json"
        stated: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        self.mean, self.std = (
            torch.tensor(stated.get(key, usual)).view(3, 1, 1) for key, usual in (("image_mean", MEAN), ("image_std", STD))
        )

    def prepared(self, image: Image.Image) -> torch.Tensor:
        """(3, size, size): the shorter side scaled to the model's size, cut at the centre, normalised."""
        import numpy as np
        import torch

        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float() / 255
        scale = self.size / min(image.size)
        height, width = (max(self.size, int(side * scale)) for side in pixels.shape[-2:])
        scaled = torch.nn.functional.interpolate(pixels, size=(height, width), mode="bicubic", antialias=True)[0].clamp(0, 1)
        top, left = (height - self.size) // 2, (width - self.size) // 2
        return (scaled[:, top : top + self.size, left : left + self.size] - self.mean) / self.std

    def images(self, opened: Sequence[Callable[[], Image.Image]], stopping: Callable[[], None]) -> torch.Tensor:
        """Embeddings of pictures, each opened when its turn has come."""
        import torch

        rows = []
        with torch.inference_mode():
            for start in range(0, len(opened), BATCH):
                stopping()
                batch = torch.stack([self.prepared(image()) for image in opened[start : start + BATCH]])
                rows.append(embedding(self.model.get_image_features(pixel_values=batch.to(self.device))))
        return torch.cat(rows)

    def texts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Embeddings of prompts; what is longer than CLIP reads is cut off."""
        import torch

        length = self.model.config.text_config.max_position_embeddings
        told = self.tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            return embedding(self.model.get_text_features(**{key: value.to(self.device) for key, value in told.items()}))


def embedding(result: Any) -> torch.Tensor:
    """The embedding itself: newer versions of transformers wrap it."""
    found: torch.Tensor = result if hasattr(result, "cpu") else result.pooler_output
    return found.float().cpu()
