"""View: what a session shows a model, the whole image or a window of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.adapters.axes import Axes

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class View:
    """What a session shows a model: the whole image or a window of it, on a regular grid.

    Attributes:
        array: ``(row, column[, channel])`` or ``(slice, row, column[, channel])``; intensities as
            stored. Sessions turn volumes as `limner.adapters.axes.canonical` says.
        spacing: millimetres per step of this view, in index order.
        intensity: the intensities ``(low, high)`` that an adapter may map to black and white: the
            window the user asked for (CT), else robust limits of the whole image, the same for all
            its views. One pair for all channels.
        modality: DICOM's term where known.
        windowed: whether `intensity` is a window that the user asked for.
        directions: of a volume, 3×3: column ``k`` is the LPS unit vector along the view's axis
            ``k``; None in 2D and where the orientation is unknown.
        turned: how a session turned a volume from the order in which it is stored; None for not.
    """

    array: Array
    spacing: tuple[float, ...]
    intensity: tuple[float, float]
    modality: str | None = None
    windowed: bool = False
    directions: Array | None = None
    turned: Axes | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape."""
        return self.array.shape[: len(self.spacing)]

    def normalized(self) -> NDArray[np.float32]:
        """The pixels as float32, `intensity` mapped to 0…1 and clipped."""
        low, high = self.intensity
        scale = 1.0 / max(high - low, 1e-30)
        exact = np.result_type(self.array.dtype, np.float32)  # float64 where 24 bits are too few
        values = (self.array.astype(exact) - exact.type(low)) * exact.type(scale)
        return np.asarray(np.clip(values, 0.0, 1.0), dtype=np.float32)
