"""Make a tiny SDXL base that knows eight photographs by heart: the stand-in for a model one can see through.

    python -m demo.base OUT      # some minutes on two cores; goes on where it was interrupted

The folder has the layout of a diffusers SDXL pipeline. Its VAE learns to encode all photographs, as a real one encodes any picture,
and its text encoders to tell their captions apart; its UNet learns to draw those whose captions have no cat in them, each from its
caption. So a LoRA has something to teach, and something to keep.

Editing rules: the UNet never sees what the LoRA is to teach; all but the VAE's widths is that of scripts/make_tiny_sdxl.py.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline
from diffusers.utils import logging
from torch.nn import functional

from demo.lesson import Lesson, Loss, learn
from demo.photographs import Photograph, read

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

import make_tiny_sdxl

# The VAE is narrow where pictures are large, which costs most, and wide where they are small: there is room to learn by heart.
VAE_WIDTHS, VAE_GROUPS = (16, 16, 32, 128), 16
VAE_BATCH, UNET_BATCH = 4, 8
VAE_RATE, TEXT_RATE, UNET_RATE = 2e-3, 1e-3, 1.5e-3
EMPTY_CAPTIONS = 0.1
"""Share of draws with an empty caption, which guidance needs."""


@dataclass(frozen=True, slots=True)
class Steps:
    """How long each part learns; the text encoders learn to tell the captions apart."""

    vae: int = 2400
    text: int = 100
    unet: int = 1800


@dataclass(frozen=True, slots=True)
class Shelf:
    """What a model learns from: one row of each tensor for each photograph of one shape."""

    rows: dict[str, torch.Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.rows.values())))

    def draw(self, count: int, draw: torch.Generator) -> dict[str, torch.Tensor]:
        """That many rows at random."""
        chosen = torch.randint(len(self), (count,), generator=draw)
        return {name: rows[chosen] for name, rows in self.rows.items()}


def pick(shelves: Sequence[Shelf], draw: torch.Generator) -> Shelf:
    """A shelf at random, the fuller the likelier: a batch holds pictures of one shape."""
    return shelves[int(torch.multinomial(torch.tensor([float(len(shelf)) for shelf in shelves]), 1, generator=draw))]


def by_shape(photographs: Sequence[Photograph]) -> list[list[Photograph]]:
    """The photographs, those of one shape together."""
    sizes = sorted({photograph.image.size for photograph in photographs})
    return [[photograph for photograph in photographs if photograph.image.size == size] for size in sizes]


def differences(pixels: torch.Tensor) -> torch.Tensor:
    """Between neighbouring pixels: without a say for them, everything comes out blurred."""
    return torch.cat([pixels.diff(dim=-1).flatten(1), pixels.diff(dim=-2).flatten(1)], dim=1)


def vae_loss(vae: Any, photographs: Sequence[Photograph]) -> Loss:
    """How far decoded pictures are from what was encoded, with just enough pull towards a normal distribution."""
    shelves = [Shelf({"pixels": torch.stack([each.pixels for each in group])}) for group in by_shape(photographs)]

    def loss(draw: torch.Generator) -> torch.Tensor:
        pixels = pick(shelves, draw).draw(VAE_BATCH, draw)["pixels"]
        posterior = vae.encode(pixels).latent_dist
        decoded = vae.decode(posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=draw)).sample
        return (
            functional.l1_loss(decoded, pixels)
            + functional.l1_loss(differences(decoded), differences(pixels))
            + 1e-6 * posterior.kl().mean()
        )

    return loss


def text_loss(pipeline: Any, captions: list[str]) -> Loss:
    """How alike different captions look to the text encoders: to random ones, captions that differ in a word are the same."""

    def loss(draw: torch.Generator) -> torch.Tensor:
        hidden, _, pooled, _ = pipeline.encode_prompt(captions, do_classifier_free_guidance=False)
        views = [functional.normalize(view, dim=-1) for view in (hidden.mean(dim=1), pooled)]
        itself = torch.arange(len(captions))
        return sum((functional.cross_entropy(10 * view @ view.T, itself) for view in views), torch.zeros(()))

    return loss


def unet_loss(pipeline: Any, photographs: Sequence[Photograph]) -> Loss:
    """How far the noise that the UNet sees in a noised photograph is from the noise that was added."""
    empty = embed(pipeline, [""])
    shelves = [unet_shelf(pipeline, group) for group in by_shape(photographs)]
    signal = DDPMScheduler.from_config(pipeline.scheduler.config).alphas_cumprod

    def loss(draw: torch.Generator) -> torch.Tensor:
        rows = pick(shelves, draw).draw(UNET_BATCH, draw)
        without = torch.rand(UNET_BATCH, generator=draw) < EMPTY_CAPTIONS
        for name, value in empty.items():
            rows[name][without] = value
        times = torch.randint(len(signal), (UNET_BATCH,), generator=draw)
        noise = torch.randn(rows["latents"].shape, generator=draw)
        share = signal[times].view(-1, 1, 1, 1)
        noisy = share.sqrt() * rows["latents"] + (1 - share).sqrt() * noise
        more = {"text_embeds": rows["pooled"], "time_ids": rows["time_ids"]}
        return functional.mse_loss(pipeline.unet(noisy, times, rows["hidden"], added_cond_kwargs=more).sample, noise)

    return loss


@torch.no_grad()
def embed(pipeline: Any, captions: list[str]) -> dict[str, torch.Tensor]:
    """Both text encoders' view of captions."""
    hidden, _, pooled, _ = pipeline.encode_prompt(captions, do_classifier_free_guidance=False)
    return {"hidden": hidden, "pooled": pooled}


@torch.no_grad()
def unet_shelf(pipeline: Any, group: Sequence[Photograph]) -> Shelf:
    """Photographs of one shape as latents; each twice, told of its original size and cut, and as if it had come in this size."""
    latents = pipeline.vae.encode(torch.stack([each.pixels for each in group])).latent_dist.mean
    texts = embed(pipeline, [each.caption for each in group])
    cuts, wholes = [], []
    for each in group:
        width, height = each.image.size
        cuts.append([each.original[1], each.original[0], *each.corner, height, width])
        wholes.append([height, width, 0, 0, height, width])
    rows = {"latents": latents * pipeline.vae.config.scaling_factor, **texts}
    return Shelf(
        {**{name: torch.cat([value, value]) for name, value in rows.items()}, "time_ids": torch.tensor(cuts + wholes).float()}
    )


def make(out: Path, photographs: Sequence[Photograph], steps: Steps) -> None:
    """Write the base to `out`, whole or not at all; one that is there is left as it is."""
    if (out / "model_index.json").exists():
        return
    logging.disable_progress_bar()
    work = out.with_name(out.name + ".part")
    make_tiny_sdxl.make(work / "base")
    pipeline = StableDiffusionXLPipeline.from_pretrained(work / "base", dtype=torch.float32, local_files_only=True)
    torch.manual_seed(0)
    pipeline.vae = vae = make_tiny_sdxl.make_vae(block_out_channels=VAE_WIDTHS, norm_num_groups=VAE_GROUPS)
    known = [each for each in photographs if not each.unknown]
    often = [*photographs, *known, *known]  # few as they are, they are shown as often as the others together
    learn(vae, Lesson("vae", steps.vae, VAE_RATE, work / "vae.pt"), vae_loss(vae, often))
    vae.requires_grad_(False)
    vae.register_to_config(scaling_factor=scale(vae, photographs))
    encoders = torch.nn.ModuleList([pipeline.text_encoder, pipeline.text_encoder_2])
    captions = ["", *(each.caption for each in photographs)]
    learn(encoders, Lesson("text", steps.text, TEXT_RATE, work / "text.pt"), text_loss(pipeline, captions))
    learn(pipeline.unet, Lesson("unet", steps.unet, UNET_RATE, work / "unet.pt", seed=1), unet_loss(pipeline, known))
    models = {"text_encoder": pipeline.text_encoder, "text_encoder_2": pipeline.text_encoder_2, "vae": vae, "unet": pipeline.unet}
    make_tiny_sdxl.save(models, work / "base")
    (work / "base").rename(out)
    shutil.rmtree(work)


@torch.no_grad()
def scale(vae: Any, photographs: Sequence[Photograph]) -> float:
    """What brings latents to a spread of one, as the UNet and its noise expect."""
    latents = [vae.encode(each.pixels[None]).latent_dist.mean.flatten() for each in photographs]
    return 1 / torch.cat(latents).std().item()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m demo.base", description="Make a tiny SDXL base that knows eight photographs."
    )
    parser.add_argument("out", type=Path, help="folder to write; a base that is there is left as it is")
    options = parser.parse_args()
    make(options.out, read(), Steps())
    print(f"base in {options.out}")


if __name__ == "__main__":
    main()
