"""The minimum cut of a grid: the labelling of two classes with the least energy, exactly.

Energy and graph after Boykov and Jolly 2001 (https://doi.org/10.1109/ICCV.2001.937505); the flow is
SciPy's.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph

Array = NDArray[Any]

_UNIT = 200.0  # integer capacity of one unit of energy: SciPy's flow is in int32
_MOST = 200_000  # largest capacity, far above the sum of any pixel's links


def grid_offsets(ndim: int) -> list[tuple[int, ...]]:
    """Half of each pixel's neighbours: 8 in 2D; 18 in 3D, the corners add little."""
    offsets = [o for o in product((-1, 0, 1), repeat=ndim) if o > (0,) * ndim]
    return [o for o in offsets if sum(abs(k) for k in o) <= 2]


def shifted_pair(
    shape: tuple[int, ...], offset: tuple[int, ...]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Slices of all pixels that have a neighbour at `offset`, and of those neighbours."""
    here = tuple(slice(max(0, -k), n - max(0, k)) for k, n in zip(offset, shape, strict=True))
    there = tuple(slice(max(0, k), n - max(0, -k)) for k, n in zip(offset, shape, strict=True))
    return here, there


def contrast_links(
    features: NDArray[np.float32], spacing: tuple[float, ...], strength: float
) -> list[tuple[tuple[int, ...], Array]]:
    """What it costs to cut between neighbours: much where they look alike, little across an edge.

    Args:
        features: channels last.
        spacing: millimetres per step; links weaken with the distance they span.
        strength: of a link between equal neighbours one step apart.

    Returns:
        Per offset of `grid_offsets` the weights of all pairs of `shifted_pair`.
    """
    shape = features.shape[:-1]
    finest = min(spacing)
    found = []
    for offset in grid_offsets(len(shape)):
        here, there = shifted_pair(shape, offset)
        squared = ((features[here] - features[there]) ** 2).sum(axis=-1)
        length = float(np.hypot.reduce(np.multiply(offset, spacing))) / finest
        found.append((offset, squared, length))
    total = sum(float(s.sum()) for _, s, _ in found)
    count = sum(s.size for _, s, _ in found)
    mean = max(total / max(count, 1), 1e-8)
    strength *= 4.0 / len(found)  # as much per pixel in 3D as among the 8 neighbours of 2D
    return [(o, (strength / n) * (0.02 + 0.98 * np.exp(-s / (2.0 * mean)))) for o, s, n in found]


def minimum_cut(unary: Array, links: list[tuple[tuple[int, ...], Array]]) -> NDArray[np.bool_]:
    """The mask of least energy.

    Args:
        unary: energy saved by counting a pixel to the object; infinite where it is decided.
        links: per offset the energy of separating two neighbours, from `contrast_links`.
    """
    shape, count = unary.shape, unary.size
    source, sink = count, count + 1
    index = np.arange(count, dtype=np.int32).reshape(shape)
    tails, heads, weights = [], [], []
    for offset, weight in links:
        here, there = shifted_pair(shape, offset)
        a, b, w = index[here].ravel(), index[there].ravel(), _capacity(weight.ravel())
        tails += [a, b]
        heads += [b, a]
        weights += [w, w]
    flat = unary.ravel()
    for towards, chosen in ((True, flat > 0), (False, flat < 0)):
        pixels = np.flatnonzero(chosen).astype(np.int32)
        terminal = np.full(pixels.size, source if towards else sink, dtype=np.int32)
        tails.append(terminal if towards else pixels)
        heads.append(pixels if towards else terminal)
        weights.append(_capacity(np.abs(flat[pixels])))
    graph = sparse.csr_array(
        (np.concatenate(weights), (np.concatenate(tails), np.concatenate(heads))),
        shape=(count + 2, count + 2),
    )
    residual = graph - csgraph.maximum_flow(graph, source, sink).flow
    residual.eliminate_zeros()
    reached = csgraph.breadth_first_order(residual, source, return_predecessors=False)
    mask = np.zeros(count + 2, dtype=np.bool_)
    mask[reached] = True
    return np.asarray(mask[:count].reshape(shape))


def _capacity(energy: Array) -> NDArray[np.int32]:
    return np.asarray(np.minimum(np.rint(energy * _UNIT), _MOST).astype(np.int32))
