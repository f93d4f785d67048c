"""Contours and masks of slices: polygons filled by one exact rule, masks outlined so that the rule
gives them back.

The rule: a pixel is inside if its centre is (even-odd count over all contours of the slice). It
gave the published voxel masks of three RT structure sets (CT, MR, PET) to the last voxel. A centre
exactly on an edge belongs to the side of larger indices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def fill(contours: Sequence[Array], shape: tuple[int, int]) -> Array:
    """The mask inside closed contours, even-odd.

    Args:
        contours: ``(n, 2)`` corners as fractional (row, column); the last joins the first.
        shape: of the mask.

    Returns:
        Boolean mask.
    """
    rows, columns = shape
    toggles = np.zeros((rows, columns + 1), dtype=np.int64)
    for contour in contours:
        row, column = _crossings(np.asarray(contour, dtype=np.float64), rows)
        first = np.clip(np.ceil(column), 0, columns).astype(np.int64)
        np.add.at(toggles, (row, first), 1)
    return np.asarray(np.cumsum(toggles[:, :columns], axis=1) % 2 == 1)


def _crossings(contour: Array, num_rows: int) -> tuple[Array, Array]:
    """Where the edges cross the centre lines of the rows, as (row, fractional column)."""
    start, end = contour, np.roll(contour, -1, axis=0)
    # The lower end first, so that an edge walked twice, there and back, gives equal numbers.
    swap = start[:, 0] > end[:, 0]
    low, high = np.where(swap[:, None], end, start), np.where(swap[:, None], start, end)
    first = np.clip(np.ceil(low[:, 0]), 0, num_rows).astype(np.int64)
    stop = np.clip(np.ceil(high[:, 0]), 0, num_rows).astype(np.int64)
    counts = np.maximum(stop - first, 0)
    edge = np.repeat(np.arange(len(contour)), counts)
    offset = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    row = first[edge] + offset
    rise = high[edge, 0] - low[edge, 0]
    slope = (high[edge, 1] - low[edge, 1]) / rise
    return row, low[edge, 1] + (row - low[edge, 0]) * slope


def outline(mask: Array) -> list[Array]:
    """Closed contours halfway between the pixel centres inside and outside a mask.

    One contour per 4-connected component. Holes are joined to it by a channel of no width
    (keyhole, PS3.3 C.8.8.6.3), since many readers unite the contours of a slice instead of
    excluding inner ones; `fill` gives back exactly the mask.

    Args:
        mask: boolean ``(row, column)``.

    Returns:
        ``(n, 2)`` corners as fractional (row, column), the first not repeated.
    """
    from scipy import ndimage

    components, _ = ndimage.label(mask)
    contours = []
    for number, box in enumerate(ndimage.find_objects(components), start=1):
        part = np.pad(components[box] == number, 1)
        corner = np.array([box[0].start - 1, box[1].start - 1])
        contours.append(_one_contour(part) + corner)
    return contours


def _one_contour(component: Array) -> Array:
    """The outline of one component with its holes joined in."""
    from skimage import measure

    find: Any = measure.find_contours  # untyped upstream
    loops = [_corners(loop[:-1]) for loop in find(component.astype(np.float64), 0.5)]
    outer = max(range(len(loops)), key=lambda k: float(np.prod(np.ptp(loops[k], axis=0))))
    merged = loops.pop(outer)
    while loops:
        merged, nearest = _with_nearest_hole(merged, loops)
        loops.pop(nearest)
    return merged


def _with_nearest_hole(merged: Array, holes: list[Array]) -> tuple[Array, int]:
    """Walk to the nearest corner of the nearest hole, around it, and back the same way."""
    from scipy.spatial import cKDTree

    tree = cKDTree(merged)
    best = (np.inf, 0, 0, 0)
    for k, hole in enumerate(holes):
        distance, at = tree.query(hole)
        near = int(distance.argmin())
        best = min(best, (float(distance[near]), k, int(at[near]), near))
    _, k, here, there = best
    hole = np.roll(holes[k], -there, axis=0)
    parts = (merged[: here + 1], hole, hole[:1], merged[here:])
    return np.concatenate(parts), k


def _corners(loop: Array) -> Array:
    """A closed loop without the points that lie on a straight line between their neighbours."""
    before, after = loop - np.roll(loop, 1, axis=0), np.roll(loop, -1, axis=0) - loop
    turn = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    return np.asarray(loop[np.abs(turn) > 1e-9])
