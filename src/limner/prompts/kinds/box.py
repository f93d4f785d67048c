"""Boxes around an object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from limner.prompts.kinds.base import CornersPrompt, Layer, Mask
from limner.prompts.painting import paint_box


@dataclass(frozen=True, init=False)
class Box(CornersPrompt):
    """A box around the object, half-open: ``low <= index < high``, ``(row, column)`` in 2D,
    ``(slice, row, column)`` in 3D.
    """

    kind: ClassVar[str] = "box"

    @property
    def layer(self) -> Layer:
        """The map of boxes."""
        return "box"

    def paint(self, mask: Mask, click_radius: float | Sequence[float]) -> None:
        """All pixels whose centre is in the box."""
        paint_box(mask, self.low, self.high)
