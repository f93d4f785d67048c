"""Grey images of 0…1, for networks that see no colour, and a score for those that give none."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.adapters.protocols import View
from limner.adapters.sam import sigmoid

_LUMA = (0.299, 0.587, 0.114)  # of red, green, blue (ITU-R 601), as the authors' readers take them


def to_grey(view: View) -> NDArray[np.float32]:
    """A view as the networks were shown images in training.

    Args:
        view: two-dimensional. Stored bytes are divided by 255 unless a window was asked for;
            everything else is mapped to 0…1 by the view's limits of intensity.

    Returns:
        (row, column), 0…1; not a number becomes black. Of more than three channels (opacity) the
        first three count.
    """
    pixels: NDArray[Any] = view.array
    if pixels.dtype == np.uint8 and not view.windowed:
        if pixels.ndim == 3 and pixels.shape[2] > 2:  # whole numbers again, as in a grey file
            pixels = np.rint(pixels[..., :3] @ np.array(_LUMA))
        values = np.asarray(pixels, dtype=np.float32) / np.float32(255.0)
    else:
        values = np.nan_to_num(view.normalized(), nan=0.0)
        if values.ndim == 3 and values.shape[2] > 2:
            values = values[..., :3] @ np.array(_LUMA, dtype=np.float32)
    if values.ndim == 3:
        values = values.mean(axis=2)
    return np.asarray(values, dtype=np.float32)


def mean_confidence(logits: NDArray[np.float32]) -> float:
    """The mean probability inside the mask, 0 for an empty one: how sure a network is that was not
    taught to judge itself.
    """
    inside = logits[logits > 0]
    return float(sigmoid(inside).mean()) if inside.size else 0.0
