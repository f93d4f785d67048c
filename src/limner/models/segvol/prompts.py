"""Prompts for SegVol: on the whole volume shrunk, on windows of it, and masks between the two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.adapters.sam import HIGH_CORNER, LOW_CORNER, PADDING, POSITIVE
from limner.models.segvol.volume import SIZE, Bounds, Floats, Shape, picked

Indices = NDArray[np.int64]
Points = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class WindowPrompts:
    """Prompts about one image, in voxels of it.

    Attributes:
        points: float32 (N, 3), whole numbers; N may be 0.
        labels: float32 (N,).
        box: first and last voxel inside, six whole numbers, or None.
        text: (768,), a word as the decoder takes it, or None.
    """

    points: Points
    labels: NDArray[np.float32]
    box: Points | None = None
    text: Floats | None = None

    def tokens(self) -> tuple[Points, NDArray[np.float32]]:
        """Points and labels as the decoder takes them: clicks, then the corners of the box, or
        where there are clicks and no box a point that says nothing.
        """
        if self.box is not None:
            more, kinds = self.box.reshape(2, 3), [LOW_CORNER, HIGH_CORNER]
        elif len(self.labels):
            more, kinds = np.zeros((1, 3), np.float32), [PADDING]
        else:
            return self.points, self.labels
        return np.concatenate([self.points, more]), np.append(
            self.labels, np.array(kinds, np.float32)
        )

    @property
    def positive(self) -> Points:
        """Points that belong to the object."""
        return np.asarray(self.points[self.labels == POSITIVE])


@dataclass(frozen=True, eq=False)
class VolumePrompts:
    """Prompts about one object, in voxels of the volume.

    Attributes:
        points: (N, 3), between the centres of the first and the last voxel.
        labels: float32 (N,).
        box: half-open, within the volume, or None.
        text: (768,) or None.
    """

    points: NDArray[np.float64]
    labels: NDArray[np.float32]
    box: Bounds | None = None
    text: Floats | None = None

    @property
    def voxels(self) -> NDArray[np.float64]:
        """The voxels that the points are in, (N, 3)."""
        return np.asarray(np.rint(self.points))

    def shrunk(self, shape: Shape) -> WindowPrompts:
        """The prompts on the whole volume shrunk to `SIZE`."""
        box = None if self.box is None else shrunk_box(*self.box, shape)
        return WindowPrompts(shrunk_points(self.points, shape), self.labels, box, self.text)


def shrunk_box(low: Sequence[float], high: Sequence[float], shape: Shape) -> Points:
    """A half-open box of the volume as first and last voxel of the whole shrunk to `SIZE`: those
    that were picked from inside, or else the one nearest to its middle.
    """
    ends = []
    for a, b, old, new in zip(low, high, shape, SIZE, strict=True):
        voxels = picked(old, new, exact=True)
        inside = np.flatnonzero((voxels >= a) & (voxels < b))
        middle = min(int((a + b) / 2 * new / old), new - 1)
        ends.append((inside[0], inside[-1]) if inside.size else (middle, middle))
    return np.asarray(np.array(ends, np.float32).T.reshape(-1))


def shrunk_points(points: NDArray[np.float64], shape: Shape) -> Points:
    """Positions in the volume as voxels of the whole shrunk to `SIZE`."""
    places = np.floor((points + 0.5) * (np.array(SIZE) / np.array(shape)))
    return np.asarray(np.clip(places, 0, np.array(SIZE) - 1), dtype=np.float32)


class Reflection:
    """A mask of the whole shrunk to `SIZE`, on the volume's voxels, as the authors enlarge it; here
    it is never enlarged.

    Args:
        mask: boolean, of `SIZE`.
        shape: of the volume.
    """

    def __init__(self, mask: NDArray[np.bool_], shape: Shape) -> None:
        self.shape = shape
        self._mask, self._axes = mask, reflected(shape)

    def bounds(self) -> Bounds | None:
        """The box of it, None if it is empty."""
        return self.within((0, 0, 0), self.shape)

    def within(self, low: Sequence[int], high: Sequence[int]) -> Bounds | None:
        """The box of the part in a box of the volume, None if that is empty."""
        chosen = [
            (np.unique(axis[a:b]), axis[a:b])
            for axis, a, b in zip(self._axes, low, high, strict=True)
        ]
        part = self._mask[np.ix_(*(voxels for voxels, _ in chosen))]
        ends = []
        for k, (voxels, axis) in enumerate(chosen):
            line = part.any(axis=tuple(j for j in range(3) if j != k))
            there = np.flatnonzero(np.isin(axis, voxels[line]))
            if not there.size:
                return None
            ends.append((low[k] + there[0], low[k] + there[-1] + 1))
        first, last = zip(*ends, strict=True)
        return shape_of(first), shape_of(last)

    def positions(self, points: Points, low: Shape, high: Shape) -> Indices:
        """The voxels in a box of the volume that points on the mask's grid become, in C order.

        Args:
            points: (N, 3); where the volume is smaller than `SIZE`, some become none.
            low: of the box.
            high: likewise.
        """
        found = [
            place
            for point in np.unique(points.astype(np.int64), axis=0)
            for place in product(
                *(
                    low[k] + np.flatnonzero(axis[low[k] : high[k]] == point[k])
                    for k, axis in enumerate(self._axes)
                )
            )
        ]
        return np.array(sorted(found), np.int64).reshape(-1, 3)


def reflected(shape: Shape) -> list[Indices]:
    """Per axis, which voxel of the shrunk whole each of the volume's is."""
    return [picked(old, new, exact=False) for old, new in zip(SIZE, shape, strict=True)]


def shape_of(numbers: Any) -> Shape:
    first, second, third = (int(n) for n in numbers)
    return first, second, third
