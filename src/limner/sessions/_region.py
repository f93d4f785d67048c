"""An answer as a session keeps it: logits of one window; the rest of the image is background."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.prompts.types import Box

Bounds = tuple[tuple[int, ...], tuple[int, ...]]  # half-open (low, high) in index order

BACKGROUND_LOGIT = -16.0  # sigmoid 1e-7: certain, and exact in float16
LARGEST_LOGIT = 30.0
_SMALLEST = np.float16(6e-8)  # float16's least positive number


@dataclass(frozen=True, eq=False)
class Region:
    """Logits of a window of an image.

    Attributes:
        shape: of the whole image.
        low: where the window begins.
        logits: the window, float16: half the memory, and finer than 0.02 up to 30. May be empty.
    """

    shape: tuple[int, ...]
    low: tuple[int, ...]
    logits: NDArray[np.float16]

    @classmethod
    def empty(cls, shape: Sequence[int]) -> Region:
        """Nothing but background."""
        return cls(tuple(shape), (0,) * len(shape), np.zeros((0,) * len(shape), np.float16))

    @classmethod
    def of_mask(cls, mask: NDArray[np.bool_]) -> Region:
        """A mask as certain logits."""
        if not mask.any():
            return cls.empty(mask.shape)
        low, high = true_bounds(mask)
        inside = mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        return cls(mask.shape, low, _certain(inside))

    @property
    def slices(self) -> tuple[slice, ...]:
        """Where the window lies in the image."""
        return tuple(slice(a, a + n) for a, n in zip(self.low, self.logits.shape, strict=True))

    @cached_property
    def mask_bounds(self) -> Bounds | None:
        """Bounding box of the mask, None if it is empty."""
        positive = self.logits > 0
        if not positive.any():
            return None
        low, high = true_bounds(positive)
        return _shifted(low, self.low), _shifted(high, self.low)

    def full(self) -> NDArray[np.float32]:
        """Logits of the whole image."""
        result = np.full(self.shape, BACKGROUND_LOGIT, dtype=np.float32)
        result[self.slices] = self.logits
        return result

    def mask(self) -> NDArray[np.bool_]:
        """Mask of the whole image."""
        result = np.zeros(self.shape, dtype=np.bool_)
        result[self.slices] = self.logits > 0
        return result

    def window(self, low: Sequence[int], high: Sequence[int]) -> NDArray[np.float16]:
        """Logits of another window of the image."""
        shape = [b - a for a, b in zip(low, high, strict=True)]
        result = np.full(shape, BACKGROUND_LOGIT, dtype=np.float16)
        target, source = [], []
        for a, b, c, n in zip(low, high, self.low, self.logits.shape, strict=True):
            start, stop = max(a, c), min(b, c + n)
            if start >= stop:
                return result
            target.append(slice(start - a, stop - a))
            source.append(slice(start - c, stop - c))
        result[tuple(target)] = self.logits[tuple(source)]
        return result

    def plane(self, index: int) -> Region | None:
        """The region on one slice of a volume, None if the window does not reach it."""
        k = index - self.low[0]
        if not 0 <= k < self.logits.shape[0]:
            return None
        return Region(self.shape[1:], self.low[1:], self.logits[k])


@dataclass(frozen=True)
class PackedMask:
    """The mask of a region in little memory; a session keeps one for every frame it has shown."""

    low: tuple[int, ...]
    size: tuple[int, ...]
    bits: bytes

    @classmethod
    def of(cls, region: Region) -> PackedMask:
        """Pack the mask of a region."""
        bits = zlib.compress(np.packbits(region.logits > 0).tobytes(), level=1)
        return cls(region.low, region.logits.shape, bits)

    def mask(self) -> NDArray[np.bool_]:
        """The mask of the window that begins at `low`."""
        packed = np.frombuffer(zlib.decompress(self.bits), dtype=np.uint8)
        bits = np.unpackbits(packed, count=math.prod(self.size))
        return bits.view(np.bool_).reshape(self.size)


def rounded(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits that float16 holds with their sign: clipped, and never rounded from above 0 to 0."""
    clipped = np.clip(logits, -LARGEST_LOGIT, LARGEST_LOGIT)
    return np.where((clipped > 0) & (clipped < _SMALLEST), np.float32(_SMALLEST), clipped)


def changed_box(before: PackedMask | None, after: Region) -> Box | None:
    """The smallest box that holds every pixel whose label differs, None if none does."""
    masks = [(after.low, after.logits > 0)]
    if before is not None:
        masks.append((before.low, before.mask()))
    corners = np.asarray([corner for corner, mask in masks if mask.size])
    ends = np.asarray([np.add(corner, mask.shape) for corner, mask in masks if mask.size])
    if not len(corners):
        return None
    low, high = corners.min(axis=0), ends.max(axis=0)
    differs = np.zeros(high - low, dtype=np.bool_)
    for corner, mask in masks:
        place = zip(np.subtract(corner, low), mask.shape, strict=True)
        if mask.size:
            differs[tuple(slice(a, a + n) for a, n in place)] ^= mask
    if not differs.any():
        return None
    start, stop = true_bounds(differs)
    return Box(tuple(low + start), tuple(low + stop))


def true_bounds(mask: NDArray[Any]) -> Bounds:
    """Bounding box of the True elements, of which there is at least one."""
    low, high = [], []
    for axis in range(mask.ndim):
        found = np.flatnonzero(mask.any(axis=tuple(k for k in range(mask.ndim) if k != axis)))
        low.append(int(found[0]))
        high.append(int(found[-1]) + 1)
    return tuple(low), tuple(high)


def _certain(mask: NDArray[np.bool_]) -> NDArray[np.float16]:
    background = np.float16(BACKGROUND_LOGIT)
    return np.where(mask, -background, background)


def _shifted(index: Sequence[int], by: Sequence[int]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(index, by, strict=True))
