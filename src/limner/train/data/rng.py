"""Random numbers per sample of a batch, on the device, from a generator that is passed in."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


class BatchRandom:
    """Draws one value per sample, shaped to fit (B, C, H, W), or (B, C, D, H, W).

    Args:
        number: samples.
        generator: on the device of everything drawn.
        axes: of the images, 2 or 3.
    """

    def __init__(self, number: int, generator: torch.Generator, axes: int = 2) -> None:
        self.number = number
        self.generator = generator
        self.axes = axes
        self.device = generator.device

    def uniform(self, low: float = 0.0, high: float = 1.0, *shape: int) -> Tensor:
        """(B, *shape) or (B, 1, 1, 1), uniform; one more 1 for volumes."""
        size = (self.number, *(shape or (1,) * (self.axes + 1)))
        drawn = torch.rand(size, generator=self.generator, device=self.device)
        return low + (high - low) * drawn

    def log_uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Uniform in the logarithm."""
        return self.uniform(math.log(low), math.log(high), *shape).exp()

    def normal(self, *shape: int) -> Tensor:
        """(B, *shape) of mean 0 and deviation 1."""
        size = (self.number, *shape)
        return torch.randn(size, generator=self.generator, device=self.device)

    def bernoulli(self, share: float) -> Tensor:
        """(B, 1, 1, 1) bool; one more 1 for volumes."""
        return self.uniform() < share

    def some(
        self, values: Tensor, chosen: Tensor, change: Callable[[Tensor, BatchRandom], Tensor]
    ) -> Tensor:
        """The samples that are chosen, changed; the work is done for these alone.

        Args:
            values: (B, C, H, W) or (B, C, D, H, W); not changed.
            chosen: (B, 1, 1, 1) bool, or one more 1.
            change: gets the values of n samples and a `BatchRandom` of n; returns the values,
                changed.
        """
        index = chosen.flatten().nonzero()[:, 0]
        if not len(index):
            return values
        part = change(values[index], self.of(len(index)))
        return values.index_copy(0, index, part.to(values.dtype))

    def of(self, number: int) -> BatchRandom:
        """Draws from the same generator for another number of samples."""
        return BatchRandom(number, self.generator, self.axes)

    def smooth(self, size: int, cells: int, channels: int = 1) -> Tensor:
        """(B, channels, size, size) of smooth noise with about `cells` bumps along each axis.

        Cubic to a quarter of the size, linear from there: at full size, cubic interpolation costs
        eight times as much on a CPU and looks the same.
        """
        coarse = self.normal(channels, cells + 1, cells + 1)
        middle = max(cells + 1, -(-size // 4))
        soft = functional.interpolate(
            coarse, size=(middle, middle), mode="bicubic", align_corners=True
        )
        return functional.interpolate(soft, size=(size, size), mode="bilinear", align_corners=True)


def box_mean(values: Tensor, radius: int) -> Tensor:
    """Means over squares of ``2 radius + 1`` pixels, zeros outside; by running sums, so that the
    cost does not depend on the radius.

    Args:
        values: (B, C, H, W) float32.
        radius: at least 0.
    """
    side = 2 * radius + 1
    for axis in (2, 3):
        pad = (radius + 1, radius) if axis == 3 else (0, 0, radius + 1, radius)
        total = functional.pad(values, pad).cumsum(dim=axis)
        length = total.shape[axis] - side
        values = total.narrow(axis, side, length) - total.narrow(axis, 0, length)
    return values / side**2


def block_mean(values: Tensor, radius: tuple[int, int, int]) -> Tensor:
    """As `box_mean`, over blocks of (B, C, D, H, W) with a radius per axis."""
    number = 1
    for axis, reach in zip((2, 3, 4), radius, strict=True):
        if reach == 0:
            continue
        pads = [0] * 6
        pads[2 * (4 - axis) : 2 * (4 - axis) + 2] = [reach + 1, reach]
        total = functional.pad(values, pads).cumsum(dim=axis)
        side = 2 * reach + 1
        length = total.shape[axis] - side
        values = total.narrow(axis, side, length) - total.narrow(axis, 0, length)
        number *= side
    return values / number


def smooth3d(
    batch_rng: BatchRandom, shape: tuple[int, int, int], cells: int, channels: int = 1
) -> Tensor:
    """(B, channels, D, H, W) of smooth noise with about `cells` bumps along each axis."""
    coarse = batch_rng.normal(channels, cells + 1, cells + 1, cells + 1)
    middle = tuple(max(cells + 1, -(-n // 4)) for n in shape)
    soft = functional.interpolate(coarse, size=middle, mode="trilinear", align_corners=True)
    soft = functional.avg_pool3d(functional.pad(soft, (1,) * 6, mode="replicate"), 3, 1)
    return functional.interpolate(1.6 * soft, size=shape, mode="trilinear", align_corners=True)
