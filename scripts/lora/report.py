"""What a dataset amounts to, told before anything expensive starts: images, buckets, epochs, captions and tags.

Editing rules: standard library only; every line is a fact that somebody has changed their mind over.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from lora.data import Photo, shown_share
from lora.files import shown
from lora.options import Options

SHOWN_TAGS, SHOWN_BUCKETS, SHOWN_DOUBTS, SHOWN_NAMES = 12, 12, 5, 3


def report(options: Options, photos: Sequence[Photo]) -> list[str]:
    """The lines; what validation holds out is not taken off."""
    own, prior = [p for p in photos if not p.prior], [p for p in photos if p.prior]
    views = sum(photo.repeats for photo in own)
    sizes = Counter(dict.fromkeys(sorted({photo.bucket for photo in own}), 0))
    for photo in own:
        sizes[photo.bucket] += photo.repeats
    per_epoch = sum(math.ceil(count / options.batch_size) for count in sizes.values()) * (
        2 if prior or options.prior_prompt else 1
    )
    steps = per_epoch / options.grad_accumulation
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
    return [*lines, *doubts(own), *captions(own)]


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
    contents, stems = defaultdict(set), defaultdict(set)
    for photo in own:
        contents[photo.sha256].add(photo.path)
        stems[photo.path.with_suffix("")].add(photo.path)
    lines += [f"dataset: {named(same, ' and ')} are the same image" for same in contents.values() if len(same) > 1][:SHOWN_DOUBTS]
    twins = [same for stem, same in stems.items() if len(same) > 1 and stem.with_suffix(".txt").exists()]
    lines += [f"dataset: {named(same, ' and ')} share one caption file" for same in twins][:SHOWN_DOUBTS]
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
