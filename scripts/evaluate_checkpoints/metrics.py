"""The measurements, as plain arithmetic on embeddings and pixels.

Editing rules: functions of tensors only; no file, no model, no random number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

# The distance of CLIP embeddings over which the kernel of CMMD looks, and what its values are multiplied with to be readable.
SIGMA, SCALE = 10.0, 1000.0
# From how many images on, on either side, FID says anything.
FID_IMAGES = 2048
# Above this cosine a picture is nearly a training image.
COPIED = 0.95


def normalised(features: torch.Tensor) -> torch.Tensor:
    """Rows of length 1, in double precision."""
    return torch.nn.functional.normalize(features.double(), dim=1)


def cmmd(pictures: torch.Tensor, images: torch.Tensor) -> float:
    """Squared maximum mean discrepancy of two sets of CLIP embeddings with a Gaussian kernel; 0 for equal sets."""
    x, y = normalised(pictures), normalised(images)

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.exp(-(2 - 2 * a @ b.T) / (2 * SIGMA**2)).mean()

    return float(SCALE * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)))


def kid(pictures: torch.Tensor, images: torch.Tensor) -> float | None:
    """The same, unbiased, with KID's kernel (x·y / d + 1)³ on the embeddings as they are; None below two on either side."""
    x, y, n, m = pictures.double(), images.double(), len(pictures), len(images)
    if min(n, m) < 2:
        return None
    xx, yy, xy = ((a @ b.T / x.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = (xx.sum() - xx.trace()) / (n * (n - 1)) + (yy.sum() - yy.trace()) / (m * (m - 1))
    return float(within - 2 * xy.mean())


def fid(pictures: torch.Tensor, images: torch.Tensor) -> float | None:
    """Fréchet distance of the two sets' embeddings as normal distributions; None where they are too few for it to mean anything."""
    if min(len(pictures), len(images)) < FID_IMAGES:
        return None
    x, y = pictures.double(), images.double()
    values, vectors = torch.linalg.eigh(torch.cov(x.T))
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    shared = torch.linalg.eigvalsh(root @ torch.cov(y.T) @ root).clamp_min(0).sqrt().sum()
    spread = torch.cov(x.T).trace() + torch.cov(y.T).trace() - 2 * shared
    return float((x.mean(0) - y.mean(0)).square().sum() + spread)


def cosines(features: torch.Tensor, others: torch.Tensor) -> list[float]:
    """The cosine of each row with the row beside it."""
    return [float(value) for value in (normalised(features) * normalised(others)).sum(1)]


def consistency(groups: Sequence[torch.Tensor]) -> float | None:
    """Mean cosine between different rows of a group, over the groups; None where no group has two."""
    found = []
    for rows in (normalised(group) for group in groups if len(group) > 1):
        count, product = len(rows), rows @ rows.T
        found.append(float((product.sum() - product.trace()) / (count * (count - 1))))
    return sum(found) / len(found) if found else None


def nearest(pictures: torch.Tensor, images: torch.Tensor) -> list[tuple[float, int]]:
    """(cosine, index) of the image that is closest to each picture."""
    values, indices = (normalised(pictures) @ normalised(images).T).max(dim=1)
    return list(zip(values.tolist(), indices.tolist(), strict=True))


def sharpness(image: Image.Image) -> float:
    """Variance of the Laplacian of the luma, which falls with blur; levels from 0 to 255."""
    luma = np.asarray(image.convert("L"), dtype=np.float64)
    inner = luma[1:-1, 1:-1]
    laplacian = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * inner
    return float(laplacian.var())


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """The tenth, fiftieth and ninetieth of a hundred."""
    return {f"p{share}": float(np.quantile(values, share / 100)) for share in (10, 50, 90)}


def sharpness_gap(values: Sequence[float], own: Sequence[float]) -> float:
    """How far the medians lie apart, as the logarithm of their ratio: 0.7 is twice as sharp, or half."""
    return abs(math.log((quantiles(values)["p50"] + 1) / (quantiles(own)["p50"] + 1)))
