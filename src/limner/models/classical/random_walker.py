"""The random walker with priors (Grady 2005, https://doi.org/10.1109/CVPR.2005.239)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import linalg

from limner.models.classical.graph_cut import contrast_links, shifted_pair
from limner.models.classical.problem import SegmentationProblem

Array = NDArray[Any]
Mask = NDArray[np.bool_]


# How much a pixel's own colour counts beside its links; more where only clicks hold the walk,
# since from a few pixels it gets lost, above all in 3D.
_BELIEF_LOCAL, _BELIEF_CLICKS = 0.02, 0.1
_FIXED = 50.0


def walk_randomly(problem: SegmentationProblem) -> NDArray[np.float32]:
    """Logit of the probability that a walk ends on the object before it ends on the rest."""
    ratio = problem.first_ratio()
    starts = problem.starts(ratio) | (problem.likeliest(ratio) & ~problem.markers.outside)
    outside = problem.markers.outside | _far_border(problem, ratio)
    links = contrast_links(problem.features, problem.spacing, 1.0)
    odds = ratio + problem.prior_logit()
    belief = 0.5 * (1.0 + np.tanh(0.5 * odds))
    fixed = starts | (outside & ~problem.markers.inside)
    trust = _BELIEF_LOCAL if problem.markers.is_local else _BELIEF_CLICKS
    strength = np.where(fixed, _FIXED, trust).ravel()
    target = np.where(fixed, starts, belief).ravel()
    system, diagonal = _laplacian(problem.shape, links, strength)
    inverse = sparse.diags_array(1.0 / diagonal)
    inside, _ = linalg.cg(system, strength * target, x0=target, rtol=1e-3, maxiter=300, M=inverse)
    inside = np.clip(inside.reshape(problem.shape), 1e-4, 1.0 - 1e-4)
    return np.asarray(np.log(inside) - np.log1p(-inside), dtype=np.float32)


def _laplacian(
    shape: tuple[int, ...], links: list[tuple[tuple[int, ...], Array]], extra: Array
) -> tuple[sparse.csr_array, Array]:
    """Graph Laplacian plus the diagonal `extra`, and its diagonal."""
    index = np.arange(int(np.prod(shape)), dtype=np.int32).reshape(shape)
    degree = np.array(extra, dtype=np.float64)
    rows, columns, values = [], [], []
    for offset, weight in links:
        here, there = shifted_pair(shape, offset)
        a, b, w = index[here].ravel(), index[there].ravel(), weight.ravel().astype(np.float64)
        degree += np.bincount(a, w, degree.size) + np.bincount(b, w, degree.size)
        rows += [a, b]
        columns += [b, a]
        values += [-w, -w]
    rows.append(index.ravel())
    columns.append(index.ravel())
    values.append(degree)
    coordinates = (np.concatenate(rows), np.concatenate(columns))
    system = sparse.csr_array((np.concatenate(values), coordinates), shape=(degree.size,) * 2)
    return system, degree


def _far_border(problem: SegmentationProblem, ratio: Array) -> Mask:
    """With clicks alone: the view's border as background, except where it looks like the object."""
    border = np.zeros(problem.shape, dtype=np.bool_)
    if problem.markers.is_local:
        return border
    for axis, size in enumerate(problem.shape):
        if size > 2:
            edge = np.moveaxis(border, axis, 0)
            edge[0] = edge[-1] = True
    return border & (ratio < 0.5) & ~problem.markers.inside
