"""Linear resampling of whole images and logits to another number of pixels over the same extent.

Shrinking averages over as many pixels as become one, with a triangle's weights, so that nothing
is skipped; enlarging interpolates. Each axis is one sparse matrix. Logits are resampled slab by
slab (`resample_slabs`), so that those of many labels on a fine grid are never all in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Array = NDArray[Any]
Floats = NDArray[np.float32]


def resample_linear(array: Array, shape: Sequence[int]) -> Floats:
    """An array with another number of pixels along its first axes; outer edges stay where they are.

    Args:
        array: ``(*axes)`` or ``(*axes, channel)``.
        shape: wanted pixels per spatial axis.

    Returns:
        float32; `array` itself where nothing changes and it is of that type.
    """
    result = np.asarray(array, dtype=np.float32)
    for axis, size in enumerate(shape):
        result = _along(result, axis, size)
    return result


def resample_nearest(labels: Array, shape: Sequence[int]) -> Array:
    """As `resample_linear` for labels: that of the pixel in which a new centre lies."""
    result = labels
    for axis, size in enumerate(shape):
        if size != result.shape[axis]:
            places = ((np.arange(size) + 0.5) * result.shape[axis] / size).astype(np.int64)
            result = np.take(result, places, axis=axis)
    return result


def resample_slabs(
    slabs: Iterable[Floats], source: Sequence[int], target: Sequence[int]
) -> Iterator[Floats]:
    """Resample ``(channel, *axes)`` that comes in parts along the first spatial axis.

    Args:
        slabs: consecutive parts, first to last.
        source: pixels per spatial axis of all of them together.
        target: wanted pixels per spatial axis.

    Yields:
        Consecutive parts of the result, float32.
    """
    if tuple(source) == tuple(target):
        yield from slabs
        return
    matrix = _matrix(source[0], target[0])
    lasts = np.maximum.accumulate(matrix.indices[matrix.indptr[1:] - 1])  # rows that each one needs
    held: list[Floats] = []  # the rows from `first` on, resampled along the other axes
    first = done = 0
    for slab in slabs:
        for axis, size in enumerate(target[1:], start=2):
            slab = _along(slab, axis, size)
        held.append(slab)
        arrived = first + sum(part.shape[1] for part in held)
        ready = int(np.searchsorted(lasts, arrived))  # rows whose last one is below
        if ready == done:
            continue
        rows = np.concatenate(held, axis=1)
        yield _multiplied(matrix[done:ready, first:arrived], rows, 1)
        done = ready
        needed = int(matrix.indices[matrix.indptr[done] :].min(initial=arrived))
        held, first = [rows[:, needed - first :]], needed


def _along(array: Floats, axis: int, size: int) -> Floats:
    if array.shape[axis] == size:
        return array
    return _multiplied(_matrix(array.shape[axis], size), array, axis)


def _multiplied(matrix: Any, array: Floats, axis: int) -> Floats:
    """A matrix times an array along one of its axes."""
    front = np.moveaxis(array, axis, 0)
    flat = np.ascontiguousarray(front).reshape(front.shape[0], -1)
    result = (matrix @ flat).reshape(matrix.shape[0], *front.shape[1:])
    return np.moveaxis(np.asarray(result, dtype=np.float32), 0, axis)


@lru_cache(maxsize=64)
def _matrix(source: int, target: int) -> Any:
    """The weights ``(target, source)`` of linear interpolation between the centres of pixels."""
    ratio = source / target
    reach = max(1.0, ratio)  # of the triangle, in pixels of the source
    centres = (np.arange(target) + 0.5) * ratio - 0.5
    offsets = np.arange(-int(np.ceil(reach)), int(np.ceil(reach)) + 2)
    columns = np.floor(centres).astype(np.int64)[:, None] + offsets
    weights = np.maximum(0.0, 1.0 - np.abs(columns - centres[:, None]) / reach)
    weights /= weights.sum(axis=1, keepdims=True)
    rows = np.broadcast_to(np.arange(target)[:, None], columns.shape)
    kept = weights > 0
    inside = np.clip(columns, 0, source - 1)  # edges are repeated
    values = weights[kept].astype(np.float32)
    matrix = sparse.csr_matrix(
        (values, (rows[kept], inside[kept])), shape=(target, source), dtype=np.float32
    )
    matrix.sum_duplicates()
    return matrix


def resampled_shape(
    shape: Sequence[int], spacing: Sequence[float], wanted: Sequence[float] | None
) -> tuple[int, ...]:
    """Pixels per axis of the same extent at another spacing.

    Args:
        shape: of the image.
        spacing: of the image, millimetres per step.
        wanted: millimetres per step; None: as it is. With one axis less than the image has it is
            about rows and columns, and slices stay; with one more, likewise.
    """
    if wanted is None:
        return tuple(shape)
    full = (*spacing[: max(0, len(spacing) - len(wanted))], *wanted)[-len(shape) :]
    steps = zip(shape, spacing, full, strict=True)
    return tuple(max(1, round(n * s / w)) for n, s, w in steps)
