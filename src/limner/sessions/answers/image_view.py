"""Image views: what a model sees of an image, volume or frame, in windows, shrunk and turned."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.adapters.axes import Axes, Bounds
from limner.adapters.resize import shrink
from limner.models import PromptableModel, TrackerModel, View

Array = NDArray[Any]
Shape = tuple[int, ...]

_CACHED_VIEWS = 6


class ImageView:
    """One image, volume or frame that a model looks at, with the embeddings of recent views.

    All but `array` is about the image as models see it, turned by `axes`.

    Args:
        array: spatial axes, then perhaps channels; intensities as stored, in the order as stored.
        spacing: millimetres per step, in the order as stored.
        intensity: limits for black and white, the same for all views.
        modality: DICOM's term where known.
        windowed: whether the limits are a window that the user asked for.
        axes: how models see a volume; None: as stored.
        directions: of a volume's stored axes, where known; see `limner.models.View`.
        clean: done to the pixels of a window, such as replacing NaN.
    """

    def __init__(
        self,
        array: Array,
        spacing: tuple[float, ...],
        intensity: tuple[float, float],
        modality: str | None,
        *,
        windowed: bool = False,
        axes: Axes | None = None,
        directions: Array | None = None,
        clean: Callable[[Array], Array] | None = None,
    ) -> None:
        self.array = array
        self.axes = axes or Axes.same(len(spacing))
        self.spacing: tuple[float, ...] = self.axes.sizes(spacing)
        self.intensity = intensity
        self.modality = modality
        self.windowed = windowed
        self.shape: Shape = self.axes.sizes(array.shape[: len(spacing)])
        self._directions = None if directions is None else self.axes.directions(directions)
        self._clean = clean
        self._coarse: dict[Shape, Array] = {}
        self._embeddings: OrderedDict[tuple[str, Bounds, Shape], Any] = OrderedDict()

    @property
    def whole(self) -> Bounds:
        """The bounds of everything."""
        return (0,) * len(self.shape), self.shape

    @property
    def stored_shape(self) -> Shape:
        """Spatial shape as stored."""
        return self.array.shape[: len(self.shape)]

    def embedding(self, model: PromptableModel, bounds: Bounds, shape: Shape) -> Any:
        """What the model's expensive half says of a window shrunk to `shape`; cached."""
        return self._once(("embed", bounds, shape), lambda: model.embed(self.crop(bounds, shape)))

    def tracker_embedding(self, model: TrackerModel, bounds: Bounds, shape: Shape) -> Any:
        """What a model that follows sees in a window shrunk to `shape`; cached."""
        scale = np.divide(shape, np.subtract(bounds[1], bounds[0]))
        top, left = (float(n) for n in np.multiply(bounds[0], scale))
        return self._once(
            ("window", bounds, shape),
            lambda: model.encode_window(self.crop(bounds, shape), (top, left)),
        )

    def _once(self, key: tuple[str, Bounds, Shape], make: Callable[[], Any]) -> Any:
        if key in self._embeddings:
            self._embeddings.move_to_end(key)
            return self._embeddings[key]
        self._embeddings[key] = made = make()
        while len(self._embeddings) > _CACHED_VIEWS:
            self._embeddings.popitem(last=False)
        return made

    def crop(self, bounds: Bounds, shape: Shape) -> View:
        """A window shrunk to `shape`, as a model is shown it."""
        low, high = bounds
        steps = (np.subtract(high, low) / shape * self.spacing).tolist()
        return View(
            self._pixels(bounds, shape),
            tuple(steps),
            self.intensity,
            self.modality,
            self.windowed,
            self._directions,
            self.axes,
        )

    def _pixels(self, bounds: Bounds, shape: Shape) -> Array:
        """A window's pixels. The whole of a volume, shrunk, is kept: it takes a pass over all."""
        coarse = len(shape) == 3 and bounds == self.whole and shape != self.shape
        if coarse and shape in self._coarse:
            return self._coarse[shape]
        low, high = self.axes.inverse.bounds(bounds, self.shape)
        window = self.array[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        pixels = shrink(self.axes.apply(window), shape, clean=self._clean)
        if not self.axes.is_same:
            pixels = np.ascontiguousarray(pixels)
        if coarse:
            self._coarse[shape] = pixels
        return pixels
