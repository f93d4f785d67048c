"""Changes of intensity on a batch of volumes: those of `augment`, where they know no neighbours,
and those of scanners that measure slice by slice.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from limner.train.data import augment
from limner.train.data.rng import BatchRandom, block_mean, smooth3d


def augment_volumes(image: Tensor, batch_rng: BatchRandom) -> Tensor:
    """All changes.

    Args:
        image: float32 (B, 3, D, H, W), 0…1.
        batch_rng: of volumes, of the same batch.
    """
    flat = BatchRandom(
        batch_rng.number, batch_rng.generator
    )  # slices one below the other are an image, too
    depth = image.shape[2]

    def to_slices(values: Tensor) -> Tensor:
        return values.flatten(2, 3)

    def back(values: Tensor) -> Tensor:
        return values.reshape(*values.shape[:2], depth, -1, values.shape[-1])

    image = back(augment.change_tissue(to_slices(image), flat))
    image = batch_rng.some(image, batch_rng.bernoulli(0.25), _uneven)
    image = batch_rng.some(image, batch_rng.bernoulli(0.1), _slices_apart)
    image = batch_rng.some(image, batch_rng.bernoulli(0.15), _soft)
    image = batch_rng.some(image, batch_rng.bernoulli(0.1), _sharp)
    for share, factor in (
        (0.07, (1, 2, 2)),
        (0.04, (1, 4, 4)),
        (0.05, (2, 1, 1)),
        (0.04, (2, 2, 2)),
    ):
        image = batch_rng.some(image, batch_rng.bernoulli(share), partial(_coarse, factor=factor))
    return back(augment.change_sensor(to_slices(image), flat)).clamp(0.0, 1.0)


def _uneven(image: Tensor, batch_rng: BatchRandom) -> Tensor:
    shape = (image.shape[2], image.shape[3], image.shape[4])
    return image * (smooth3d(batch_rng, shape, 3) * batch_rng.uniform(0.05, 0.35)).exp()


def _slices_apart(image: Tensor, batch_rng: BatchRandom) -> Tensor:
    """Brightness that jumps from slice to slice, or between odd and even ones."""
    depth = image.shape[2]
    jump = batch_rng.normal(1, depth, 1, 1) * 0.06
    odd = (torch.arange(depth, device=image.device) % 2).view(1, 1, -1, 1, 1)
    jump = torch.where(batch_rng.bernoulli(0.5), odd * batch_rng.uniform(-0.15, 0.15), jump)
    return image * (1 + jump)


def _soft(image: Tensor, batch_rng: BatchRandom) -> Tensor:
    once = block_mean(image, (0, 1, 1))
    return batch_rng.some(
        once, batch_rng.bernoulli(0.5), lambda part, _: block_mean(part, (1, 1, 1))
    )


def _sharp(image: Tensor, batch_rng: BatchRandom) -> Tensor:
    soft = block_mean(image, (0, 1, 1))
    return (image + (image - soft) * batch_rng.uniform(0.3, 1.5)).clamp(0.0, 1.0)


def _coarse(image: Tensor, batch_rng: BatchRandom, *, factor: tuple[int, int, int]) -> Tensor:
    """A coarser grid, enlarged again."""
    shape = image.shape[2:]
    depth, rows, columns = (max(1, n // f) for n, f in zip(shape, factor, strict=True))
    small = functional.adaptive_avg_pool3d(image, (depth, rows, columns))
    return functional.interpolate(small, size=shape, mode="trilinear", align_corners=False)
