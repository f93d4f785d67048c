"""Shrinking and enlarging windows: area average down, linear up, both on whole-pixel bins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Edges = NDArray[np.int64]


def bin_edges(size: int, bins: int) -> Edges:
    """Where each of `bins` output pixels begins among `size` pixels, and where the last ends."""
    return (np.arange(bins + 1, dtype=np.int64) * size) // bins


def shrink(array: Array, shape: Sequence[int]) -> Array:
    """Average an array down to `shape` (leading axes; a channel axis stays).

    Axes that already have the wanted size are untouched; if all have, the array itself comes back.
    The result of an average is float32. Beside it, no more than one bin of the first axis is held.
    """
    size, bins = array.shape[0], shape[0]
    if bins == size:
        return _averaged(array, shape)
    edges = bin_edges(size, bins)
    result = np.empty((*shape, *array.shape[len(shape) :]), dtype=np.float32)
    for k in range(bins):
        mean = array[edges[k] : edges[k + 1]].mean(axis=0, dtype=np.float32)
        result[k] = _averaged(mean[np.newaxis], (1, *shape[1:]))[0]
    return result


def enlarge(array: NDArray[np.float32], edges: Sequence[Edges]) -> NDArray[np.int16]:
    """Interpolate linearly between the centres of bins; constant beyond the outer centres.

    Args:
        array: one value per bin.
        edges: per axis, where the bins begin and the last one ends (`bin_edges`, or a run of it).

    Returns:
        int16, rounded up so that what is above 0 stays so (within ±32767);
        ``edges[k][-1] - edges[k][0]`` pixels on axis ``k``. Made slice by slice, so that
        no float32 array of the full size is ever held.
    """
    plane_axes = range(1, array.ndim)
    wide = array
    for axis in plane_axes:
        low, high, weight = _neighbours(edges[axis])
        first, second = np.take(wide, low, axis=axis), np.take(wide, high, axis=axis)
        wide = first + (second - first) * _along(weight, axis, array.ndim)
    low, high, weight = _neighbours(edges[0])
    result = np.empty((low.size, *wide.shape[1:]), dtype=np.int16)
    for k in range(low.size):
        row = wide[high[k]] - wide[low[k]]
        row *= weight[k]
        row += wide[low[k]]
        result[k] = np.ceil(row)
    return result


def _averaged(array: Array, shape: Sequence[int]) -> Array:
    """Average all axes but the first down to `shape`."""
    result = array
    for axis, bins in enumerate(shape):
        size = result.shape[axis]
        if bins == size:
            continue
        edges = bin_edges(size, bins)
        total = np.add.reduceat(result, edges[:-1], axis=axis, dtype=np.float32)
        counts = np.diff(edges).astype(np.float32)
        result = total / _along(counts, axis, total.ndim)
    return result


def _neighbours(edges: Edges) -> tuple[Edges, Edges, NDArray[np.float32]]:
    """Per output pixel: the bins on both sides and how far it is towards the second, 0…1."""
    centres = (edges[:-1] + edges[1:] - 1) / 2.0
    bins = centres.size
    at = np.clip(np.arange(edges[0], edges[-1]), centres[0], centres[-1])
    low = np.clip(np.searchsorted(centres, at, side="right") - 1, 0, max(bins - 2, 0))
    high = np.minimum(low + 1, bins - 1)
    gap = np.where(high > low, centres[high] - centres[low], 1.0)
    return low, high, ((at - centres[low]) / gap).astype(np.float32)


def _along(values: Array, axis: int, ndim: int) -> Array:
    return values.reshape([-1 if k == axis else 1 for k in range(ndim)])
