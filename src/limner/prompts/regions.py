"""Measures of mask regions: bounds, largest component, depth, most inner pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Mask: TypeAlias = NDArray[np.bool_]

MAX_VOXELS = 2**23  # larger regions are measured on every second (third, …) voxel: 250 MB at most


def bounds(region: Mask) -> tuple[Array, Array]:
    """Half-open bounds of a region that is not empty, integers in index order."""
    found = [
        np.flatnonzero(region.any(axis=tuple(k for k in range(region.ndim) if k != axis)))
        for axis in range(region.ndim)
    ]
    return np.array([f[0] for f in found]), np.array([f[-1] + 1 for f in found])


def largest_component(region: Mask) -> tuple[Mask, int]:
    """The largest 8-connected (3D: 26-connected) component and its size; the first among equals."""
    from scipy import ndimage

    window = tuple(map(slice, *bounds(region)))
    labels, count = ndimage.label(region[window], np.ones((3,) * region.ndim))
    if count == 1:
        return region, int(np.count_nonzero(region))
    sizes = np.bincount(labels[region[window]])
    largest = np.zeros_like(region)
    largest[window] = labels == sizes.argmax()
    return largest, int(sizes.max())


def largest_error(target: Mask, prediction: Mask) -> tuple[Mask, bool] | None:
    """The largest component of the missed or of the spilled pixels, and whether it was missed."""
    found: tuple[Mask, bool] | None = None
    most = 0
    for error, missed in ((target & ~prediction, True), (prediction & ~target, False)):
        if error.any():
            component, size = largest_component(error)
            if size > most:
                found, most = (component, missed), size
    return found


def inmost(
    region: Mask, rng: np.random.Generator, spacing: Sequence[float] | None
) -> tuple[int, ...]:
    """The pixel of a region that is farthest from its edge."""
    low, high = bounds(region)
    part = region[tuple(map(slice, low, high))]
    step = stride(part.shape)
    sparse = part[(slice(None, None, step),) * part.ndim]
    if not sparse.any():  # thin sheets may fall between the voxels looked at
        step, sparse = 1, np.zeros_like(part)
        sparse.flat[np.flatnonzero(part)[[0]]] = True
    depths = depth(sparse, spacing)
    best = np.flatnonzero(depths >= depths.max() * (1 - 1e-6))  # equal but for rounding
    place = np.unravel_index(best[rng.integers(len(best))], depths.shape)
    return tuple(int(p) * step + int(a) for p, a in zip(place, low, strict=True))


def stride(shape: Sequence[int]) -> int:
    """Every how manieth voxel along each axis to look at, for `MAX_VOXELS` at most."""
    return max(1, int(np.ceil((float(np.prod(shape)) / MAX_VOXELS) ** (1 / len(shape)))))


def depth(
    region: Mask, spacing: Sequence[float] | None = None, *, closed: bool = True
) -> NDArray[np.float32]:
    """Distance of every pixel of a region from the nearest pixel outside it, 0 outside.

    Computed from the nearest places: SciPy's own distances need 70 bytes a voxel, these 30.

    Args:
        region: 2D or 3D; not all True unless `closed`.
        spacing: distance per step in index order; 1 on each axis if None.
        closed: whether everything beyond the array is outside, too.
    """
    from scipy import ndimage

    steps = np.asarray((1.0,) * region.ndim if spacing is None else spacing, dtype=np.float64)
    if steps.shape != (region.ndim,) or not (np.isfinite(steps).all() and steps.min() > 0):
        raise ValueError(f"spacing={spacing} must be {region.ndim} finite numbers above 0 mm.")
    rim = int(closed)
    nearest = ndimage.distance_transform_edt(
        np.pad(region, rim), sampling=steps, return_distances=False, return_indices=True
    )
    squared = np.zeros(region.shape, dtype=np.float32)
    core = tuple(slice(rim, rim + n) for n in region.shape)
    for places, own, step in zip(nearest, np.ogrid[core], steps, strict=True):
        gap = (places[core] - own.astype(np.int32)).astype(np.float32)
        squared += (gap * np.float32(step)) ** 2
    return np.sqrt(squared)
