"""Clicks, positive and negative."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike

from limner.prompts.kinds.base import Layer, Mask, PointsPrompt, Shrink
from limner.prompts.kinds.checks import Position, Positionlike, check_boolean, check_position
from limner.prompts.painting import paint_ball


@dataclass(frozen=True, init=False)
class Click(PointsPrompt):
    """One click.

    Attributes:
        at: array index, ``(row, column)`` in 2D, ``(slice, row, column)`` in 3D.
        positive: True "this belongs to the object", False "this does not".
    """

    at: Position
    positive: bool = True
    kind: ClassVar[str] = "click"
    json_fields: ClassVar[tuple[tuple[str, ...], tuple[str, ...]]] = (("at",), ("positive",))

    def __init__(self, at: Positionlike, positive: bool = True) -> None:
        object.__setattr__(self, "at", check_position(at, "A click"))
        object.__setattr__(self, "positive", check_boolean(positive, "positive"))

    @property
    def positions(self) -> tuple[Position, ...]:
        """`at` alone."""
        return (self.at,)

    def moved_to(self, positions: Sequence[Sequence[float]]) -> Self:
        """The click elsewhere."""
        return type(self)(tuple(positions[0]), self.positive)

    @property
    def layer(self) -> Layer:
        """By what it says."""
        return "positive" if self.positive else "negative"

    def is_outside(self, shape: Sequence[int]) -> bool:
        """Whether it is on no pixel; those at the edge reach half a pixel further."""
        return any(not -0.5 <= x <= n - 0.5 for x, n in zip(self.at, shape, strict=True))

    def in_view(
        self, low: ArrayLike, high: ArrayLike, shape: tuple[int, ...], shrink: Shrink
    ) -> Self | None:
        """In the view; half a pixel over its edge is still on the edge's pixel."""
        moved = super().in_view(low, high, shape, shrink)
        if moved is None:
            return None
        return self.moved_to([tuple(np.clip(moved.at, 0, np.asarray(shape) - 1))])

    def paint(self, mask: Mask, click_radius: float | Sequence[float]) -> None:
        """A disk or ball, at least the pixel itself."""
        paint_ball(mask, self.at, click_radius)

    def to_fields(self) -> dict[str, Any]:
        """Position and sign."""
        return {"at": list(self.at), "positive": self.positive}
