"""The dataset: which images and captions there are, what is wrong with them, which bucket each goes to, and in what order.

    survey(options) → one Photo for each image and resolution, or BadInput that names every file at fault
    buckets(...)    → the sizes images are cut to; nearest(...) picks the one with the closest shape
    Order           → which images a pass sees: a pure function of seed and position, so a resumed run sees the same ones

Editing rules: Pillow and the standard library only (this runs before torch is loaded); nothing here draws from a shared random
state.
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import math
import os
import random
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from lora.captions import read_caption, read_metadata, repeats, with_trigger
from lora.ends import BadInput
from lora.files import below, shown
from lora.images import MASK, SUFFIXES, examine, mask_file, quiet
from lora.options import Options

SHOWN_FAULTS = 20
# An image of which less would be seen is no training image but a mistake.
SHOWN_AT_LEAST = 0.25


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
    repeats: int = 1
    """How often an epoch shows it."""
    mask: str = ""
    """Digest of what says where the image counts; empty if all of it does."""
    prior: bool = False
    """Whether it shows what the base knows already and should not forget."""
    made: bool = False
    """Whether the base made it: then the settings say what it is, and its bytes may differ from machine to machine."""
    mirrored: bool = False

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


def refuse(folder: Path, faults: Sequence[str], what: str) -> None:
    """Raise one error that names every file at fault, if any."""
    if not faults:
        return
    more = [f"  … and {len(faults) - SHOWN_FAULTS} more"] if len(faults) > SHOWN_FAULTS else []
    raise BadInput("\n".join([f"{len(faults)} {what} in {folder}:", *(f"  {line}" for line in faults[:SHOWN_FAULTS]), *more]))


def image_paths(folder: Path, options: Options, flag: str) -> list[Path]:
    """Everything below a folder that is named as an image, sorted by name."""
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise BadInput(f"the {flag} folder {folder} {what}; pass --{flag} or set RT_{flag.upper()}")
    for ours, path in (("output", options.output_dir), ("cache", options.cache_dir)):
        if path.resolve().is_relative_to(folder.resolve()):
            raise BadInput(
                f"the {ours} {path} lies inside the {flag} {folder}, where pictures that are made would become training images"
            )
    paths = below(folder, lambda name: Path(name).suffix.lower() in SUFFIXES)
    if options.masks == "files":
        paths = [path for path in paths if not path.name.endswith(MASK)]
    if not paths:
        raise BadInput(f"there is no image in {folder}; looked for {', '.join(sorted(SUFFIXES))}")
    return paths


def survey(options: Options) -> list[Photo]:
    """The dataset and, if there are any, the prior images."""
    photos = survey_folder(options, options.dataset, "dataset")
    return photos + survey_folder(options, options.prior, "prior") if options.prior else photos


def survey_folder(options: Options, name: str, flag: str) -> list[Photo]:
    """The images of a folder that a flag names."""
    return survey_paths(options, Path(name), image_paths(Path(name), options, flag), prior=flag == "prior")


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at an image file told."""

    size: tuple[int, int] = (0, 0)
    sha256: str = ""
    mask: str = ""
    fault: str = ""
    """Why it cannot be trained on; empty if it can."""


def look(path: Path, options: Options, prior: bool) -> Look:
    """Decode an image, judge it, and name it by content."""
    masks = "none" if prior else options.masks
    try:
        if not path.is_file():
            raise ValueError("it is no file, or a link that leads nowhere")
        size, masked = examine(path, options, masks)
        bucket = bucket_of(size, options.resolution, options)
        if (share := shown_share(size, bucket)) < SHOWN_AT_LEAST:
            cut = f"its bucket, {bucket[0]}×{bucket[1]}, would show only {share:.0%} of it"
            raise ValueError(
                f"it is {size[0]}×{size[1]} px: {cut}; crop it, or allow longer buckets (--bucket-min, --bucket-max)"
            )
        mask = digest(mask_file(path)) if masked and masks == "files" else "alpha" * masked
        return Look(size, digest(path), mask)
    except (OSError, ValueError) as error:
        return Look(fault=str(error))


def survey_paths(options: Options, folder: Path, paths: Sequence[Path], prior: bool) -> list[Photo]:
    """These images of a folder; all faults of a kind are collected before one error is raised."""
    captions: dict[Path, str] = {}
    unreadable = []
    folders = {path: repeats(path.relative_to(folder)) for path in paths}
    metadata, broken = read_metadata(folder)
    # Decoding leaves the interpreter free, so threads share the cores.
    with quiet(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        looks = dict(zip(paths, pool.map(partial(look, options=options, prior=prior), paths), strict=True))
    names = {path: shown(path.relative_to(folder)) for path in paths}
    for path in paths:
        try:
            text = read_caption(path, metadata, folders[path][1])
            captions[path] = with_trigger(text, "" if prior else options.trigger)
        except (OSError, ValueError) as error:
            unreadable.append(f"{names[path]}: {error}")
    refuse(folder, [f"{names[path]}: {looks[path].fault}" for path in paths if looks[path].fault], "images cannot be used")
    never = [names[path] for path in paths if not folders[path][0]]
    refuse(folder, never, "images would never be shown, for their folder's name begins with 0_ (rename it, or take it out)")
    refuse(folder, broken, "captions are wrong")
    refuse(folder, unreadable, "captions cannot be read")
    if not options.allow_missing_captions:
        missing = [names[path] for path in paths if not captions[path]]
        advice = "a .txt file beside the image or a line in metadata.jsonl; or pass --trigger or --allow-missing-captions"
        refuse(folder, missing, f"images have no caption ({advice})")
    seen = [photo for path in paths for photo in photos_of(path, looks[path], captions[path], options)]
    return [dataclasses.replace(photo, repeats=folders[photo.path][0], prior=prior) for photo in seen]


def bucket_of(size: tuple[int, int], resolution: int, options: Options) -> tuple[int, int]:
    """The bucket of an image at one of the resolutions."""
    return nearest(*size, buckets(resolution, options.bucket_step, *options.bucket_limits(resolution)))


def shown_share(size: tuple[int, int], bucket: tuple[int, int]) -> float:
    """The share of an image that is left when it covers its bucket and is cut."""
    low, high = sorted((size[0] / size[1], bucket[0] / bucket[1]))
    return low / high


def photos_of(path: Path, seen: Look, caption: str, options: Options) -> list[Photo]:
    """An image in the bucket of each resolution that it is large enough for."""
    found: list[Photo] = []
    for number, resolution in enumerate(options.resolutions):
        if number and seen.size[0] * seen.size[1] < resolution**2:
            continue
        bucket = bucket_of(seen.size, resolution, options)
        if all(photo.bucket != bucket for photo in found):
            found.append(Photo(path, seen.sha256, *seen.size, caption, bucket, mask=seen.mask))
    return found


def split(photos: Sequence[Photo], fraction: float, seed: int) -> tuple[list[Photo], list[Photo]]:
    """(training, validation): the held-out share, or up to 32 training images spread over the set when nothing is held out.

    An image is held out in all its resolutions; prior images are never validated on.
    """
    own = [photo for photo in photos if not photo.prior]
    names = list(dict.fromkeys(photo.path for photo in own))
    if fraction == 0 or len(names) < 2:
        count = min(32, len(own))
        return list(photos), [own[i * len(own) // count] for i in range(count)]
    chosen = random.Random(seed).sample(range(len(names)), max(1, round(len(names) * fraction)))
    held = {names[i] for i in chosen}
    return [p for p in photos if p.prior or p.path not in held], [p for p in own if p.path in held]


def group(photos: Sequence[Photo], batch_size: int, seed: int, epoch: int) -> list[list[Photo]]:
    """One epoch: every photo as often as it counts, in batches of one bucket each, all in an order drawn from (seed, epoch)."""
    rng = random.Random(f"order-{seed}-{epoch}")
    by_bucket: dict[tuple[int, int], list[Photo]] = defaultdict(list)
    for photo in photos:
        by_bucket[photo.bucket] += [photo] * photo.repeats
    batches = []
    for _, members in sorted(by_bucket.items()):
        rng.shuffle(members)
        batches += [members[i : i + batch_size] for i in range(0, len(members), batch_size)]
    rng.shuffle(batches)
    return batches


def of_epoch(photos: Sequence[Photo], epoch: int) -> list[Photo]:
    """The photos of an epoch: all of the dataset, and as many prior images, which take turns."""
    own, prior = [p for p in photos if not p.prior], [p for p in photos if p.prior]
    count = sum(photo.repeats for photo in own) if prior else 0
    return own + [dataclasses.replace(prior[(epoch * count + i) % len(prior)], repeats=1) for i in range(count)]


class Order:
    """The endless sequence of batches; `batch(n)` depends on nothing but the seed and n."""

    def __init__(self, photos: Sequence[Photo], batch_size: int, seed: int) -> None:
        self.photos = photos
        self._epoch = lru_cache(maxsize=2)(lambda epoch: group(of_epoch(photos, epoch), batch_size, seed, epoch))
        self._before = [0]

    def batch(self, number: int) -> list[Photo]:
        """The batch at a position counted from the start of the training; epochs with other prior images differ in length."""
        while self._before[-1] <= number:
            self._before.append(self._before[-1] + len(self._epoch(len(self._before) - 1)))
        epoch = bisect.bisect_right(self._before, number) - 1
        return self._epoch(epoch)[number - self._before[epoch]]


def digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def dataset_digest(photos: Sequence[Photo]) -> str:
    """Identity of what is learnt from: the images' bytes, masks and captions, whatever their names; not of what the base made."""
    lines = []
    for photo in (photo for photo in photos if not photo.made):
        more = [photo.mask, f"x{photo.repeats}" * (photo.repeats > 1), "prior" * photo.prior]
        lines.append(" ".join([photo.sha256, photo.caption, *(word for word in more if word)]))
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
