"""Reading a memory of pixels by anisotropic distance (XMem, https://arxiv.org/abs/2207.07115,
sections 3.2 and 3.3). NumPy alone: the policy of what is remembered runs without a framework.

Elements of memory and queries are rows: keys are (N, C) and (Q, C).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def similarity(
    keys: Floats, shrinkage: Floats | None, queries: Floats, selection: Floats | None
) -> Floats:
    """How near each element is to each query, never above 0 where there is a selection.

    Args:
        keys: (N, C).
        shrinkage: (N,), 1 and more: how fast nearness falls with distance; None: 1.
        queries: (Q, C).
        selection: (Q, C), 0…1: how much each channel of the query counts; None: all alike, and the
            query's own square is left out, which a softmax over elements does not see.

    Returns:
        (Q, N), float32.
    """
    scale = np.float32(1 / math.sqrt(keys.shape[1]))
    if selection is None:
        near = 2 * (queries @ keys.T) - np.square(keys).sum(axis=1)
    else:  # the square expanded, so that no array of (Q, N, C) is made
        near = 2 * ((queries * selection) @ keys.T) - selection @ np.square(keys).T
        near -= (selection * np.square(queries)).sum(axis=1, keepdims=True)
    near *= scale if shrinkage is None else shrinkage * scale
    return np.asarray(near, dtype=np.float32)


def top(near: Floats, count: int | None) -> tuple[NDArray[np.int64], Floats]:
    """The softmax over each query's nearest elements.

    Args:
        near: (Q, N), N at least 1.
        count: how many; all where there are no more or None is given.

    Returns:
        Indices (Q, K) of the elements, in no particular order, and weights (Q, K) that sum to 1.
    """
    size = near.shape[1]
    if count is None or count >= size:
        chosen, found = np.broadcast_to(np.arange(size), near.shape), near
    else:
        chosen = np.argpartition(near, size - count, axis=1)[:, size - count :]
        found = np.take_along_axis(near, chosen, axis=1)
    weights = np.exp(found - found.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return chosen, weights


def read(chosen: NDArray[np.int64], weights: Floats, values: Floats) -> Floats:
    """The weighted sums of values, (Q, V), of (N, V)."""
    from scipy import sparse

    rows, count = chosen.shape
    if count == len(values):
        dense = np.zeros((rows, count), np.float32)
        np.put_along_axis(dense, chosen, weights, axis=1)
        return np.asarray(dense @ values, dtype=np.float32)
    place = weights.ravel(), chosen.ravel(), np.arange(0, rows * count + 1, count)
    affinity = sparse.csr_matrix(place, shape=(rows, len(values)))
    return np.asarray(affinity @ values, dtype=np.float32)


def memory_terms(keys: Floats, shrinkage: Floats) -> Floats:
    """What of `similarity` depends on what is remembered alone, (N, 2C + 1): its product with
    `query_terms` is the similarity, so that most of the work is done once per element.
    """
    scale = shrinkage[:, None] * np.float32(1 / math.sqrt(keys.shape[1]))
    return np.asarray(np.concatenate([keys, np.square(keys), np.ones_like(scale)], axis=1) * scale)


def query_terms(queries: Floats, selection: Floats) -> Floats:
    """What depends on the queries alone, (Q, 2C + 1); see `memory_terms`."""
    chosen = queries * selection
    own = (queries * chosen).sum(axis=1, keepdims=True)
    return np.concatenate([2 * chosen, -selection, -own], axis=1)


def usage(chosen: NDArray[np.int64], weights: Floats, size: int) -> Floats:
    """How much each of `size` elements was used by all queries together."""
    total = np.bincount(chosen.ravel(), weights.ravel(), minlength=size)
    return np.asarray(total, dtype=np.float32)


def aggregated(probabilities: Floats) -> Floats:
    """Probabilities of objects that were judged alone, made to exclude one another.

    Args:
        probabilities: (N, row, column), of each object against all else.

    Returns:
        (1 + N, row, column), background first; they sum to 1 at every pixel.
    """
    nothing = np.prod(1 - probabilities, axis=0, keepdims=True)
    p = np.clip(np.concatenate([nothing, probabilities]), np.float32(1e-7), np.float32(1 - 1e-7))
    odds = p / (1 - p)  # a softmax of their logarithms divides them by their sum
    return np.asarray(odds / odds.sum(axis=0, keepdims=True), dtype=np.float32)
