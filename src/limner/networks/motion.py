"""Dense motion between two frames, coarse to fine (Lucas and Kanade 1981; the iteration is that of
Le Besnerais and Champagnat 2005, https://doi.org/10.1109/ICIP.2005.1529706). NumPy and SciPy alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[Any]
Floats = NDArray[np.float32]

RADIUS = 3  # pixels around each, on every level, that are taken to move alike
WARPS = 3  # times that each level is looked at again
LEAST_SIDE = 12  # pixels of the coarsest level
_STIFF = 2e-4  # what motion costs where there is nothing to see: grey values are 0…1


def motion(before: Floats, after: Floats, *, finest: int = 1) -> Floats:
    """Where each pixel of a frame was on the frame before: (2, H, W), rows and columns to add.

    Args:
        before: (H, W), 0…1.
        after: likewise.
        finest: pixels of the frame per step of the finest level; 2 takes a third of the time.
    """
    shape = after.shape
    first, second = (_halved(f, finest) for f in (before, after))
    levels = [(first, second)]
    while min(levels[-1][0].shape) >= 2 * LEAST_SIDE:
        levels.append((_halved(levels[-1][0]), _halved(levels[-1][1])))
    found = np.zeros((2, *levels[-1][0].shape), np.float32)
    for one, other in reversed(levels):
        found = _refined(one, other, _resized(found, one.shape))
    return _resized(found, shape)


def moved(maps: Floats, found: Floats) -> Floats:
    """Planes (C, H, W) of the frame before, on the frame after; edges are repeated."""
    places = np.indices(found.shape[1:], dtype=np.float32) + found
    return np.stack([_sampled(image, places) for image in maps])


def _refined(before: Floats, after: Floats, found: Floats) -> Floats:
    for _ in range(WARPS):
        there = _sampled(before, np.indices(after.shape, dtype=np.float32) + found)
        down, right = np.gradient(there)
        miss = down * found[0] + right * found[1] - (there - after)
        parts = [down * down, down * right, right * right, down * miss, right * miss, *found]
        a, b, c, p, q, rows, columns = (_mean(part) for part in parts)
        a, c = a + _STIFF, c + _STIFF
        p, q = p + _STIFF * rows, q + _STIFF * columns
        scale = 1 / (a * c - b * b)
        found = np.stack([(c * p - b * q) * scale, (a * q - b * p) * scale]).astype(np.float32)
    return found


def _mean(image: Array) -> Floats:
    return np.asarray(ndimage.uniform_filter(image, 2 * RADIUS + 1, np.float32, mode="nearest"))


def _sampled(image: Floats, places: Floats) -> Floats:
    return np.asarray(
        ndimage.map_coordinates(image, places, np.float32, order=1, mode="nearest"), np.float32
    )


def _halved(image: Floats, times: int = 2) -> Floats:
    """Means of blocks; the last rows and columns are repeated to fill them."""
    if times == 1:
        return image
    wide = np.pad(image, [(0, -n % times) for n in image.shape], mode="edge")
    rows, columns = (n // times for n in wide.shape)
    return np.asarray(wide.reshape(rows, times, columns, times).mean(axis=(1, 3)), np.float32)


def _resized(found: Floats, shape: tuple[int, ...]) -> Floats:
    """Motion on another grid of the same frame."""
    old = found.shape[1:]
    if old == tuple(shape):
        return found
    steps = [np.float32(n) / m for n, m in zip(old, shape, strict=True)]
    along = [
        (np.arange(m, dtype=np.float32) + 0.5) * s - 0.5 for m, s in zip(shape, steps, strict=True)
    ]
    places = np.stack(np.meshgrid(*along, indexing="ij"))
    return np.stack([_sampled(p, places) / s for p, s in zip(found, steps, strict=True)])
