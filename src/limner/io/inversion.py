"""Images whose larger values are darker (DICOM's MONOCHROME1, TIFF's MINISWHITE).

Their values are kept as stored. What is shown, and what a model sees, is inverted here: each value
is taken from `REFLECTION`, the sum of the lowest and the highest value that the file can hold.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.io.image import Image

Array = NDArray[Any]

REFLECTION = "inverted_from"  # key of `Image.metadata`; absent where larger is brighter


def invert_for_display(image: Image) -> Image:
    """The image with brighter pixels larger, as viewers show it; lazy, on the same grid.

    Images whose larger values are brighter are returned as they are.
    """
    top = image.metadata.get(REFLECTION)
    if top is None:
        return image
    is_stack = image.geometry.ndim == 3
    shown = Image(
        lambda: _reflect(image.array, top),
        image.geometry,
        kind=image.kind,
        modality=image.modality,
        dtype=image.dtype,
        num_channels=image.num_channels,
        read_slice=(lambda k: _reflect(image.slice_at(k), top)) if is_stack else None,
        path=image.path,
        format=image.format,
        metadata={k: v for k, v in image.metadata.items() if k != REFLECTION},
        damaged=image.damaged,
    )
    shown.read_options = image.read_options
    return shown


def invert_window(image: Image, window: tuple[float, float] | None) -> tuple[float, float] | None:
    """Intensities for black and white in values of `image`, in those of `invert_for_display`."""
    top = image.metadata.get(REFLECTION)
    if top is None or window is None:
        return window
    return float(top - window[1]), float(top - window[0])


def _reflect(values: Array, top: float) -> Array:
    if values.dtype.kind == "b":
        return ~values
    if values.dtype.kind not in "ui":
        return np.asarray(values.dtype.type(top) - values)
    # Modulo 2**bits, which is exact: every result lies between the lowest and the highest value.
    unsigned = values.view(f"u{values.dtype.itemsize}")
    start = unsigned.dtype.type(int(top) % (1 << (8 * values.dtype.itemsize)))
    return np.asarray((start - unsigned).view(values.dtype))
