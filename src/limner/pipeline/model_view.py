"""An image as an automatic model sees it: turned as a reader would, resampled, whole or sliced."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.adapters.axes import Axes, canonical
from limner.adapters.intensity import robust_limits
from limner.adapters.protocols import ModelCard, View
from limner.adapters.resample import resample_linear, resampled_shape
from limner.errors import SessionError
from limner.io.image import Image
from limner.io.inversion import invert_for_display, invert_window
from limner.sessions.answers.finite import cleaned, is_finite

Array = NDArray[Any]


class ModelView:
    """The views of one image for one model, and the way back.

    Args:
        image: what is labelled.
        card: of the model; its spacing and number of axes decide what it is shown.
        window: intensities for black and white; None: robust limits of the image.

    Attributes:
        image: as given.
        shape: spatial shape of the image as the model sees it, before resampling.
        by_slices: whether it is shown slice by slice (frame by frame).
        num_parts: 1, or the number of slices or frames.
        part_shape: of a part, before resampling.

    Raises:
        SessionError: the model does not work on this kind of image.
    """

    def __init__(
        self, image: Image, card: ModelCard, window: tuple[float, float] | None = None
    ) -> None:
        self.image = image
        ndim = image.geometry.ndim
        if 2 not in card.ndim and (ndim == 2 or image.kind == "video"):
            raise SessionError(f"{card.name} works on volumes, and this is one {image.kind}.")
        still = image.kind != "volume"
        self._axes = Axes.same(ndim) if still else canonical(image.geometry)
        array = invert_for_display(image).array
        limits = invert_window(image, window) or robust_limits(self._axes.apply(array))
        if not is_finite(array, image):
            array = cleaned(array, limits)
        self._array = self._axes.apply(array)
        self._limits, self._windowed = limits, window is not None
        self._spacing = self._axes.sizes(image.geometry.spacing)
        self._wanted = card.spacing if image.geometry.has_spacing else None
        self.shape: tuple[int, ...] = self._axes.sizes(image.geometry.shape)
        self.by_slices = ndim == 3 and (image.kind == "video" or 3 not in card.ndim)
        self.num_parts = self.shape[0] if self.by_slices else 1
        self.part_shape = self.shape[1:] if self.by_slices else self.shape

    def parts(self) -> Iterator[View]:
        """What the model is shown, in order: the whole, or slice by slice."""
        if not self.by_slices:
            yield self._view(self._array, self._spacing)
            return
        for pixels in self._array:
            yield self._view(pixels, self._spacing[1:])

    def undo(self, array: Array) -> Array:
        """An array ``(*shape)`` in the order in which the image is stored."""
        return self._axes.undo(array)

    def undo_channels(self, array: Array) -> Array:
        """As `undo`, for ``(channel, *shape)``."""
        return np.moveaxis(self._axes.undo(np.moveaxis(array, 0, -1)), -1, 0)

    def _view(self, array: Array, spacing: tuple[float, ...]) -> View:
        shape = array.shape[: len(spacing)]
        target = resampled_shape(shape, spacing, self._wanted)
        geometry = self.image.geometry
        directions = None
        if geometry.ndim == 3 and geometry.has_spacing and not self.by_slices:
            directions = self._axes.directions(geometry.direction)
        steps = tuple(s * n / m for s, n, m in zip(spacing, shape, target, strict=True))
        return View(
            array if target == shape else resample_linear(array, target),
            steps,
            self._limits,
            self.image.modality,
            self._windowed,
            directions,
            None if directions is None else self._axes,
        )
