"""Sparse logits: those of one window of an image; the rest is background."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.adapters.axes import Axes, Bounds
from limner.adapters.resize import Edges, enlarge, enlarged, shares

BACKGROUND_LOGIT = -16.0  # sigmoid 1e-7: certain
LARGEST_LOGIT = 30.0
STEP = 1 / 1024  # logits are held as whole numbers of this
_BACKGROUND = np.int16(BACKGROUND_LOGIT / STEP)


@dataclass(frozen=True, eq=False)
class SparseLogits:
    """Logits of a window of an image, as coarse as the view that they were given on: what is kept
    is bounded by a model's window, however large the object.

    Attributes:
        shape: of the whole image.
        low: where the window begins.
        grid: the window's logits as int16 numbers of `STEP`; above 0 inside. May be empty. As
            small as float16, and compared and converted twenty times faster.
        edges: per axis, where the pixels of `grid` begin in the image and the last one ends; None
            where they are those of the image.
    """

    shape: tuple[int, ...]
    low: tuple[int, ...]
    grid: NDArray[np.int16]
    edges: tuple[Edges, ...] | None = None

    @classmethod
    def empty(cls, shape: Sequence[int]) -> SparseLogits:
        """Nothing but background."""
        return cls(tuple(shape), (0,) * len(shape), np.zeros((0,) * len(shape), np.int16))

    @classmethod
    def of_mask(cls, mask: NDArray[np.bool_]) -> SparseLogits:
        """A mask as certain logits."""
        if not mask.any():
            return cls.empty(mask.shape)
        low, high = true_bounds(mask)
        inside = mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        return cls(mask.shape, low, np.where(inside, -_BACKGROUND, _BACKGROUND))

    @classmethod
    def of_bins(
        cls, shape: Sequence[int], logits: NDArray[np.float32], edges: Sequence[Edges]
    ) -> SparseLogits:
        """Logits given on bins of pixels. In 2D they are enlarged at once, in 3D when needed.

        Args:
            shape: of the whole image.
            logits: what is above 0 stays so.
            edges: per axis, where the bins begin and the last one ends.
        """
        steps = np.clip(logits, -LARGEST_LOGIT, LARGEST_LOGIT) * np.float32(1 / STEP)
        low = tuple(int(e[0]) for e in edges)
        native = all(int(e[-1] - e[0]) == e.size - 1 for e in edges)
        if native or steps.ndim == 2:
            return cls(tuple(shape), low, enlarge(steps, edges))
        return cls(tuple(shape), low, np.ceil(steps).astype(np.int16), tuple(edges))

    @property
    def size(self) -> tuple[int, ...]:
        """Shape of the window in pixels of the image."""
        if self.edges is None:
            return self.grid.shape
        return tuple(int(e[-1] - e[0]) for e in self.edges)

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        return self.grid.nbytes + sum(e.nbytes for e in self.edges or ())

    @property
    def steps(self) -> NDArray[np.int16]:
        """The window's logits in steps, in pixels of the image; made anew where they are coarse."""
        return self.grid if self.edges is None else enlarge(self.grid, self.edges)

    @property
    def inside(self) -> NDArray[np.bool_]:
        """The mask of the window."""
        if self.edges is None:
            return np.asarray(self.grid > 0)
        result = np.empty(self.size, dtype=np.bool_)
        for k, part in enumerate(self.slices_inside()):
            result[k] = part
        return result

    def slices_inside(self) -> Iterator[NDArray[np.bool_]]:
        """The slices of `inside` along the first axis, one by one."""
        if self.edges is None:
            yield from (part > 0 for part in self.grid)
        else:
            yield from (part > 0 for part in enlarged(self.grid, self.edges))

    @property
    def slices(self) -> tuple[slice, ...]:
        """Where the window lies in the image."""
        return tuple(slice(a, a + n) for a, n in zip(self.low, self.size, strict=True))

    @cached_property
    def mask_bounds(self) -> Bounds | None:
        """Bounding box of the mask, to the pixel of `grid`; None if it is empty."""
        positive = self.grid > 0
        if not positive.any():
            return None
        low, high = true_bounds(positive)
        if self.edges is None:
            return _shifted(low, self.low), _shifted(high, self.low)
        return (
            tuple(int(e[a]) for e, a in zip(self.edges, low, strict=True)),
            tuple(int(e[b]) for e, b in zip(self.edges, high, strict=True)),
        )

    def full(self) -> NDArray[np.float32]:
        """Logits of the whole image."""
        result = np.full(self.shape, BACKGROUND_LOGIT, dtype=np.float32)
        np.multiply(self.steps, np.float32(STEP), out=result[self.slices])
        return result

    def mask(self) -> NDArray[np.bool_]:
        """Mask of the whole image."""
        result = np.zeros(self.shape, dtype=np.bool_)
        window = result[self.slices]
        if self.edges is None:
            np.greater(self.grid, 0, out=window)
            return result
        for k, part in enumerate(self.slices_inside()):
            window[k] = part
        return result

    def window(self, low: Sequence[int], high: Sequence[int]) -> NDArray[np.int16]:
        """Another window of the image, in steps."""
        shape = [b - a for a, b in zip(low, high, strict=True)]
        result = np.full(shape, _BACKGROUND, dtype=np.int16)
        target, source = [], []
        for a, b, c, n in zip(low, high, self.low, self.size, strict=True):
            start, stop = max(a, c), min(b, c + n)
            if start >= stop:
                return result
            target.append(slice(start - a, stop - a))
            source.append(slice(start - c, stop - c))
        result[tuple(target)] = self.steps[tuple(source)]
        return result

    def shrunk(
        self, low: Sequence[int], high: Sequence[int], shape: Sequence[int]
    ) -> NDArray[np.float32]:
        """Another window of the image, in logits, averaged down to `shape`."""
        size = tuple(b - a for a, b in zip(low, high, strict=True))
        if self.edges is None and size == tuple(shape):
            return self.window(low, high) * np.float32(STEP)
        result = (self.grid - np.float32(_BACKGROUND)) * np.float32(STEP)
        edges = self.edges or [
            np.arange(a, a + n + 1) for a, n in zip(self.low, self.grid.shape, strict=True)
        ]
        # Enlarging and averaging are sums along one axis at a time: no array of all pixels is made.
        for axis, (own, a, b, bins) in enumerate(zip(edges, low, high, shape, strict=True)):
            if not self.grid.size:
                return np.full(shape, BACKGROUND_LOGIT, dtype=np.float32)
            share = shares(own, (a, b), bins)
            result = np.moveaxis(np.tensordot(share, result, axes=(1, axis)), 0, axis)
        return np.asarray(result + np.float32(BACKGROUND_LOGIT), dtype=np.float32)

    def slice_at(self, index: int) -> SparseLogits | None:
        """The region on one slice of a volume, None if the window does not reach it."""
        k = index - self.low[0]
        if not 0 <= k < self.size[0]:
            return None
        if self.edges is None:
            return SparseLogits(self.shape[1:], self.low[1:], self.grid[k])
        part = next(islice(enlarged(self.grid, self.edges), k, None))
        return SparseLogits(self.shape[1:], self.low[1:], np.ceil(part).astype(np.int16))

    def turned(self, axes: Axes) -> SparseLogits:
        """The same in an image whose axes are turned."""
        if axes.is_same:
            return self
        high = _shifted(self.low, self.size)
        low, _ = axes.bounds((self.low, high), self.shape)
        edges = None
        if self.edges is not None:
            sizes = axes.sizes(self.shape)
            moved = zip(axes.sizes(self.edges), sizes, axes.flipped, strict=True)
            edges = tuple(n - e[::-1] if flip else e for e, n, flip in moved)
        grid = np.ascontiguousarray(axes.apply(self.grid))
        return SparseLogits(axes.sizes(self.shape), low, grid, edges)


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
