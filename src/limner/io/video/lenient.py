"""Lenient frame reading: a damaged frame is replaced by a neighbour."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.errors import FormatError

Array = NDArray[Any]

LENIENT = "To take what can be read: strict=False, --lenient."


def stack_frames(
    read_frame: Callable[[int], Array], shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Array:
    """All frames of a video in one array of `shape`."""
    pixels = np.empty(shape, dtype=dtype)
    for k in range(len(pixels)):
        pixels[k] = read_frame(k)
    return pixels


class LenientReader:
    """Reads frames, and in place of a damaged one the last before it that can be read.

    So whoever follows an object through the frames meets no gap; what is found on a damaged frame
    counts for nothing. Where no frame before it can be read it is the first one after it.

    Args:
        read_frame: reads one frame.
        count: number of frames.

    Attributes:
        damaged: frames that could not be read so far, and why.
    """

    def __init__(self, read_frame: Callable[[int], Array], count: int) -> None:
        self._read_frame, self._count = read_frame, count
        self._held: tuple[int, Array] | None = None  # what stood in last: damage comes in runs
        self.damaged: dict[int, str] = {}

    def __call__(self, index: int) -> Array:
        """Pixels of a frame.

        Raises:
            FormatError: no frame at all can be read.
        """
        for k in (*range(index, -1, -1), *range(index + 1, self._count)):
            if k in self.damaged:
                continue
            if self._held is not None and self._held[0] == k != index:
                return self._held[1]
            try:
                pixels = self._read_frame(k)
            except (FormatError, OSError) as error:
                self.damaged[k] = str(error)
                continue
            if k != index:
                self._held = (k, pixels)
            return pixels
        raise FormatError(self.damaged[index])
