"""Regions that no label names, and objects within labels: what may be a target besides labels.

Superpixels by Felzenszwalb and Huttenlocher's method, as in ScribblePrompt, and groups of them by
linking neighbours of like brightness.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Ids = NDArray[np.uint16]


def compute_superpixels(image: NDArray[np.uint8], rng: np.random.Generator) -> Ids:
    """A partition of an image, ids from 1.

    Args:
        image: (row, column) or (row, column, 3).
        rng: draws how fine it is.
    """
    from skimage.segmentation import felzenszwalb

    least = int(max(24, image.shape[0] * image.shape[1] / 800))
    found = felzenszwalb(
        image.astype(np.float32) / 255.0,
        scale=float(np.exp(rng.uniform(np.log(20.0), np.log(500.0)))),
        sigma=float(rng.uniform(0.4, 1.2)),
        min_size=least,
        channel_axis=-1 if image.ndim == 3 else None,
    )
    return np.asarray(found + 1, dtype=np.uint16)


def group_superpixels(regions: Ids, image: NDArray[np.uint8], rng: np.random.Generator) -> Ids:
    """For each superpixel the id of its group: neighbours of like brightness are linked.

    Args:
        regions: of `compute_superpixels`.
        image: the same image.
        rng: draws how alike is alike.

    Returns:
        Indexed by superpixel; entry 0 is 0.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    number = int(regions.max()) + 1
    values = image.reshape(image.shape[0], image.shape[1], -1).astype(np.float64)
    sizes = np.maximum(np.bincount(regions.ravel(), minlength=number), 1)
    means = np.stack(
        [
            np.bincount(regions.ravel(), values[..., k].ravel(), minlength=number) / sizes
            for k in range(values.shape[-1])
        ]
    )
    pairs = np.concatenate(
        [
            np.stack([regions[:-1].ravel(), regions[1:].ravel()]),
            np.stack([regions[:, :-1].ravel(), regions[:, 1:].ravel()]),
        ],
        axis=1,
    ).astype(np.int64)
    pairs = np.unique(np.sort(pairs[:, pairs[0] != pairs[1]], axis=0), axis=1)
    if not pairs.size:
        return np.arange(number, dtype=np.uint16)
    gap = np.abs(means[:, pairs[0]] - means[:, pairs[1]]).max(axis=0)
    linked = pairs[:, gap <= np.quantile(gap, rng.uniform(0.15, 0.5))]
    graph = coo_array((np.ones(linked.shape[1]), (linked[0], linked[1])), shape=(number, number))
    found = connected_components(graph, directed=False)[1].astype(np.int64)
    _, compact = np.unique(found[1:], return_inverse=True)
    return np.concatenate([[0], compact + 1]).astype(np.uint16)


def label_components(labels: Ids, least: int) -> Ids:
    """The connected components (8 neighbours) of each label, ids from 1, label by label.

    Args:
        labels: label map.
        least: smaller ones are left out, in pixels.
    """
    from scipy import ndimage

    result = np.zeros(labels.shape, dtype=np.uint16)
    last = 0
    for label in np.unique(labels):
        if label == 0:
            continue
        parts, number = ndimage.label(labels == label, structure=np.ones((3, 3)))
        sizes = np.bincount(parts.ravel(), minlength=number + 1)
        kept = np.flatnonzero(sizes >= least)
        kept = kept[kept > 0]
        ids = np.zeros(number + 1, dtype=np.uint16)
        ids[kept] = np.arange(last + 1, last + 1 + len(kept))
        result += ids[parts]
        last += len(kept)
    return result


def region_table(regions: Ids, least: int, largest: int) -> NDArray[np.int32]:
    """Areas and boxes of a map's regions.

    Args:
        regions: ids from 1; 0 is nothing.
        least: pixels of the smallest region kept.
        largest: of the largest.

    Returns:
        One row each: id, area, first row, first column, last row + 1, last column + 1.
    """
    from scipy import ndimage

    areas = np.bincount(regions.ravel())
    rows = []
    for k, window in enumerate(ndimage.find_objects(regions.astype(np.int32)), start=1):
        if window is None or not least <= areas[k] <= largest:
            continue
        (r, c) = window
        rows.append((k, areas[k], r.start, c.start, r.stop, c.stop))
    return np.array(rows, dtype=np.int32).reshape(-1, 6)
