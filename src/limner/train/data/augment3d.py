"""Changes of intensity on a batch of volumes: those of `augment`, where they know no neighbours,
and those of scanners that measure slice by slice.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from limner.train.data import augment
from limner.train.data.rng import Chance, block_mean, smooth3d


def disturb(image: Tensor, chance: Chance) -> Tensor:
    """All changes.

    Args:
        image: float32 (B, 3, D, H, W), 0…1.
        chance: of volumes, of the same batch.
    """
    flat = Chance(chance.number, chance.generator)  # slices one below the other are a plane, too
    depth = image.shape[2]

    def plane(values: Tensor) -> Tensor:
        return values.flatten(2, 3)

    def back(values: Tensor) -> Tensor:
        return values.reshape(*values.shape[:2], depth, -1, values.shape[-1])

    image = back(augment.change_tissue(plane(image), flat))
    image = chance.some(image, chance.happens(0.25), _uneven)
    image = chance.some(image, chance.happens(0.1), _slices_apart)
    image = chance.some(image, chance.happens(0.15), _soft)
    image = chance.some(image, chance.happens(0.1), _sharp)
    for share, factor in (
        (0.07, (1, 2, 2)),
        (0.04, (1, 4, 4)),
        (0.05, (2, 1, 1)),
        (0.04, (2, 2, 2)),
    ):
        image = chance.some(image, chance.happens(share), partial(_coarse, factor=factor))
    return back(augment.change_sensor(plane(image), flat)).clamp(0.0, 1.0)


def _uneven(image: Tensor, chance: Chance) -> Tensor:
    shape = (image.shape[2], image.shape[3], image.shape[4])
    return image * (smooth3d(chance, shape, 3) * chance.uniform(0.05, 0.35)).exp()


def _slices_apart(image: Tensor, chance: Chance) -> Tensor:
    """Brightness that jumps from slice to slice, or between odd and even ones."""
    depth = image.shape[2]
    jump = chance.normal(1, depth, 1, 1) * 0.06
    odd = (torch.arange(depth, device=image.device) % 2).view(1, 1, -1, 1, 1)
    jump = torch.where(chance.happens(0.5), odd * chance.uniform(-0.15, 0.15), jump)
    return image * (1 + jump)


def _soft(image: Tensor, chance: Chance) -> Tensor:
    once = block_mean(image, (0, 1, 1))
    return chance.some(once, chance.happens(0.5), lambda part, _: block_mean(part, (1, 1, 1)))


def _sharp(image: Tensor, chance: Chance) -> Tensor:
    soft = block_mean(image, (0, 1, 1))
    return (image + (image - soft) * chance.uniform(0.3, 1.5)).clamp(0.0, 1.0)


def _coarse(image: Tensor, chance: Chance, *, factor: tuple[int, int, int]) -> Tensor:
    """A coarser grid, enlarged again."""
    shape = image.shape[2:]
    depth, rows, columns = (max(1, n // f) for n, f in zip(shape, factor, strict=True))
    small = functional.adaptive_avg_pool3d(image, (depth, rows, columns))
    return functional.interpolate(small, size=shape, mode="trilinear", align_corners=False)
