"""Resizing images of bytes by area as OpenCV does (``INTER_AREA``), bit by bit, without OpenCV.

LiteMedSAM was trained on images made this way, and its masks follow from a slice to the next
through it. When both axes shrink, every new pixel is the mean of what it covers; when they do not,
OpenCV interpolates between the two nearest pixels in whole numbers of 1/2048.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Weights = NDArray[np.float32]
Indices = NDArray[np.int64]

_NEGLIGIBLE = 1e-3  # of a pixel: smaller parts of one are left out
_UNIT = 2048  # of the shares in interpolation


def resize_area(image: Bytes, shape: tuple[int, int]) -> Bytes:
    """Resize as ``cv2.resize(image, shape[::-1], interpolation=cv2.INTER_AREA)``.

    Args:
        image: (row, column) or (row, column, channel).
        shape: rows and columns of the result.

    Returns:
        (*shape[, channel]).
    """
    if image.shape[:2] == tuple(shape):
        return image.copy()
    steps = [old / new for old, new in zip(image.shape, shape, strict=False)]
    if min(steps) < 1:
        return _interpolated(image, shape)
    if all(step == round(step) for step in steps):
        return _mean_of_blocks(image, int(steps[0]), int(steps[1]))
    return _mean_of_parts(image, shape)


def _mean_of_blocks(image: Bytes, down: int, across: int) -> Bytes:
    rows, columns = image.shape[0] // down, image.shape[1] // across
    blocks = image.reshape(rows, down, columns, across, *image.shape[2:])
    sums = blocks.sum(axis=(1, 3), dtype=np.int64)
    if down == across == 2:
        return np.asarray(
            (sums + 2) >> 2, dtype=np.uint8
        )  # here a half is rounded up, elsewhere to even
    scale = np.float32(1.0 / (down * across))
    return np.asarray(np.rint(sums.astype(np.float32) * scale), dtype=np.uint8)


def _mean_of_parts(image: Bytes, shape: tuple[int, int]) -> Bytes:
    """Along each row, then along the columns; sums in float32 in the order of the pixels."""
    trailing = (1,) * (image.ndim - 2)
    taken, shares = _covered(image.shape[1], shape[1])
    wide = np.zeros((image.shape[0], shape[1], *image.shape[2:]), np.float32)
    for at, share in zip(taken, shares, strict=True):
        wide += image[:, at].astype(np.float32) * share.reshape(-1, *trailing)
    taken, shares = _covered(image.shape[0], shape[0])
    total = np.zeros((*shape, *image.shape[2:]), np.float32)
    for at, share in zip(taken, shares, strict=True):
        total += wide[at] * share.reshape(-1, 1, *trailing)
    return np.clip(np.rint(total), 0, 255).astype(np.uint8)


def _covered(old: int, new: int) -> tuple[Indices, Weights]:
    """What each new pixel covers along an axis: indices of old pixels and their shares, each
    ``(n, new)``, n being the most that any covers; unused ones have share 0.
    """
    step = 1.0 / (new / old)
    start = np.arange(new) * step
    stop = start + step
    width = np.minimum(step, old - start)
    last = np.minimum(np.floor(stop).astype(np.int64), old - 1)
    first = np.minimum(np.ceil(start).astype(np.int64), last)
    before, after = first - start, stop - last
    number = np.arange(int((last - first).max()) + 2)[:, None]  # 0: the part before the first
    at = first + number - 1
    share = np.where((number > 0) & (at < last), 1.0 / width, 0.0)
    share[0] = np.where(before > _NEGLIGIBLE, before / width, 0.0)
    rest = np.where(after > _NEGLIGIBLE, np.minimum(np.minimum(after, 1.0), width) / width, 0.0)
    share = np.where(at == last, rest, share)
    return np.clip(at, 0, old - 1), share.astype(np.float32)


def _interpolated(image: Bytes, shape: tuple[int, int]) -> Bytes:
    trailing = (1,) * (image.ndim - 2)
    wide: Any = image.astype(np.int64)
    first, second, near, far = _between(image.shape[1], shape[1])
    wide = wide[:, first] * near.reshape(-1, *trailing) + wide[:, second] * far.reshape(
        -1, *trailing
    )
    first, second, near, far = _between(image.shape[0], shape[0])
    wide >>= 4
    above = (wide[first] * near.reshape(-1, 1, *trailing)) >> 16
    below = (wide[second] * far.reshape(-1, 1, *trailing)) >> 16
    return np.asarray(np.clip((above + below + 2) >> 2, 0, 255), dtype=np.uint8)


def _between(old: int, new: int) -> tuple[Indices, Indices, Indices, Indices]:
    """Of each new pixel along an axis: two old ones, and their shares in units of 1/2048."""
    grown = new / old
    number = np.arange(new)
    first = np.floor(number * (1.0 / grown)).astype(np.int64)
    place = ((number + 1) - (first + 1) * grown).astype(np.float32)
    share = np.where(place <= 0, np.float32(0), place - np.floor(place)).astype(np.float32)
    share[first >= old - 1] = 0
    first = np.minimum(first, old - 1)
    near = np.rint((np.float32(1.0) - share) * np.float32(_UNIT)).astype(np.int64)
    far = np.rint(share * np.float32(_UNIT)).astype(np.int64)
    return first, np.minimum(first + 1, old - 1), near, far
