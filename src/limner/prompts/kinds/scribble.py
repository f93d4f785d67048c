"""Scribbles: strokes of a round brush, positive and negative."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from limner.errors import PromptError
from limner.prompts.kinds.base import GridMap, Layer, Mask, PointsPrompt
from limner.prompts.kinds.checks import (
    Position,
    Positionlike,
    check_boolean,
    check_line,
    check_number,
)
from limner.prompts.painting import paint_stroke


@dataclass(frozen=True, init=False)
class Scribble(PointsPrompt):
    """A stroke of a round brush along a line.

    Attributes:
        points: the line's corners in index order, at least one.
        positive: True "this belongs", False "this does not".
        radius: of the brush, in pixels, 0 for a line one pixel wide.
    """

    points: tuple[Position, ...]
    positive: bool = True
    radius: float = 2.0
    kind: ClassVar[str] = "scribble"
    json_fields: ClassVar[tuple[tuple[str, ...], tuple[str, ...]]] = (
        ("points",),
        ("positive", "radius"),
    )

    def __init__(
        self,
        points: Sequence[Positionlike] | NDArray[Any],
        positive: bool = True,
        radius: float = 2.0,
    ) -> None:
        object.__setattr__(self, "points", check_line(points, "A scribble", 1))
        object.__setattr__(self, "positive", check_boolean(positive, "positive"))
        radius = check_number(radius, "Scribble radius")
        if not math.isfinite(radius) or radius < 0:
            raise PromptError(f"Scribble radius={radius} must be finite and not below 0 pixels.")
        object.__setattr__(self, "radius", radius)

    @property
    def positions(self) -> tuple[Position, ...]:
        """`points`."""
        return self.points

    def moved_to(self, positions: Sequence[Sequence[float]]) -> Self:
        """The stroke along another line."""
        return type(self)(tuple(map(tuple, positions)), self.positive, self.radius)

    @property
    def layer(self) -> Layer:
        """By what it says."""
        return "positive" if self.positive else "negative"

    def extent(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Half-open index bounds of all that the brush touches."""
        points = np.asarray(self.points)
        return points.min(axis=0) - self.radius, points.max(axis=0) + self.radius + 1

    def mapped(self, grid: GridMap) -> Self:
        """Line and brush on another grid."""
        radius = self.radius if grid.radius is None else grid.radius(self.radius)
        return type(self)(tuple(map(grid.point, self.points)), self.positive, radius)

    def paint(self, mask: Mask, click_radius: float | Sequence[float]) -> None:
        """The stroke; `click_radius` has no part in it."""
        paint_stroke(mask, self.points, self.radius)

    def to_fields(self) -> dict[str, Any]:
        """Line, sign and radius."""
        points = [list(p) for p in self.points]
        return {"points": points, "positive": self.positive, "radius": self.radius}
