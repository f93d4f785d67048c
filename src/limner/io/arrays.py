"""Images from arrays: which axes are rows and columns, slices, and colours."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limner.geometry import Geometry
from limner.io.image import Image

Array = NDArray[Any]

_FEWEST_SIDE = 5  # rows and columns of an image in colours; less may be anything
_FEWEST_SIDE_FIRST = 64  # where the colours come first, as a volume of 3 slices would

_log = logging.getLogger(__name__)


def image_from_array(values: ArrayLike) -> Image:
    """The image that an array is, without a place or a size.

    ``(row, column)`` is a 2D image, also with one channel behind it; ``(row, column, 3)`` and
    ``(row, column, 4)`` of unsigned integers or floats are one in colours; alpha is dropped. With
    the colours first, as PyTorch has them, bytes and floats from 0 to 1 of at least 64×64 are, too,
    and a warning says so. All else with three axes is a volume.

    Raises:
        TypeError: no numbers, or another number of axes.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "biuf" or array.ndim not in (2, 3):
        raise TypeError(
            f"An image is a path, an Image or an array of numbers with 2 or 3 axes, not "
            f"{array.dtype} of shape {array.shape}. For channels or more axes make a limner.Image."
        )
    if array.ndim == 2:
        return Image(array, Geometry.from_spacing(array.shape))
    if array.shape[-1] == 1 and min(array.shape[:2]) >= _FEWEST_SIDE:
        return Image(array[..., 0], Geometry.from_spacing(array.shape[:2]))
    if _has_colours_first(array):
        _log.warning(
            "An array of shape %s is taken as colours first; of a volume of %d slices make "
            "limner.Image(array, limner.Geometry.from_spacing(array.shape)).",
            array.shape,
            array.shape[0],
        )
        array = np.moveaxis(array, 0, -1)
    sides = array.shape[:2]
    if array.shape[-1] in (3, 4) and array.dtype.kind in "uf" and min(sides) >= _FEWEST_SIDE:
        colours = np.ascontiguousarray(_without_alpha(array))
        grid = Geometry.from_spacing(array.shape[:2])
        return Image(colours, grid, channel_kind="colour")
    if array.shape[-1] == 3 and array.dtype == np.uint8:
        return Image(array, Geometry.from_spacing(array.shape[:2]))
    return Image(array, Geometry.from_spacing(array.shape))


def _has_colours_first(array: Array) -> bool:
    if array.shape[0] not in (3, 4) or min(array.shape[1:]) < _FEWEST_SIDE_FIRST:
        return False
    if array.dtype.kind == "f":
        low, high = array.min(), array.max()
        return bool(low >= 0 and 0 < high <= 1)
    return array.dtype == np.uint8


def _without_alpha(array: Array) -> Array:
    if array.shape[-1] == 3:
        return array
    alpha = array[..., 3]
    if (alpha != alpha.flat[0]).any():
        _log.warning("The alpha channel (transparency) of the array is dropped; colours are kept.")
    return array[..., :3]
