"""The three planes of a volume, turned as they are read, and prompts where a plane meets them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from limner.io.image import Image
from limner.prompts.convert import extent
from limner.prompts.types import Box, Click, Lasso, MaskPrompt, Prompt, Scribble, num_axes
from limner.render.panel import Plane, draw_plane, to_rgb

Array = NDArray[Any]

_OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}


class Turn:
    """How the plane across one axis of a volume is turned for the picture.

    Head or front goes up; the patient's right, or front, goes to the left.
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

    def turned(self, plane: Array) -> Array:
        """A plane ``(first, second remaining axis[, channel])`` as it is shown."""
        if self.rows > self.columns:
            plane = np.swapaxes(plane, 0, 1)
        plane = plane[::-1] if self.flip_rows else plane
        return plane[:, ::-1] if self.flip_columns else plane

    def place(self, points: Array) -> Array:
        """Positions ``(n, 2)`` on the plane in index order, as they are shown."""
        moved = points[:, ::-1] if self.rows > self.columns else points
        shape = self.image.geometry.shape
        rows = shape[self.rows] - 1 - moved[:, 0] if self.flip_rows else moved[:, 0]
        columns = shape[self.columns] - 1 - moved[:, 1] if self.flip_columns else moved[:, 1]
        return np.stack([rows, columns], axis=1)

    def draw(
        self,
        labels: Array,
        prompts: Sequence[Prompt],
        index: int,
        limits: tuple[float, float],
        scale: float,
    ) -> Pillow.Image:
        """The plane at `index`, `scale` picture pixels per millimetre."""
        pixels = self.turned(self.image.array.take(index, axis=self.axis))
        flat = [
            f for p in prompts if (f := cut_prompt(p, self.axis, index, labels.shape)) is not None
        ]
        height, width = (max(1, int(s * scale)) for s in self.size_mm)
        plane = Plane(
            to_rgb(pixels, 2, limits),
            np.ascontiguousarray(self.turned(labels.take(index, axis=self.axis))),
            (height, width),
            1.0 / scale if self.image.geometry.has_spacing else None,
            f"{('slice', 'row', 'column')[self.axis]} {index}",
            self.edges,
        )
        return draw_plane(plane, flat, to_plane=self.place)


def cut_prompt(prompt: Prompt, axis: int, index: int, shape: Sequence[int]) -> Prompt | None:
    """A prompt where a plane across `axis` meets it, in 2D; None where it does not."""
    axes = num_axes(prompt)
    if axes == 2:
        return prompt if axis == 0 else None
    if axes is None:
        return None
    if isinstance(prompt, MaskPrompt):
        if prompt.mask.shape != tuple(shape):
            return None
        return MaskPrompt(np.asarray(prompt.mask.take(index, axis=axis)))
    low, high = extent(prompt)
    if not low[axis] - 0.5 <= index < high[axis]:
        return None

    def drop(position: Sequence[float]) -> tuple[float, ...]:
        return tuple(x for k, x in enumerate(position) if k != axis)

    match prompt:
        case Click():
            return Click(drop(prompt.at), prompt.positive)
        case Box():
            return Box(drop(prompt.low), drop(prompt.high))
        case Scribble():
            return Scribble(tuple(drop(p) for p in prompt.points), prompt.positive, prompt.radius)
        case Lasso():
            return (
                Lasso(tuple(drop(p) for p in prompt.points)) if prompt.plane_axis == axis else None
            )
    return None
