"""Samples of a TIFF page: channels, alpha, palette and the side that is up."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_ALPHA = (1, 2)  # ExtraSamples: associated and unassociated alpha


def channels_of(key: Any, axes: str, shape: tuple[int, ...]) -> tuple[bool, int | None]:
    """Whether the last sample is alpha to be dropped, and how many channels stay."""
    letters = [a for a in axes if a in "CS"]
    if not letters:
        return False, None
    count = int(np.prod([shape[axes.index(a)] for a in letters]))
    extra = tuple(int(e) for e in (key.extrasamples or ()))
    if letters == ["S"] and extra and extra[-1] in _ALPHA and count in (2, 4):
        return True, None if count == 2 else 3
    return False, count


def palette_of(file: Any, key: Any) -> Array | None:
    """Colours ``(index, 3)`` uint8 of a palette that is more than a way to show grey values."""
    if getattr(key.photometric, "name", "") != "PALETTE" or key.colormap is None or file.is_imagej:
        return None
    colours = (np.asarray(key.colormap).T >> 8).astype(np.uint8)
    ramp = np.arange(len(colours)) * 255 // max(len(colours) - 1, 1)
    return None if (colours == ramp[:, None]).all() else colours


def orientation_of(key: Any) -> int:
    """How viewers turn the page, 1 to 8 as in EXIF; 1 is not at all."""
    value = key.tags.valueof("Orientation", default=1)
    try:
        return int(value) if 1 <= int(value) <= 8 else 1
    except (TypeError, ValueError):
        return 1
