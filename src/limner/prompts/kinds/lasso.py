"""Lassos: closed lines drawn around an object on one slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from limner.errors import PromptError
from limner.prompts.kinds.base import Layer, Mask, PointsPrompt
from limner.prompts.kinds.checks import Position, Positionlike, check_line
from limner.prompts.painting import paint_polygon, slice_view


@dataclass(frozen=True, init=False)
class Lasso(PointsPrompt):
    """A closed line drawn roughly around the object, in one slice.

    Attributes:
        points: corners of the polygon in index order, at least three; the last joins the first. In
            3D all share one coordinate, which names the slice (across any axis).
    """

    points: tuple[Position, ...]
    kind: ClassVar[str] = "lasso"
    json_fields: ClassVar[tuple[tuple[str, ...], tuple[str, ...]]] = (("points",), ())

    def __init__(self, points: Sequence[Positionlike] | NDArray[Any]) -> None:
        corners = check_line(points, "A lasso", 3)
        if len(corners[0]) == 3 and _shared_axis(corners) is None:
            raise PromptError(
                "A lasso in 3D lies in one slice: its points must share one coordinate. "
                "Draw it on a slice of any axis, or use a box or a mask."
            )
        object.__setattr__(self, "points", corners)

    @property
    def plane_axis(self) -> int | None:
        """In 3D the axis that is constant, None in 2D."""
        return _shared_axis(self.points) if len(self.points[0]) == 3 else None

    @property
    def positions(self) -> tuple[Position, ...]:
        """`points`."""
        return self.points

    def moved_to(self, positions: Sequence[Sequence[float]]) -> Self:
        """Another line."""
        return type(self)(tuple(map(tuple, positions)))

    @property
    def layer(self) -> Layer:
        """The map of lassos."""
        return "lasso"

    def section(self, index: int, axis: int) -> Self | None:
        """The line on its own slice; none across another axis, where it would be a stroke."""
        return super().section(index, axis) if self.plane_axis == axis else None

    def paint(self, mask: Mask, click_radius: float | Sequence[float]) -> None:
        """All that it goes around, one slice thick in 3D."""
        points, axis, target = np.asarray(self.points), self.plane_axis, mask
        if axis is not None:
            found = slice_view(mask, axis, points[0, axis])
            if found is None:
                return
            points, target = np.delete(points, axis, axis=1), found
        paint_polygon(target, points)

    def to_fields(self) -> dict[str, Any]:
        """The corners."""
        return {"points": [list(p) for p in self.points]}


def _shared_axis(points: tuple[Position, ...]) -> int | None:
    return next((axis for axis in range(3) if len({p[axis] for p in points}) == 1), None)
