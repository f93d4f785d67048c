"""Multiplanar reformat: slices of a volume in radiological orientation, with their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from limner.io.image import Image
from limner.prompts.types import MaskPrompt, Prompt
from limner.render.panel import Panel, draw_panel, to_rgb

Array = NDArray[Any]

_SECTIONS = dict(zip("SIAPLR", ("axial",) * 2 + ("coronal",) * 2 + ("sagittal",) * 2, strict=True))
_OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}


class Reformat:
    """Display orientation of the slices across one axis of a volume.

    Head or front is up; the patient's right, or front, is on the left.
    """

    def __init__(self, image: Image, axis: int) -> None:
        self.image, self.axis = image, axis
        rest = [k for k in range(3) if k != axis]
        letters = image.geometry.orientation
        self.rows, self.columns = rest
        upright = {"S": 0, "I": 0, "A": 1, "P": 1, "L": 2, "R": 2}
        if upright[letters[rest[0]]] > upright[letters[rest[1]]]:
            self.columns, self.rows = rest
        self.flip_rows = letters[self.rows] in "SA"
        self.flip_columns = letters[self.columns] in "RA"
        bottom = _OPPOSITE[letters[self.rows]] if self.flip_rows else letters[self.rows]
        right = _OPPOSITE[letters[self.columns]] if self.flip_columns else letters[self.columns]
        known = image.geometry.has_spacing
        self.edges = (_OPPOSITE[bottom], right, bottom, _OPPOSITE[right]) if known else ("",) * 4
        shape, spacing = image.geometry.shape, image.spacing
        self.size_mm = tuple(shape[k] * spacing[k] for k in (self.rows, self.columns))
        self.name = ("slice", "row", "column")[axis]
        if known:
            self.name = f"{_SECTIONS[letters[axis]]} slice"

    def to_display(self, array: Array) -> Array:
        """Flip and transpose a slice ``(first, second remaining axis[, channel])`` for display."""
        if self.rows > self.columns:
            array = np.swapaxes(array, 0, 1)
        array = array[::-1] if self.flip_rows else array
        return array[:, ::-1] if self.flip_columns else array

    def map_points(self, points: Array) -> Array:
        """Map positions ``(n, 2)`` from index order on the slice to display orientation."""
        moved = points[:, ::-1] if self.rows > self.columns else points
        shape = self.image.geometry.shape
        rows = shape[self.rows] - 1 - moved[:, 0] if self.flip_rows else moved[:, 0]
        columns = shape[self.columns] - 1 - moved[:, 1] if self.flip_columns else moved[:, 1]
        return np.stack([rows, columns], axis=1)

    def draw_slice(
        self,
        labels: Array,
        prompts: Sequence[Prompt],
        index: int,
        limits: tuple[float, float],
        scale: float,
        text: int,
    ) -> Pillow.Image:
        """Draw the slice at `index` with `scale` pixels per millimetre and letters of a height."""
        pixels = self.to_display(self.image.array.take(index, axis=self.axis))
        cut = [
            f
            for p in prompts
            if (f := prompt_on_slice(p, self.axis, index, labels.shape)) is not None
        ]
        height, width = (max(1, int(s * scale)) for s in self.size_mm)
        panel = Panel(
            to_rgb(pixels, 2, limits),
            np.ascontiguousarray(self.to_display(labels.take(index, axis=self.axis))),
            (height, width),
            1.0 / scale if self.image.geometry.has_spacing else None,
            f"{self.name} {index}",
            self.edges,
            text,
        )
        return draw_panel(panel, cut, to_display=self.map_points)


def prompt_on_slice(prompt: Prompt, axis: int, index: int, shape: Sequence[int]) -> Prompt | None:
    """Cut a prompt at a slice across `axis`: its 2D form there, None where it does not meet it."""
    if prompt.num_axes == 2:
        return prompt if axis == 0 else None
    if prompt.num_axes is None or (
        isinstance(prompt, MaskPrompt) and prompt.mask.shape != tuple(shape)
    ):
        return None
    return prompt.section(index, axis)
