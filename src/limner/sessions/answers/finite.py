"""NaN and infinite intensities: refused, or on request shown to models as dark and bright."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.adapters.intensity import robust_limits
from limner.errors import FormatError
from limner.io.image import Image

Array = NDArray[Any]


def is_finite(array: Array, image: Image) -> bool:
    """Whether an image's pixels hold neither NaN nor infinities; slice by slice.

    Args:
        array: the pixels, or those of one slice.
        image: whose.

    Raises:
        FormatError: there are some and the image was read strictly.
    """
    if array.dtype.kind not in "fc":
        return True
    parts = array if array.ndim > 2 else array[None]
    count = sum(part.size - int(np.isfinite(part).sum()) for part in parts)  # slice by slice:
    if not count:  # no mask of the whole volume is made
        return True
    if image.read_options.get("strict", True):
        name = image.path or "The image"
        raise FormatError(
            f"{name} holds {count:,} NaN or infinite intensities of {array.size:,}. Replace them, "
            "or read with strict=False (--lenient) to take them as black and white."
        )
    return False


def cleaned(array: Array, limits: tuple[float, float]) -> Array:
    """A copy with NaN and negative infinity as the dark limit, and infinity as the bright one."""
    low, high = limits
    return np.asarray(np.nan_to_num(array, nan=low, posinf=high, neginf=low))


def finite(array: Array, image: Image) -> Array:
    """An image's pixels without NaN and infinities.

    Args:
        array: the pixels, or those of one slice.
        image: whose; if it was read with ``strict=False``, NaN and negative infinity become the
            dark limit of the array and infinity the bright one, in a copy.

    Raises:
        FormatError: there are some and the image was read strictly.
    """
    return array if is_finite(array, image) else cleaned(array, robust_limits(array))
