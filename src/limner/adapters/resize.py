"""Shrinking and enlarging windows: area average down, linear up, both on whole-pixel bins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Edges = NDArray[np.int64]
Neighbours: TypeAlias = tuple[Edges, Edges, NDArray[np.float32]]

MOST_IN_BIN = 4  # voxels per axis that the average of a volume's bin is taken of


def bin_edges(size: int, bins: int) -> Edges:
    """Where each of `bins` output pixels begins among `size` pixels, and where the last ends."""
    return (np.arange(bins + 1, dtype=np.int64) * size) // bins


def shrink(
    array: Array, shape: Sequence[int], *, clean: Callable[[Array], Array] | None = None
) -> Array:
    """Average an array down to `shape` (leading axes; a channel axis stays).

    Axes that already have the wanted size are untouched; if all have, the array itself comes back.
    The result of an average is float32. Beside it, no more than one bin of the first axis is held.
    In a volume no more than 4×4×4 voxels, evenly spread, stand for a bin, so that the time depends
    on `shape` and hardly on the array; marks as thin as a voxel need `shrink_all`.

    Args:
        array: what is averaged.
        shape: of the result, at most that of the array.
        clean: what is done to the pixels first, such as replacing NaN.
    """
    if array.shape[: len(shape)] == tuple(shape):
        return array if clean is None else clean(array)
    if len(shape) == 3:
        return _shrunk_volume(array, shape, clean)
    return shrink_all(array if clean is None else clean(array), shape)


def shrink_all(array: Array, shape: Sequence[int]) -> Array:
    """As `shrink`, from all pixels, however many axes there are."""
    size, bins = array.shape[0], shape[0]
    if bins == size:
        return _averaged(array, shape)
    edges = bin_edges(size, bins)
    result = np.empty((*shape, *array.shape[len(shape) :]), dtype=np.float32)
    for k in range(bins):
        mean = array[edges[k] : edges[k + 1]].mean(axis=0, dtype=np.float32)
        result[k] = _averaged(mean[np.newaxis], (1, *shape[1:]))[0]
    return result


def enlarged(array: NDArray[Any], edges: Sequence[Edges]) -> Iterator[NDArray[np.float32]]:
    """Interpolate linearly between the centres of bins; constant beyond the outer centres.

    Args:
        array: one value per bin.
        edges: per axis, where the bins begin and the last one ends (`bin_edges`, or a run of it).

    Yields:
        The planes of ``edges[0][-1] - edges[0][0]`` pixels along the first axis, one by one, each
        an array of its own; no array of the full size is ever held.
    """
    low, high, weight = _neighbours(edges[0])
    inner = [None if e[-1] - e[0] == e.size - 1 else _neighbours(e) for e in edges[1:]]
    wide: dict[int, NDArray[np.float32]] = {}
    for k in range(low.size):
        near = {int(low[k]), int(high[k])}
        wide = {b: wide[b] if b in wide else _widened(array[b], inner) for b in near}
        row = wide[int(high[k])] - wide[int(low[k])]
        row *= weight[k]
        row += wide[int(low[k])]
        yield row


def enlarge(array: NDArray[Any], edges: Sequence[Edges]) -> NDArray[np.int16]:
    """All planes of `enlarged` as int16, rounded up so that what is above 0 stays so (±32767)."""
    size = [int(e[-1] - e[0]) for e in edges]
    result = np.empty(size, dtype=np.int16)
    for k, row in enumerate(enlarged(array, edges)):
        result[k] = np.ceil(row)
    return result


def shares(edges: Edges, bounds: tuple[int, int], bins: int) -> NDArray[np.float32]:
    """What each bin of `edges`, enlarged, gives to each of `bins` bins that a window is shrunk to.

    Args:
        edges: of the bins that are enlarged.
        bounds: half-open, of the window that is shrunk.
        bins: what it is shrunk to.

    Returns:
        (bins, number of bins of `edges`); a row adds up to the share of its bin that is covered.
    """
    low, high, weight = _neighbours(edges)
    places = np.arange(edges[0], edges[-1])
    within = (places >= bounds[0]) & (places < bounds[1])
    targets = bounds[0] + bin_edges(bounds[1] - bounds[0], bins)
    target = np.searchsorted(targets, places[within], side="right") - 1
    result = np.zeros((bins, edges.size - 1), dtype=np.float32)
    np.add.at(result, (target, low[within]), 1.0 - weight[within])
    np.add.at(result, (target, high[within]), weight[within])
    result /= np.diff(targets)[:, np.newaxis]
    return result


def _shrunk_volume(
    array: Array, shape: Sequence[int], clean: Callable[[Array], Array] | None
) -> Array:
    """Along the axes in the order in which they lie in memory. Sums of a bin's voxels are exact for
    integers of 16 bits, so that the order makes no difference.
    """
    order = sorted(range(3), key=lambda k: -abs(array.strides[k]))
    stored = array.transpose(*order, *range(3, array.ndim))
    sizes = [shape[k] for k in order]
    picked = [_picked(n, bins) for n, bins in zip(stored.shape, sizes, strict=False)]
    (slices, first), *inner = picked
    result = np.empty((*sizes, *stored.shape[3:]), dtype=np.float32)
    for k, (a, b) in enumerate(pairwise(first.tolist())):
        block = stored[slices[a:b]] if slices.size < stored.shape[0] else stored[a:b]
        for axis, (places, _) in enumerate(inner, start=1):
            if places.size < block.shape[axis]:
                block = np.take(block, places, axis=axis)
        total = (block if clean is None else clean(block)).sum(axis=0, dtype=np.float32)
        for axis, (_, starts) in enumerate(inner):
            if starts.size - 1 < total.shape[axis]:
                total = np.add.reduceat(total, starts[:-1], axis=axis)
        result[k] = total
    counts = [np.diff(starts).astype(np.float32) for _, starts in picked]
    number = counts[0][:, None, None] * counts[1][:, None] * counts[2]
    result /= number.reshape(*sizes, *(1,) * (array.ndim - 3))
    back = np.argsort(order).tolist()
    return np.ascontiguousarray(result.transpose(*back, *range(3, array.ndim)))


def _picked(size: int, bins: int) -> tuple[Edges, Edges]:
    """The pixels that stand for the bins of an axis, and where among them each bin's begin."""
    edges = bin_edges(size, bins)
    places: list[int] = []
    starts = [0]
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        n = high - low
        if n <= MOST_IN_BIN:
            places += range(low, high)
        else:
            step = 2 * MOST_IN_BIN
            places += [low + ((2 * j + 1) * n) // step for j in range(MOST_IN_BIN)]
        starts.append(len(places))
    return np.asarray(places, dtype=np.int64), np.asarray(starts, dtype=np.int64)


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


def _widened(row: NDArray[Any], inner: Sequence[Neighbours | None]) -> NDArray[np.float32]:
    """One bin of the first axis, enlarged along all others."""
    wide = row.astype(np.float32, copy=False)
    for axis, near in enumerate(inner):
        if near is None:
            continue
        low, high, weight = near
        first, second = np.take(wide, low, axis=axis), np.take(wide, high, axis=axis)
        wide = first + (second - first) * _along(weight, axis, wide.ndim)
    return wide


def _neighbours(edges: Edges) -> Neighbours:
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
