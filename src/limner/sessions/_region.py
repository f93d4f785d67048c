"""An answer as a session keeps it: logits of one window; the rest of the image is background."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bounds = tuple[tuple[int, ...], tuple[int, ...]]  # half-open (low, high) in index order

BACKGROUND_LOGIT = -16.0  # sigmoid 1e-7: certain
LARGEST_LOGIT = 30.0
STEP = 1 / 1024  # logits are held as whole numbers of this
_BACKGROUND = np.int16(BACKGROUND_LOGIT / STEP)


@dataclass(frozen=True, eq=False)
class Region:
    """Logits of a window of an image.

    Attributes:
        shape: of the whole image.
        low: where the window begins.
        steps: the window's logits as int16 numbers of `STEP`; above 0 inside. May be empty. As
            small as float16, and compared and converted twenty times faster.
    """

    shape: tuple[int, ...]
    low: tuple[int, ...]
    steps: NDArray[np.int16]

    @classmethod
    def empty(cls, shape: Sequence[int]) -> Region:
        """Nothing but background."""
        return cls(tuple(shape), (0,) * len(shape), np.zeros((0,) * len(shape), np.int16))

    @classmethod
    def of_mask(cls, mask: NDArray[np.bool_]) -> Region:
        """A mask as certain logits."""
        if not mask.any():
            return cls.empty(mask.shape)
        low, high = true_bounds(mask)
        inside = mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        return cls(mask.shape, low, np.where(inside, -_BACKGROUND, _BACKGROUND))

    @property
    def inside(self) -> NDArray[np.bool_]:
        """The mask of the window."""
        return np.asarray(self.steps > 0)

    @property
    def slices(self) -> tuple[slice, ...]:
        """Where the window lies in the image."""
        return tuple(slice(a, a + n) for a, n in zip(self.low, self.steps.shape, strict=True))

    @cached_property
    def mask_bounds(self) -> Bounds | None:
        """Bounding box of the mask, None if it is empty."""
        positive = self.inside
        if not positive.any():
            return None
        low, high = true_bounds(positive)
        return _shifted(low, self.low), _shifted(high, self.low)

    def full(self) -> NDArray[np.float32]:
        """Logits of the whole image."""
        result = np.full(self.shape, BACKGROUND_LOGIT, dtype=np.float32)
        result[self.slices] = self.steps * np.float32(STEP)
        return result

    def mask(self) -> NDArray[np.bool_]:
        """Mask of the whole image."""
        result = np.zeros(self.shape, dtype=np.bool_)
        result[self.slices] = self.inside
        return result

    def window(self, low: Sequence[int], high: Sequence[int]) -> NDArray[np.int16]:
        """Another window of the image, in steps."""
        shape = [b - a for a, b in zip(low, high, strict=True)]
        result = np.full(shape, _BACKGROUND, dtype=np.int16)
        target, source = [], []
        for a, b, c, n in zip(low, high, self.low, self.steps.shape, strict=True):
            start, stop = max(a, c), min(b, c + n)
            if start >= stop:
                return result
            target.append(slice(start - a, stop - a))
            source.append(slice(start - c, stop - c))
        result[tuple(target)] = self.steps[tuple(source)]
        return result

    def plane(self, index: int) -> Region | None:
        """The region on one slice of a volume, None if the window does not reach it."""
        k = index - self.low[0]
        if not 0 <= k < self.steps.shape[0]:
            return None
        return Region(self.shape[1:], self.low[1:], self.steps[k])


def in_steps(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits in steps, clipped to what a region holds; still fractions, see `resize.enlarge`."""
    return np.clip(logits, -LARGEST_LOGIT, LARGEST_LOGIT) * np.float32(1 / STEP)


def true_bounds(mask: NDArray[Any]) -> Bounds:
    """Bounding box of the True elements, of which there is at least one."""
    low, high = [], []
    for axis in range(mask.ndim):
        found = np.flatnonzero(mask.any(axis=tuple(k for k in range(mask.ndim) if k != axis)))
        low.append(int(found[0]))
        high.append(int(found[-1]) + 1)
    return tuple(low), tuple(high)


def _shifted(index: Sequence[int], by: Sequence[int]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(index, by, strict=True))
