"""What a model family must answer; each family's family.py does, and `lora/unet.py` does for the two that share a UNet.

A `Family` is the base model made ready to learn: the net, those text encoders that learn with it, and the arithmetic of its noise.

Editing rules: everything random comes from a generator that is handed in, so a step gives the same numbers after every resume;
nothing here keeps state between calls but the models.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from lora.base import Base
from lora.data import Photo
from lora.options import Options

if TYPE_CHECKING:
    from lora.cache import Cache

Tensors = dict[str, torch.Tensor]


class Family(ABC):
    """The base model with what is needed to ask it something."""

    TEXTS: ClassVar[Mapping[str, str]]
    """Text encoder → its tokenizer."""
    LEARNING_TEXTS: ClassVar[tuple[str, ...]]
    """The text encoders that may learn."""
    TARGETS: ClassVar[Mapping[str, Sequence[str]]]
    """--targets → how the names of the layers end that learn."""
    EXCLUDED: ClassVar[str] = ""
    """A layer, by its whole name, that does not learn although it ends as they do."""
    VERSION: ClassVar[str]
    """ss_base_model_version"""
    ARCHITECTURE: ClassVar[str]
    """modelspec.architecture"""
    IMPLEMENTATION: ClassVar[str]
    """modelspec.implementation"""
    READER: ClassVar[str]
    """diffusers' class that reads LoRA files, in diffusers.loaders.lora_pipeline."""
    PREFIXES: ClassVar[Mapping[str, str]]
    """Part that learns → how its layers' names begin in kohya's format."""
    roomy: bool = True
    """Whether the GPU has room to decode a sample whole."""

    def __init__(self, base: Base, options: Options, device: torch.device, dtype: torch.dtype) -> None:
        self.base, self.options, self.device, self.dtype = base, options, device, dtype
        self.net = base.load(base.kind.net, dtype).to(device)
        names = self.LEARNING_TEXTS if options.text_lr else ()
        self.encoders = {name: base.load(name, dtype).to(device) for name in names}
        self.tokenizers = {name: self.tokenizer(base, name, options) for name in names}

    def parts(self) -> dict[str, Any]:
        """The parts that learn, by the names of their folders."""
        return {self.base.kind.net: self.net, **self.encoders}

    def move(self, device: torch.device) -> None:
        """Take all of it to a device."""
        self.device = device
        for part in self.parts().values():
            part.to(device)

    def autocast(self) -> torch.autocast:
        """The forward pass in the precision of the frozen weights; the adapter itself is fp32."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def texts(self, cache: Cache, captions: Sequence[str]) -> Tensors:
        """Embeddings of captions: from the cache, or asked anew of the encoders that learn."""
        rows = [cache.text(caption, self.device) for caption in captions]
        found = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
        if self.encoders:
            with self.autocast():
                found |= self.encode_texts(self.tokenizers, self.encoders, captions)
        return found

    def batch(self, cache: Cache, photos: Sequence[Photo], captions: Sequence[str]) -> Tensors:
        """All that a pass needs: latent mean and std (n, c, h, w), text embeddings, and what else the family wants to know."""
        return {**cache.images(photos, self.device), **self.texts(cache, captions), **self.conditions(photos)}

    def errors(
        self, batch: Mapping[str, torch.Tensor], latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor
    ) -> torch.Tensor:
        """Squared error of each value of each image's prediction, (n, c, h, w)."""
        noisy, target = self.mix(latents, noise, times)
        with self.autocast():
            predicted = self.predict(noisy, times, batch)
        return (predicted.float() - target).square()

    def conditions(self, photos: Sequence[Photo]) -> Tensors:
        """What the net is told of the images besides their captions."""
        return {}

    @classmethod
    def tokenizer(cls, base: Base, encoder: str, options: Options) -> Any:
        """The tokenizer of a text encoder."""
        return base.load(cls.TEXTS[encoder], None)

    @staticmethod
    def text_settings(options: Options) -> tuple[object, ...]:
        """Options that change what the text encoders say."""
        return ()

    @staticmethod
    def text_precision(encoder: str, device: torch.device) -> torch.dtype:
        """The precision in which a text encoder fills the cache."""
        return torch.float32

    @staticmethod
    @abstractmethod
    def encode_pixels(vae: Any, pixels: torch.Tensor) -> Tensors:
        """{"mean", "std"} (c, h, w) of the latent distribution of pixels (1, 3, h, w) in -1..1, as the net is fed."""

    @staticmethod
    @abstractmethod
    def encode_texts(tokenizers: Mapping[str, Any], encoders: Mapping[str, Any], captions: Sequence[str]) -> Tensors:
        """What these encoders tell of captions, (n, …) each."""

    @abstractmethod
    def pick_times(self, draw: torch.Generator, latents: torch.Size) -> torch.Tensor:
        """Random times for training, (n,), for latents of that shape."""

    @abstractmethod
    def even_times(self, places: torch.Tensor, latents: torch.Size) -> torch.Tensor:
        """The times at these places in 0..1 of what training draws, (n,)."""

    def noise(self, noise: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
        """The noise of training, made from plain noise."""
        return noise

    @abstractmethod
    def mix(self, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(noisy latents, what the net should say of them)."""

    @abstractmethod
    def predict(self, noisy: torch.Tensor, times: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What the net says of noisy latents, in their shape."""

    def weights(self, times: torch.Tensor) -> torch.Tensor:
        """How much each image of a pass counts, (n,)."""
        return torch.ones(len(times), device=self.device)

    @abstractmethod
    def denoise(self, texts: Tensors, size: tuple[int, int], draw: torch.Generator) -> torch.Tensor:
        """Latents (1, c, h, w) of a sample of (width, height) px; the texts are the empty prompt and the wanted one."""

    @staticmethod
    @abstractmethod
    def decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
        """Pixels (3, h, w) in -1..1."""

    def kohya_groups(self, rows: Mapping[str, int]) -> dict[str, list[tuple[str | None, int]]]:
        """Layer of kohya's format → the net's layers it holds, with their rows (lora/kohya.py); one each unless said otherwise."""
        prefix = self.PREFIXES[self.base.kind.net]
        return {(prefix + self.original_name(name)).replace(".", "_"): [(name, count)] for name, count in rows.items()}

    @staticmethod
    def original_name(name: str) -> str:
        """diffusers' name of a layer of the net → its name in kohya's format, with dots."""
        return name

    def diffusers_reads(self, kohya: bool) -> bool:
        """Whether diffusers itself can read the file (kohya's, or the first) of this network: no LoHa, LoKr, or DoRA of kohya's."""
        return self.options.network == "lora" or (self.options.network == "dora" and not kohya)

    def spec(self) -> dict[str, str]:
        """modelspec fields of the family's own."""
        return {}
