"""Image files: opening them as their owner sees them, judging whether they can be trained on, and their pixels in a bucket.

Editing rules: Pillow and the standard library only (this runs before torch is loaded); `load_pixels` opens an image exactly as `examine`
judged it; nothing here touches what threads share, for images are examined in several.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageOps
from PIL.Image import Resampling, Transpose

from lora.files import shown
from lora.options import Options

if TYPE_CHECKING:
    from lora.data import Photo

SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"})
# Pictures that cameras and editors make and Pillow alone does not read.
FOREIGN = frozenset(
    (".heic", ".heif", ".jxl", ".psd", ".xcf", ".kra", ".svg", ".exr", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".rw2")
)
MASK = ".mask.png"


@contextmanager
def quiet() -> Iterator[None]:
    """Without Pillow's warnings of odd EXIF blocks and large sizes: a file it cannot read raises. For the whole process at once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def open_image(path: Path) -> tuple[Image.Image, int]:
    """(the image, decoded whole and turned as the camera says; its number of pages). Unreadable: ValueError with the reason."""
    try:
        with Image.open(path) as image:
            # A camera's multi-picture JPEG (MPO) carries previews, not an animation.
            pages = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            image.load()
            return ImageOps.exif_transpose(image), pages
    except Exception as error:
        raise ValueError(f"it cannot be read as an image ({shown(error) or type(error).__name__})") from error


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


def examine(path: Path, options: Options, masks: str) -> tuple[tuple[int, int], bool]:
    """((width, height), whether it has a mask) of an image that can be trained on; anything else raises ValueError with the reason."""
    image, pages = open_image(path)
    if pages > 1:
        raise ValueError(f"it is animated or has several pages ({pages}); keep one picture")
    if min(image.size) < options.smallest_image:
        size = f"{image.width}×{image.height} px"
        raise ValueError(f"it is {size}; the shorter side must be at least {options.smallest_image} px (--min-image)")
    is_mask = masks == "alpha" and image.mode in ("RGBA", "LA", "PA", "P")
    if (reason := unusual(image)) and not options.convert_images and not is_mask:
        raise ValueError(f"{reason}; convert it, or pass --convert-images")
    mask = mask_of(image, path, masks)
    if mask is not None and not options.mask_background and mask.getextrema()[1] == 0:
        raise ValueError("its mask is black everywhere: nothing of it would be learnt")
    return image.size, mask is not None


def mask_file(path: Path) -> Path:
    """Where an image's mask lies: NAME.mask.png beside it."""
    return path.with_name(path.stem + MASK)


def mask_of(image: Image.Image, path: Path, source: str) -> Image.Image | None:
    """The mask of an image, 8-bit grey, white where the image counts; None if it has none. Unfit: ValueError with the reason."""
    if source == "alpha":
        return image.convert("RGBA").getchannel("A") if is_see_through(image) else None
    if source == "none" or not os.path.isfile(mask_file(path)):
        return None
    name = shown(mask_file(path).name)
    try:
        mask = open_image(mask_file(path))[0].convert("L")
    except ValueError as error:
        raise ValueError(f"its mask {name} {str(error).removeprefix('it ')}") from error
    if abs(mask.width / mask.height - image.width / image.height) > 0.02 * image.width / image.height:
        shapes = f"{mask.width}×{mask.height} px, the image {image.width}×{image.height}"
        raise ValueError(f"its mask {name} has another shape: it is {shapes}")
    return mask.resize(image.size)


def placed(image: Image.Image, photo: Photo) -> Image.Image:
    """An image scaled and cropped to its photo's bucket, and mirrored if the photo is."""
    size, (left, top) = photo.placement()
    image = image.resize(size, Resampling.LANCZOS).crop((left, top, left + photo.bucket[0], top + photo.bucket[1]))
    return image.transpose(Transpose.FLIP_LEFT_RIGHT) if photo.mirrored else image


def load_pixels(photo: Photo) -> Image.Image:
    """The image in its bucket, RGB."""
    return placed(to_rgb(open_image(photo.path)[0]), photo)


def load_mask(photo: Photo, source: str) -> Image.Image:
    """Its mask in its bucket."""
    mask = mask_of(open_image(photo.path)[0], photo.path, source)
    assert mask is not None
    return placed(mask, photo)
