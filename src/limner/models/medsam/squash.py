"""Cubic squashing of an image to a square, as MedSAM's authors do it, many times faster."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse

Bytes = NDArray[np.uint8]


def squash(image: Bytes, size: int, *, exact: bool) -> Bytes:
    """Resize to a square by cubic splines, blurring first where it shrinks; fractions are cut off.

    The same as scikit-image's ``resize(order=3, anti_aliasing=True, preserve_range=True)``, which
    takes 2 to 4 s on the measuring machine where this takes 0.1 to 0.7 s, and a third of that on
    grey images. Values differ in the last bits, so that of images with noise every pixel came
    out the same, and of images with flat areas some pixels one grey level lower or higher, where
    the exact value is a whole number.

    Args:
        image: (row, column, 3).
        size: of the square's sides.
        exact: by scikit-image itself.
    """
    if image.shape[:2] == (size, size):
        return image
    if exact:
        from skimage.transform import resize

        values = resize(  # type: ignore[no-untyped-call]
            image, (size, size), order=3, preserve_range=True, anti_aliasing=True
        )
        return np.asarray(values, dtype=np.uint8)
    grey = bool((image == image[..., :1]).all())
    channels = [
        _resize_columns(_resize_columns(image[..., k].astype(np.float64), size), size)
        for k in range(1 if grey else 3)
    ]
    values = np.clip(np.stack(channels * (3 if grey else 1), axis=-1), image.min(), image.max())
    return values.astype(np.uint8)


def _resize_columns(channel: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """(row, column) to (size, row): columns resized, axes swapped."""
    old = channel.shape[1]
    blur = max(0.0, (old / size - 1.0) / 2.0)
    if blur > 0:
        channel = ndimage.gaussian_filter1d(channel, blur, axis=1, mode="mirror")
    channel = ndimage.spline_filter1d(channel, 3, axis=1, mode="mirror")
    return np.asarray(_cubic(old, size) @ np.ascontiguousarray(channel.T), dtype=np.float64)


def _cubic(old: int, new: int) -> sparse.csr_matrix:
    """(new, old): values at the new pixels' centres from the coefficients of a cubic spline."""
    place = (np.arange(new) + 0.5) * (old / new) - 0.5
    first = np.floor(place).astype(np.int64)
    t = place - first
    weights = np.stack(
        [
            (1 - t) ** 3 / 6,
            (4 - 6 * t**2 + 3 * t**3) / 6,
            (1 + 3 * t + 3 * t**2 - 3 * t**3) / 6,
            t**3 / 6,
        ],
        axis=1,
    )
    index = first[:, None] + np.arange(-1, 3)
    period = max(1, 2 * (old - 1))  # mirrored about the centres of the outer pixels
    index = np.abs(index) % period
    index = np.minimum(index, period - index) if old > 1 else np.zeros_like(index)
    where = np.repeat(np.arange(new), 4), index.ravel()
    return sparse.csr_matrix((weights.ravel(), where), shape=(new, old))
