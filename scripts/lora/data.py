"""The dataset: which images and captions there are, what is wrong with them, which bucket each goes to, and in what order.

    survey(folder)  → one Photo for each image, or BadInput that names every file at fault
    buckets(...)    → the sizes images are cut to; nearest(...) picks the one with the closest shape
    batch(...)      → which images a pass sees: a pure function of seed and position, so a resumed run sees the same ones

Editing rules: Pillow and the standard library only (this runs before torch is loaded); nothing here draws from a shared random
state; an image is opened again by `load_pixels` exactly as `survey` judged it.
"""

from __future__ import annotations

import hashlib
import math
import random
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageOps
from PIL.Image import Resampling

from lora.ends import BadInput
from lora.options import Options

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"})
SHOWN_FAULTS = 20


@dataclass(frozen=True, slots=True)
class Photo:
    """One image of the dataset with its caption; sizes in px after the camera's rotation was applied."""

    path: Path
    sha256: str
    width: int
    height: int
    caption: str
    bucket: tuple[int, int]
    """(width, height) it is scaled and cropped to."""

    def placement(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """((width, height) to scale to, (left, top) of the crop): the smallest scale that covers the bucket, cut at the centre."""
        width, height = self.bucket
        scale = max(width / self.width, height / self.height)
        scaled = max(width, round(self.width * scale)), max(height, round(self.height * scale))
        return scaled, ((scaled[0] - width) // 2, (scaled[1] - height) // 2)


def buckets(resolution: int, step: int, low: int, high: int) -> list[tuple[int, int]]:
    """(width, height) in multiples of `step` px: for each side from `low` to `high` the longest other side within resolution²."""
    found = set()
    for side in range(low, high + 1, step):
        other = min(high, resolution * resolution // side // step * step)
        if other >= low:
            found |= {(side, other), (other, side)}
    return sorted(found)


def nearest(width: int, height: int, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The bucket whose shape is closest to the image's; of equal shapes the larger."""
    shape = math.log(width / height)
    return min(sizes, key=lambda size: (round(abs(math.log(size[0] / size[1]) - shape), 9), -size[0] * size[1]))


def open_image(path: Path) -> tuple[Image.Image, int]:
    """(the image, decoded whole and turned as the camera says; its number of pages). Unreadable: OSError, SyntaxError, ValueError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd EXIF blocks and large sizes; a file it cannot read raises
        with Image.open(path) as image:
            # A camera's multi-picture JPEG (MPO) carries previews, not an animation.
            pages = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            image.load()
            return ImageOps.exif_transpose(image), pages


def is_see_through(image: Image.Image) -> bool:
    """Whether any pixel is not opaque; a fully opaque alpha channel is no concern."""
    if not image.has_transparency_data:
        return False
    lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
    return bool(lowest < 255)


def unusual(image: Image.Image) -> str:
    """Why the image needs a conversion that its owner should agree to, or an empty string."""
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        return f"its colours are {image.mode}, not RGB"
    if image.mode.startswith(("I", "F")):
        return "it has more than 8 bits a channel"
    if is_see_through(image):
        return "it has transparent parts"
    return ""


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB: 16-bit values are scaled (Pillow alone would clip them), transparent parts become white."""
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")
    if image.mode == "F":
        low, high = image.getextrema()
        image = image.point(lambda value: (value - low) * (255 / max(high - low, 1e-9))).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def load_pixels(photo: Photo) -> Image.Image:
    """The image scaled and cropped to its bucket, RGB."""
    size, (left, top) = photo.placement()
    image = to_rgb(open_image(photo.path)[0]).resize(size, Resampling.LANCZOS)
    return image.crop((left, top, left + photo.bucket[0], top + photo.bucket[1]))


def examine(path: Path, options: Options) -> tuple[int, int]:
    """(width, height) of an image that can be trained on; anything else raises ValueError with the reason."""
    try:
        image, pages = open_image(path)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"it cannot be read as an image ({error})") from error
    if pages > 1:
        raise ValueError(f"it is animated or has several pages ({pages}); keep one picture")
    if min(image.size) < options.smallest_image:
        size = f"{image.width}×{image.height} px"
        raise ValueError(f"it is {size}; the shorter side must be at least {options.smallest_image} px (--min-image)")
    if (reason := unusual(image)) and not options.convert_images:
        raise ValueError(f"{reason}; convert it, or pass --convert-images")
    return image.size


def read_caption(path: Path, trigger: str) -> str | None:
    """The caption beside an image with the trigger word in it; None when there is neither caption nor trigger."""
    beside = path.with_suffix(".txt")
    text = " ".join(beside.read_text(encoding="utf-8-sig").split()) if beside.is_file() else ""
    if trigger and trigger not in text:
        text = f"{trigger}, {text}" if text else trigger
    return text or None


def refuse(folder: Path, faults: Sequence[str], what: str) -> None:
    """Raise one error that names every file at fault, if any."""
    if not faults:
        return
    more = [f"  … and {len(faults) - SHOWN_FAULTS} more"] if len(faults) > SHOWN_FAULTS else []
    raise BadInput("\n".join([f"{len(faults)} {what} in {folder}:", *(f"  {line}" for line in faults[:SHOWN_FAULTS]), *more]))


def image_paths(options: Options) -> list[Path]:
    """Every image below the dataset folder, sorted by name."""
    folder = Path(options.dataset)
    if not folder.is_dir():
        raise BadInput(f"the dataset folder {folder} does not exist; pass --dataset or set RT_DATASET")
    if options.output_dir.resolve().is_relative_to(folder.resolve()):
        raise BadInput(
            f"the output {options.output_dir} lies inside the dataset {folder}, where samples would become training images"
        )
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file() and not p.name.startswith("."))
    if not paths:
        raise BadInput(f"there is no image in {folder}; looked for {', '.join(sorted(SUFFIXES))}")
    return paths


def survey(options: Options) -> list[Photo]:
    """The dataset; all faults of a kind are collected before one error is raised."""
    folder, paths = Path(options.dataset), image_paths(options)
    sizes: dict[Path, tuple[int, int]] = {}
    captions: dict[Path, str | None] = {}
    faults, unreadable = [], []
    for path in paths:
        try:
            sizes[path] = examine(path, options)
        except ValueError as error:
            faults.append(f"{path.relative_to(folder)}: {error}")
        try:
            captions[path] = read_caption(path, options.trigger)
        except (OSError, UnicodeDecodeError) as error:
            unreadable.append(f"{path.with_suffix('.txt').relative_to(folder)}: {error}")
    refuse(folder, faults, "images cannot be used")
    refuse(folder, unreadable, "captions cannot be read as UTF-8 text")
    if not options.allow_missing_captions:
        missing = [str(path.relative_to(folder)) for path in paths if captions[path] is None]
        refuse(
            folder,
            missing,
            "images have no caption (a .txt file beside the image; or pass --trigger or --allow-missing-captions)",
        )
    choices = buckets(options.resolution, options.bucket_step, *options.bucket_limits)
    return [
        Photo(
            path,
            hashlib.sha256(path.read_bytes()).hexdigest(),
            *sizes[path],
            captions[path] or "",
            nearest(*sizes[path], choices),
        )
        for path in paths
    ]


def split(photos: Sequence[Photo], fraction: float, seed: int) -> tuple[list[Photo], list[Photo]]:
    """(training, validation): the held-out share, or up to 32 training images spread over the set when nothing is held out."""
    if fraction == 0 or len(photos) < 2:
        count = min(32, len(photos))
        return list(photos), [photos[i * len(photos) // count] for i in range(count)]
    held = set(random.Random(seed).sample(range(len(photos)), max(1, round(len(photos) * fraction))))
    return [p for i, p in enumerate(photos) if i not in held], [p for i, p in enumerate(photos) if i in held]


def group(photos: Sequence[Photo], batch_size: int, seed: int, epoch: int) -> list[list[Photo]]:
    """One epoch: every photo once, in batches of one bucket each, all in an order drawn from (seed, epoch)."""
    rng = random.Random(f"order-{seed}-{epoch}")
    by_bucket: dict[tuple[int, int], list[Photo]] = defaultdict(list)
    for photo in photos:
        by_bucket[photo.bucket].append(photo)
    batches = []
    for _, members in sorted(by_bucket.items()):
        rng.shuffle(members)
        batches += [members[i : i + batch_size] for i in range(0, len(members), batch_size)]
    rng.shuffle(batches)
    return batches


class Order:
    """The endless sequence of batches; `batch(n)` depends on nothing but the seed and n."""

    def __init__(self, photos: Sequence[Photo], batch_size: int, seed: int) -> None:
        self._epoch = lru_cache(maxsize=2)(lambda epoch: group(photos, batch_size, seed, epoch))
        self.batches_per_epoch = len(self._epoch(0))

    def batch(self, number: int) -> list[Photo]:
        """The batch at a position counted from the start of the training."""
        epoch, position = divmod(number, self.batches_per_epoch)
        return self._epoch(epoch)[position]


def dataset_digest(photos: Sequence[Photo]) -> str:
    """Identity of what is learnt from: the images' bytes and their captions, whatever their names."""
    lines = sorted(f"{photo.sha256} {photo.caption}" for photo in photos)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
