"""What a dataset amounts to, told before anything expensive starts: images, buckets, epochs, captions and tags.

Editing rules: standard library only; every line is a fact that somebody has changed their mind over.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from lora.captions import text_file
from lora.data import Photo, shown_share
from lora.files import below, shown
from lora.images import FOREIGN
from lora.options import Options

SHOWN_TAGS, SHOWN_BUCKETS, SHOWN_DOUBTS, SHOWN_NAMES = 12, 12, 5, 3


def report(options: Options, photos: Sequence[Photo], ranks: int = 1) -> list[str]:
    """The lines; what validation holds out is not taken off."""
    own, prior = [p for p in photos if not p.prior], [p for p in photos if p.prior]
    views = sum(photo.repeats for photo in own)
    sizes = Counter(dict.fromkeys(sorted({photo.bucket for photo in own}), 0))
    for photo in own:
        sizes[photo.bucket] += photo.repeats
    per_epoch = sum(math.ceil(count / options.batch_size) for count in sizes.values()) * (
        2 if prior or options.prior_prompt else 1
    )
    steps = per_epoch / (options.grad_accumulation * ranks)
    listed = ", ".join(f"{width}×{height}: {count}" for (width, height), count in sizes.most_common(SHOWN_BUCKETS))
    lines = [
        f"dataset: {len({p.path for p in own})} images, {views} views an epoch in {len(sizes)} buckets ({listed})",
        f"dataset: about {steps:.0f} steps an epoch, {options.steps / max(steps, 1e-9):.1f} epochs in {options.steps} steps",
    ]
    if prior or options.prior_prompt:
        names = f"{len({photo.path for photo in prior})} prior images"
        if options.prior_prompt:
            names = f"{options.prior_images} prior images of {shown(options.prior_prompt)!r}, made by the base itself"
        lines.append(f"dataset: {names}, of which {views} are shown an epoch with weight {options.prior_weight:g}")
    if masked := len({photo.path for photo in own if photo.mask}):
        lines.append(f"dataset: {masked} images have masks")
    if folders := {p.path.parent for p in own if p.repeats > 1}:
        lines.append(f"dataset: images count as often as their folder says in {named(folders)}")
    contents = {photo.sha256 for photo in own}
    if both := {photo.path for photo in prior if photo.sha256 in contents}:
        lines.append(f"dataset: {len(both)} prior images are images of the dataset, too, such as {named(both)}")
    return [*lines, *passed_over(options), *doubts(own), *captions(own)]


def passed_over(options: Options) -> list[str]:
    """Pictures that nobody here can read: of a camera's or an editor's own kind."""
    folders = {Path(name) for name in (options.dataset, options.prior) if name}
    found = Counter(
        path.suffix.lower() for folder in folders for path in below(folder, lambda name: Path(name).suffix.lower() in FOREIGN)
    )
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in found.most_common())
    return [f"dataset: files are passed over ({kinds}): make JPEG, PNG or WebP of them to train on them"] if found else []


def doubts(own: Sequence[Photo]) -> list[str]:
    """What is allowed and often a mistake."""
    lines = []
    if small := sum(photo.width * photo.height < photo.bucket[0] * photo.bucket[1] * 0.9 for photo in own):
        lines.append(
            f"dataset: {small} images are smaller than their bucket and are enlarged; better ones, or a lower --resolution, help"
        )
    cut = {p.path for p in own if shown_share((p.width, p.height), p.bucket) < 0.5}
    if cut:
        lines.append(f"dataset: {len(cut)} images have the shape of no bucket and lose more than half, such as {named(cut)}")
    contents, texts = defaultdict(set), defaultdict(set)
    for photo in own:
        contents[photo.sha256].add(photo.path)
        if beside := text_file(photo.path):
            texts[beside].add(photo.path)
    lines += [f"dataset: {named(same, ' and ')} are the same image" for same in contents.values() if len(same) > 1][:SHOWN_DOUBTS]
    lines += [f"dataset: {named(same, ' and ')} share one caption file" for same in texts.values() if len(same) > 1][
        :SHOWN_DOUBTS
    ]
    return lines


def named(paths: Iterable[Path], between: str = ", ") -> str:
    """A few of the names."""
    return between.join(shown(path.name) for path in sorted(paths)[:SHOWN_NAMES])


def captions(own: Sequence[Photo]) -> list[str]:
    """How long captions are, and which tags are frequent."""
    texts = list({photo.path: photo.caption for photo in own}.values())
    lengths = [len(text.split()) for text in texts]
    tags = Counter(tag.strip() for text in texts for tag in text.split(",") if tag.strip())
    frequent = ", ".join(f"{shown(tag[:40])} {count}" for tag, count in tags.most_common(SHOWN_TAGS))
    lines = [f"dataset: captions of {min(lengths)} to {max(lengths)} words, {len(set(texts))} different ones"]
    return [*lines, f"dataset: frequent tags: {frequent}"] if frequent else lines
