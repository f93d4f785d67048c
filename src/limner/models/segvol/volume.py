"""CT volumes as SegVol's input: mapped to 0…1, cut to the foreground, shrunk to 32 x 256 x 256.

Nothing is copied but what is used. There are two ways to prepare a volume: `prepare_volume`
reads the limits of intensity from counts; `prepare_volume_as_published` repeats the authors'
arithmetic in float32 to the bit and needs a copy of the volume for it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float32]
Shape = tuple[int, int, int]
Bounds = tuple[Shape, Shape]  # first voxels inside, first ones outside

SIZE: Shape = (32, 256, 256)  # of the network's input, (D, H, W)
LOW_PERCENTILE, HIGH_PERCENTILE = 0.05, 99.95  # of the voxels brighter than the mean
_MOST_COUNTS = 1 << 22  # different whole numbers that are counted one by one
_BLOCK = 8192  # values in a row that NumPy 1 adds up before it goes on


@dataclass(frozen=True, eq=False)
class Window:
    """What the network is shown once.

    Attributes:
        key: names it among those of one volume; all but the first part says of which region it is.
        image: makes the pixels, float32 of `SIZE`, 0…1.
    """

    key: tuple[Hashable, ...]
    image: Callable[[], Floats]


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume in the network's axes, without the background around it.

    Attributes:
        array: (D, H, W), intensities as stored, background included.
        low: first voxel that is kept.
        shape: of what is kept.
        normalized: any voxels as stored to 0…1, float32.
    """

    array: Array
    low: Shape
    shape: Shape
    normalized: Callable[[Array], Floats]

    @property
    def kept(self) -> Array:
        """The voxels that are kept, as stored."""
        return self.array[_slices(self.low, np.add(self.low, self.shape))]

    def coarse(self) -> Window:
        """All of it, voxels picked."""
        return Window(("whole",), self._shrunk)

    def _shrunk(self) -> Floats:
        slices, rows, columns = (
            picked(n, size, exact=True) for n, size in zip(self.shape, SIZE, strict=True)
        )
        kept = self.kept
        return np.stack([self.normalized(kept[k][np.ix_(rows, columns)]) for k in slices])

    def window(self, start: Sequence[int] | NDArray[np.int64], bounds: Bounds) -> Window:
        """A window at full resolution.

        Args:
            start: its first voxel, may be negative.
            bounds: what may be shown; the rest of the window is 0.
        """
        first = tuple(int(n) for n in start)
        return Window((first, bounds), lambda: self._cut(first, bounds))

    def _cut(self, start: Sequence[int], bounds: Bounds) -> Floats:
        out = np.zeros(SIZE, np.float32)
        low = np.maximum(start, bounds[0])
        high = np.minimum(np.add(start, SIZE), bounds[1])
        values = self.normalized(self.kept[_slices(low, high)])
        out[_slices(low - start, high - start)] = values
        return out


def picked(old: int, new: int, *, exact: bool) -> NDArray[np.int64]:
    """Which of `old` voxels each of `new` ones is, as PyTorch picks the nearest, in float32.

    Args:
        old: number of voxels.
        new: likewise.
        exact: by the centres of voxels ("nearest-exact"), not by their edges ("nearest").
    """
    scale = np.float32(old) / np.float32(new)
    place = np.arange(new, dtype=np.float32) + np.float32(0.5 if exact else 0.0)
    return np.minimum((place * scale).astype(np.int64), old - 1)


def make_finite(array: Array) -> Array:
    """The volume itself, or a copy where it holds what is no number: NaN becomes the least of its
    finite values, as infinities become the least and the largest.
    """
    if not np.issubdtype(array.dtype, np.floating) or np.isfinite(array).all():
        return array
    finite = array[np.isfinite(array)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    return np.nan_to_num(array, nan=low, posinf=high, neginf=low)


def prepare_volume(array: Array, limits: tuple[float, float] | None = None) -> Volume:
    """A volume as the authors prepare it, up to rounding.

    Theirs: clip to percentiles of the voxels brighter than the mean of all; subtract their mean,
    divide by their deviation; map what is left to 0…1, in which mean and deviation cancel out.

    Args:
        array: (D, H, W), finite.
        limits: for 0 and 1, instead of those percentiles.
    """
    low, high = foreground_limits(array) if limits is None else limits
    scale = np.float32(1.0 / max(high - low, 1e-8))

    def normalized(values: Array) -> Floats:
        exact = np.result_type(values.dtype, np.float32)  # float64 where 24 bits are too few
        shifted = values.astype(exact) - exact.type(low)
        return np.asarray(np.clip(shifted * scale, 0.0, 1.0), dtype=np.float32)

    first, last = _brighter(array, low)
    return Volume(array, first, _size(first, last), normalized)


def foreground_limits(array: Array) -> tuple[float, float]:
    """`LOW_PERCENTILE` and `HIGH_PERCENTILE` of the values above the mean of all.

    Whole numbers are counted; else the values above the mean are copied, in their own type. Of a
    constant array both are its value.
    """
    percentiles = (LOW_PERCENTILE, HIGH_PERCENTILE)
    if array.dtype.kind == "b":
        array = array.view(np.uint8)
    mean = float(array.mean(dtype=np.float64))
    least, most = array.min(), array.max()
    if least == most:
        return float(least), float(least)
    if array.dtype.kind in "iu" and int(most) - int(least) < _MOST_COUNTS:
        counts = np.zeros(int(most) - int(least) + 1, np.int64)
        for pixels in array:
            numbers = (pixels.astype(np.int64) - int(least)).ravel()
            counts += np.bincount(numbers, minlength=len(counts))
        first = int(np.floor(mean)) + 1 - int(least)
        found = _percentiles(counts[first:], percentiles)
        return found[0] + int(least) + first, found[1] + int(least) + first
    brighter = np.concatenate([pixels[pixels > mean] for pixels in array])
    low, high = np.percentile(brighter, percentiles)
    return float(low), float(high)


def _percentiles(counts: NDArray[np.int64], percents: Sequence[float]) -> list[float]:
    """Of the numbers 0, 1, 2, … that occur so often, between neighbours as NumPy does."""
    upto = np.cumsum(counts)
    found = []
    for percent in percents:
        place = (int(upto[-1]) - 1) * percent / 100.0
        rank = int(place)
        a, b = np.searchsorted(upto, [rank, min(rank + 1, int(upto[-1]) - 1)], side="right")
        found.append(float(a + (b - a) * (place - rank)))
    return found


def prepare_volume_as_published(array: Array) -> Volume:
    """A volume as the authors prepare it, to the bit.

    They hold it in float32 and in the order of NIfTI, columns slowest; their sums are rounded in
    that order and in the blocks of NumPy 1.

    Args:
        array: (D, H, W), finite.
    """
    stored = array.transpose(2, 1, 0).astype(np.float32, order="C").reshape(-1)
    brighter = stored[stored > _mean(stored)]
    if not brighter.size:  # constant
        return Volume(array, (0, 0, 0), _shape_of(array), lambda v: np.zeros(v.shape, np.float32))
    high = np.float32(np.percentile(brighter, HIGH_PERCENTILE))
    low = np.float32(np.percentile(brighter, LOW_PERCENTILE))
    mean, deviation = _mean(brighter), np.maximum(_deviation(brighter), np.float32(1e-8))
    least, most = np.clip(np.array([stored.min(), stored.max()]), low, high)
    floor = (least - mean) / deviation
    span = np.maximum((most - mean) / deviation - floor, np.float32(1e-8))
    del stored, brighter

    def normalized(values: Array) -> Floats:
        out = np.clip(values.astype(np.float32), low, high)
        return np.asarray(((out - mean) / deviation - floor) / span, dtype=np.float32)

    first, last = _bounds(
        np.any(normalized(pixels) > 0, axis=k) for pixels in array for k in (1, 0)
    )
    return Volume(array, first, _size(first, last), normalized)


def _sum(values: Floats) -> np.float32:
    """As NumPy 1.26 does it: blocks one after the other, pairwise within a block."""
    whole = values.size - values.size % _BLOCK
    sums = values[:whole].reshape(-1, _BLOCK).sum(axis=1)
    return np.float32(np.cumsum(np.append(sums, values[whole:].sum()), dtype=np.float32)[-1])


def _mean(values: Floats) -> np.float32:
    return np.float32(float(_sum(values)) / values.size)


def _deviation(values: Floats) -> np.float32:
    away = values - _sum(values) / np.float32(values.size)
    away *= away
    return np.float32(np.sqrt(_mean(away)))


def _brighter(array: Array, low: float) -> Bounds:
    """Where the voxels above a value are; the whole where there are none."""
    return _bounds(np.any(pixels > low, axis=k) for pixels in array for k in (1, 0))


def _bounds(found: Any) -> Bounds:
    """The box of what was found, from rows and columns per plane in turn."""
    seen = list(found)
    rows, columns = np.array(seen[0::2]), np.array(seen[1::2])
    lines = [np.asarray(a) for a in (rows.any(axis=1), rows.any(axis=0), columns.any(axis=0))]
    if not lines[0].any():
        return (0, 0, 0), (len(lines[0]), len(lines[1]), len(lines[2]))
    ends = [np.flatnonzero(line)[[0, -1]] for line in lines]
    low, high = (tuple(int(end[k]) + k for end in ends) for k in (0, 1))
    return (low[0], low[1], low[2]), (high[0], high[1], high[2])


def _size(low: Shape, high: Shape) -> Shape:
    return high[0] - low[0], high[1] - low[1], high[2] - low[2]


def _shape_of(array: Array) -> Shape:
    return array.shape[0], array.shape[1], array.shape[2]


def _slices(low: Any, high: Any) -> tuple[slice, ...]:
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
