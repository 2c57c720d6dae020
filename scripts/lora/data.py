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
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lora.captions import read_caption, read_metadata, repeats, with_trigger
from lora.ends import BadInput
from lora.images import MASK, SUFFIXES, examine, examine_mask, mask_file
from lora.options import Options

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
    repeats: int = 1
    """How often an epoch shows it."""
    mask: str = ""
    """Digest of what says where the image counts; empty if all of it does."""
    prior: bool = False
    """Whether it shows what the base knows already and should not forget."""
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
    """Every image below a folder, sorted by name."""
    if not folder.is_dir():
        raise BadInput(f"the {flag} folder {folder} does not exist; pass --{flag} or set RT_{flag.upper()}")
    if options.output_dir.resolve().is_relative_to(folder.resolve()):
        raise BadInput(
            f"the output {options.output_dir} lies inside the {flag} {folder}, where samples would become training images"
        )
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file() and not p.name.startswith("."))
    if options.masks == "files":
        paths = [path for path in paths if not path.name.endswith(MASK)]
    if not paths:
        raise BadInput(f"there is no image in {folder}; looked for {', '.join(sorted(SUFFIXES))}")
    return paths


def survey(options: Options) -> list[Photo]:
    """The dataset and, if there are any, the prior images."""
    photos = survey_folder(options, Path(options.dataset), prior=False)
    return photos + survey_folder(options, Path(options.prior), prior=True) if options.prior else photos


def survey_folder(options: Options, folder: Path, prior: bool) -> list[Photo]:
    """The images of a folder; all faults of a kind are collected before one error is raised."""
    paths = image_paths(folder, options, "prior" if prior else "dataset")
    sizes: dict[Path, tuple[int, int]] = {}
    captions: dict[Path, str] = {}
    masked, faults, unreadable = set(), [], []
    metadata, broken = read_captions_of(folder)
    for path in paths:
        try:
            sizes[path] = examine(path, options)
            if not prior and examine_mask(path, options):
                masked.add(path)
        except ValueError as error:
            faults.append(f"{path.relative_to(folder)}: {error}")
        try:
            captions[path] = with_trigger(read_caption(path, metadata), "" if prior else options.trigger)
        except (OSError, UnicodeDecodeError) as error:
            unreadable.append(f"{path.with_suffix('.txt').relative_to(folder)}: {error}")
    refuse(folder, faults, "images cannot be used")
    refuse(folder, broken, "captions are wrong")
    refuse(folder, unreadable, "captions cannot be read as UTF-8 text")
    if not options.allow_missing_captions:
        missing = [str(path.relative_to(folder)) for path in paths if not captions[path]]
        advice = "a .txt file beside the image or a line in metadata.jsonl; or pass --trigger or --allow-missing-captions"
        refuse(folder, missing, f"images have no caption ({advice})")
    return [photo for path in paths for photo in photos_of(path, sizes[path], captions[path], options, (path in masked, prior))]


def read_captions_of(folder: Path) -> tuple[dict[Path, str], list[str]]:
    """metadata.jsonl of a folder; one that is not text is a fault as well."""
    try:
        return read_metadata(folder)
    except UnicodeDecodeError as error:
        return {}, [f"metadata.jsonl: {error}"]


def photos_of(path: Path, size: tuple[int, int], caption: str, options: Options, kind: tuple[bool, bool]) -> list[Photo]:
    """An image in the bucket of each resolution that it is large enough for; `kind` is (masked, prior)."""
    masked, prior = kind
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    mask = hashlib.sha256(mask_file(path).read_bytes()).hexdigest() if masked and options.masks == "files" else "alpha" * masked
    found = []
    for number, resolution in enumerate(options.resolutions):
        if number and size[0] * size[1] < resolution**2:
            continue
        bucket = nearest(*size, buckets(resolution, options.bucket_step, *options.bucket_limits(resolution)))
        if all(photo.bucket != bucket for photo in found):
            found.append(Photo(path, content, *size, caption, bucket, repeats(path)[0], mask, prior))
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


def dataset_digest(photos: Sequence[Photo]) -> str:
    """Identity of what is learnt from: the images' bytes, masks and captions, whatever their names."""
    lines = []
    for photo in photos:
        more = [photo.mask, f"x{photo.repeats}" * (photo.repeats > 1), "prior" * photo.prior]
        lines.append(" ".join([photo.sha256, photo.caption, *(word for word in more if word)]))
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
