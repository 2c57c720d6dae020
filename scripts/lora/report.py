"""What a dataset amounts to, told before anything expensive starts: images, buckets, epochs, captions and tags.

Editing rules: standard library only; every line is a fact that somebody has changed their mind over.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from lora.data import Photo
from lora.options import Options

SHOWN_TAGS, SHOWN_BUCKETS = 12, 12


def report(options: Options, photos: Sequence[Photo]) -> list[str]:
    """The lines; what validation holds out is not taken off."""
    own, prior = [p for p in photos if not p.prior], [p for p in photos if p.prior]
    views = sum(photo.repeats for photo in own)
    sizes = Counter(dict.fromkeys(sorted({photo.bucket for photo in own}), 0))
    for photo in own:
        sizes[photo.bucket] += photo.repeats
    per_epoch = sum(math.ceil(count / options.batch_size) for count in sizes.values()) * (2 if prior else 1)
    steps = per_epoch / options.grad_accumulation
    shown = ", ".join(f"{width}×{height}: {count}" for (width, height), count in sizes.most_common(SHOWN_BUCKETS))
    lines = [
        f"dataset: {len({p.path for p in own})} images, {views} views an epoch in {len(sizes)} buckets ({shown})",
        f"dataset: about {steps:.0f} steps an epoch, {options.steps / max(steps, 1e-9):.1f} epochs in {options.steps} steps",
    ]
    if prior:
        names = len({photo.path for photo in prior})
        lines.append(f"dataset: {names} prior images, of which {views} are shown an epoch with weight {options.prior_weight:g}")
    if masked := len({photo.path for photo in own if photo.mask}):
        lines.append(f"dataset: {masked} images have masks")
    small = sum(photo.width * photo.height < photo.bucket[0] * photo.bucket[1] * 0.9 for photo in own)
    if small:
        lines.append(
            f"dataset: {small} images are smaller than their bucket and are enlarged; better ones, or a lower --resolution, help"
        )
    return [*lines, *captions(own)]


def captions(own: Sequence[Photo]) -> list[str]:
    """How long captions are, and which tags are frequent."""
    texts = list({photo.path: photo.caption for photo in own}.values())
    lengths = [len(text.split()) for text in texts]
    tags = Counter(tag.strip() for text in texts for tag in text.split(",") if tag.strip())
    frequent = ", ".join(f"{tag[:40]} {count}" for tag, count in tags.most_common(SHOWN_TAGS))
    lines = [f"dataset: captions of {min(lengths)} to {max(lengths)} words, {len(set(texts))} different ones"]
    return [*lines, f"dataset: frequent tags: {frequent}"] if frequent else lines
