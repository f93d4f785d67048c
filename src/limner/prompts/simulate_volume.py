"""Simulated user in volumes: the challenge's click, and slices to mark.

Slices lie across the first axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limner.prompts.regions import bounds, depth
from limner.prompts.types import Click

Array = NDArray[Any]
Mask: TypeAlias = NDArray[np.bool_]

MOST_EXACT = 60_000_000  # voxels of a component's box with its margin, measured one by one
MARGIN = 0.25  # of the component's box, on each side; counts for which voxels are measured together


def challenge_click(
    target: Mask, prediction: Mask, choose: Callable[[int], int] | np.random.Generator
) -> Click | None:
    """A click by the rule of the CVPR 2025 interactive challenge; None where nothing is wrong.

    Of all voxels that are wrong, missed and spilled alike, the largest 26-connected component (in
    2D 8-connected); in it the voxel farthest from what is not in the component, in voxels whatever
    the spacing, everything beyond the image being outside. A component whose box is larger than
    `MOST_EXACT` is measured at half the resolution. Only the component's box is ever measured.

    Args:
        target: boolean, what the user wants; may be empty.
        prediction: boolean of the same shape, the answer so far.
        choose: one of so many equal voxels, in their order; or a generator that draws it.

    Returns:
        Positive where the target was missed, negative where the prediction spilled.
    """
    error = target ^ prediction
    if not error.any():
        return None
    component, low = _largest(error)
    places = np.flatnonzero(inmost_places(component))
    draw = choose.integers if isinstance(choose, np.random.Generator) else choose
    place = np.unravel_index(places[int(draw(len(places)))], component.shape)
    at = tuple(int(p) + int(a) for p, a in zip(place, low, strict=True))
    return Click(at, bool(target[at]))


def inmost_places(component: Mask) -> Mask:
    """The voxels of a component that are farthest from its outside; all of them where measuring at
    half the resolution finds none.

    Args:
        component: boolean, its own box.
    """
    rims = np.maximum((MARGIN * np.asarray(component.shape)).astype(int), 1)
    size = np.asarray(component.shape) + 2 * rims
    if int(np.prod(size)) <= MOST_EXACT:
        distance = depth(component)
    else:
        distance = _half_resolution(component, rims, size)
    distance *= component
    most = distance.max()
    return np.asarray(distance >= most) if most > 0 else component


def largest_slice(target: ArrayLike) -> int:
    """The slice on which a target is largest; of several the one nearest to their middle."""
    areas = np.count_nonzero(_volume(target), axis=(1, 2))
    largest = np.flatnonzero(areas == areas.max())
    return int(largest[np.abs(largest - largest.mean()).argmin()])


def spread_slices(target: ArrayLike, count: int) -> list[int]:
    """The slices that a user marks: the first and the last one of a target, and others at even
    steps between them, each where the target is; one alone is the slice on which it is largest.

    Args:
        target: 3D mask, not empty.
        count: how many; fewer where the target has fewer slices.
    """
    volume = _volume(target)
    if count < 1:
        raise ValueError(f"count={count} slices; it is at least 1.")
    if count == 1:
        return [largest_slice(volume)]
    there = np.flatnonzero(volume.any(axis=(1, 2)))
    wanted = np.linspace(there[0], there[-1], count)
    nearest = there[np.abs(there - wanted[:, None]).argmin(axis=1)]
    return sorted({int(k) for k in nearest})


def _volume(target: ArrayLike) -> Mask:
    mask = np.asarray(target) != 0
    if mask.ndim != 3 or not mask.any():
        raise ValueError(f"Slices are marked in a 3D mask that is not empty, not in {mask.shape}.")
    return np.asarray(mask)


def _largest(error: Mask) -> tuple[Mask, Array]:
    """The largest component in its own box, and where the box begins."""
    from scipy import ndimage

    low, high = bounds(error)
    labels, count = ndimage.label(error[tuple(map(slice, low, high))], np.ones((3,) * error.ndim))
    largest = 1
    if count > 1:
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        largest = int(sizes.argmax())
    window = ndimage.find_objects(labels, largest)[largest - 1]
    return np.asarray(labels[window] == largest), low + [side.start for side in window]


def _half_resolution(component: Mask, rims: Array, size: Array) -> Array:
    """Distances in a grid of blocks two voxels wide, of which one voxel suffices to be inside; the
    blocks begin at the corner of the box with its margin.
    """
    blocks = np.zeros(-(-size // 2), dtype=bool)
    for corner in np.ndindex((2,) * component.ndim):
        first = [int((c - r) % 2) for c, r in zip(corner, rims, strict=True)]
        part = component[tuple(slice(f, None, 2) for f in first)]
        start = (rims + first) // 2
        window = tuple(slice(int(a), int(a) + n) for a, n in zip(start, part.shape, strict=True))
        blocks[window] |= part
    distance: Array = depth(blocks)
    for axis, (rim, length) in enumerate(zip(rims, component.shape, strict=True)):
        distance = np.take(distance, (np.arange(length) + int(rim)) // 2, axis=axis)
    return distance
