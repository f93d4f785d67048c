"""Pseudo labels: a volume cut along its edges, so that a network learns to find things that nobody
has named (SegVol, https://arxiv.org/abs/2311.13385).

Efficient graph-based segmentation (Felzenszwalb and Huttenlocher, IJCV 59, 2004) with voxels as
nodes: edges in order of their cost join two regions unless they are dearer than what either region
has inside, plus a bonus for small regions. Exact, ties in the order of `find_edges`. The loop in
Python sees only edges that may join: once an edge was too dear for a region, so are all later ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Ids = NDArray[np.int32]
Rule = Literal["adaptive", "threshold"]

SCALE, SIGMA, MIN_SIZE = 16.0, 0.8, 1000  # the paper's, for grey values of 0…255
PERCENTILE = 25.0  # of the edges' costs above 0, where the rule is a fixed threshold
_STEPS = ((0, 0, 1), (0, 1, 0), (0, 1, 1), (0, 1, -1), (1, 0, 0))
_CHUNK = 500_000  # edges; before each, those within a region and at closed ones are dropped


@dataclass(frozen=True, eq=False)
class Edges:
    """Neighbouring nodes in ascending order of cost.

    Attributes:
        first: a node of each.
        second: the other one.
        cost: float32.
    """

    first: Ids
    second: Ids
    cost: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.cost)

    def where(self, chosen: Array | slice) -> Edges:
        """Some of them, in the same order."""
        return Edges(self.first[chosen], self.second[chosen], self.cost[chosen])


def segment(
    volume: Array,
    *,
    rule: Rule = "adaptive",
    scale: float = SCALE,
    sigma: float = SIGMA,
    min_size: int = MIN_SIZE,
) -> Ids:
    """Cut a volume into regions.

    Args:
        volume: (D, H, W), in the units of `scale`.
        rule: ``"adaptive"`` is that of the publication; ``"threshold"`` joins all neighbours whose
            cost is at most the `PERCENTILE` of the costs above 0, as the authors of SegVol do.
        scale: larger makes larger regions; not used by ``"threshold"``.
        sigma: of the Gaussian within slices before, in voxels; slices are not mixed, since they may
            lie far apart.
        min_size: smaller regions are joined with their nearest neighbours, in voxels.

    Returns:
        (D, H, W), ids from 0 in the order in which they are met.
    """
    from scipy import ndimage

    smooth = volume.astype(np.float32)
    if sigma > 0:
        smooth = ndimage.gaussian_filter(smooth, (0.0, sigma, sigma))
    graph = find_edges(smooth)
    if rule == "threshold":
        above = graph.cost[graph.cost > 0]
        limit = float(np.percentile(above, PERCENTILE)) if above.size else 0.0
        ids = _connected(volume.size, graph.where(graph.cost <= limit))
    else:
        ids = _adaptive(volume.size, graph, scale)
    ids = _without_small(ids, graph, min_size)
    return renumber(ids).reshape(volume.shape)


def find_edges(volume: NDArray[np.float32]) -> Edges:
    """Each voxel's neighbours to the right, below, on both diagonals below, and in the next slice;
    sorted by their difference, stably.
    """
    nodes = np.arange(volume.size, dtype=np.int32).reshape(volume.shape)
    firsts, seconds, costs = [], [], []
    for step in _STEPS:
        sides = list(zip(step, volume.shape, strict=True))
        here = tuple(slice(max(0, -s), n - max(0, s)) for s, n in sides)
        there = tuple(slice(max(0, s), n - max(0, -s)) for s, n in sides)
        firsts.append(nodes[here].ravel())
        seconds.append(nodes[there].ravel())
        costs.append(np.abs(volume[here] - volume[there]).ravel())
    cost = np.concatenate(costs)
    order = np.argsort(cost, kind="stable")
    return Edges(np.concatenate(firsts)[order], np.concatenate(seconds)[order], cost[order])


def renumber(ids: Array) -> Ids:
    """The same regions with ids 0, 1, 2, … in the order in which they are met."""
    flat = ids.ravel()
    _, first, inverse = np.unique(flat, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int32)
    rank[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
    return np.asarray(rank[inverse]).reshape(ids.shape)


def paste(ids: Ids, labels: Array) -> Ids:
    """Regions with labels over them: what people have drawn is no guess.

    Args:
        ids: regions, not below 0.
        labels: of the same shape; 0 leaves the region.

    Returns:
        Ids in the order in which they are met; each label is one of its own.
    """
    over = np.where(labels > 0, labels.astype(np.int64) + int(ids.max(initial=0)), ids)
    return renumber(over)


def _adaptive(number: int, graph: Edges, scale: float) -> Ids:
    """The region of each node."""
    parent, most, count = list(range(number)), [0.0] * number, [1] * number
    closed = np.zeros(number, dtype=np.bool_)  # an edge was too dear, and so are all that follow
    for begin in range(0, len(graph), _CHUNK):
        part = graph.where(slice(begin, begin + _CHUNK))
        roots = _roots(parent)
        a, b = roots[part.first], roots[part.second]
        part = Edges(a, b, part.cost).where((a != b) & ~closed[a] & ~closed[b])
        found = []
        pairs = zip(part.first.tolist(), part.second.tolist(), part.cost.tolist(), strict=True)
        for x, y, cost in pairs:
            while parent[x] != x:
                parent[x] = x = parent[parent[x]]
            while parent[y] != y:
                parent[y] = y = parent[parent[y]]
            if x == y:
                continue
            if cost > most[x] + scale / count[x]:
                found.append(x)
            elif cost > most[y] + scale / count[y]:
                found.append(y)
            else:
                if count[x] < count[y]:
                    x, y = y, x
                parent[y] = x
                most[x] = cost
                count[x] += count[y]
        closed[found] = True
    return _roots(parent)


def _without_small(ids: Ids, graph: Edges, least: int) -> Ids:
    """Small regions joined with neighbours, cheapest edge first.

    Only edges of the minimum spanning tree can join: along the path in the tree between the ends of
    any other edge, every border that is left lies between two large regions.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import minimum_spanning_tree

    left, inverse = np.unique(ids, return_inverse=True)
    names = inverse.astype(np.int32)
    count = np.bincount(names)
    if len(left) < 2 or count.min() >= least:
        return names
    a, b = names[graph.first], names[graph.second]
    between = _nearest(Edges(a, b, graph.cost).where(a != b), len(left))
    rank = np.arange(1.0, len(between) + 1)  # instead of costs, so that there are no ties
    tree = minimum_spanning_tree(
        coo_array((rank, (between.first, between.second)), shape=(len(left), len(left)))
    )
    chosen = np.sort(tree.data).astype(np.int64) - 1
    parent, sizes = list(range(len(left))), count.tolist()
    for x, y in zip(between.first[chosen].tolist(), between.second[chosen].tolist(), strict=True):
        while parent[x] != x:
            parent[x] = x = parent[parent[x]]
        while parent[y] != y:
            parent[y] = y = parent[parent[y]]
        if sizes[x] < least or sizes[y] < least:
            if sizes[x] < sizes[y]:
                x, y = y, x
            parent[y] = x
            sizes[x] += sizes[y]
    return _roots(parent)[names]


def _nearest(graph: Edges, number: int) -> Edges:
    """Of all edges between the same two regions the first: if that does not join them, one of them
    is closed.
    """
    low, high = np.minimum(graph.first, graph.second), np.maximum(graph.first, graph.second)
    _, first = np.unique(low.astype(np.int64) * number + high, return_index=True)
    return graph.where(np.sort(first))


def _connected(number: int, graph: Edges) -> Ids:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    there = np.ones(len(graph), dtype=np.uint8)
    matrix = coo_array((there, (graph.first, graph.second)), shape=(number, number))
    _, ids = connected_components(matrix, directed=False)
    return np.asarray(ids, dtype=np.int32)


def _roots(parent: list[int]) -> Ids:
    """The root of each, following parents."""
    found = np.array(parent, dtype=np.int32)
    while not np.array_equal(higher := found[found], found):
        found = higher
    return found
