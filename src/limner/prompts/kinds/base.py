"""Interface of a prompt kind: geometry, painting and JSON that every kind must bring.

A new kind is one file here and its name in a union of `limner.prompts.types`. What it has to do is
abstract below, so a kind that forgets something cannot be made; three bases bring most of it:
`PointsPrompt` (positions), `CornersPrompt` (two corners) and `PlacelessPrompt` (no position).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limner.errors import PromptError
from limner.prompts.kinds.checks import Position, Positionlike, check_position

Mask: TypeAlias = NDArray[np.bool_]
Layer: TypeAlias = Literal["positive", "negative", "box", "lasso", "mask"]
Shrink: TypeAlias = Callable[[Mask, tuple[int, ...]], NDArray[Any]]


@dataclass(frozen=True)
class GridMap:
    """How positions on one grid read on another, axis by axis: boxes stay boxes.

    Attributes:
        point: the centre of a pixel, an index, on the other grid.
        edge: likewise a corner of a half-open box, which lies between pixels; as `point` if None.
        radius: of a brush, in pixels; stays if None.
        mask: pixels of the whole grid, on the other one; stay if None.
    """

    point: Callable[[Position], Position]
    edge: Callable[[Position], Position] | None = None
    radius: Callable[[float], float] | None = None
    mask: Callable[[Mask], Mask] | None = None


class PromptBase(ABC):
    """What every kind of prompt can do. Prompts are values: methods return new ones.

    Attributes:
        kind: name of the kind, as in JSON and on a model's card.
        json_fields: names of its JSON fields: needed ones, optional ones.
    """

    kind: ClassVar[str]
    json_fields: ClassVar[tuple[tuple[str, ...], tuple[str, ...]]]

    @property
    @abstractmethod
    def num_axes(self) -> int | None:
        """Axes of the prompt's positions, 2 or 3; None where it has no place in the image."""

    @property
    @abstractmethod
    def layer(self) -> Layer | None:
        """The map of `limner.prompts.raster.PromptMaps` that it is painted into; None: in none."""

    @abstractmethod
    def extent(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Bounding box as half-open index bounds ``(low, high)``, brush radius included.

        Raises:
            PromptError: it has no place in the image.
        """

    @abstractmethod
    def is_outside(self, shape: Sequence[int]) -> bool:
        """Whether it touches no pixel of an image with as many axes."""

    @abstractmethod
    def reaches_over(self, shape: Sequence[int]) -> bool:
        """Whether a part of it that was meant has no effect, being outside an image of `shape`."""

    @abstractmethod
    def mapped(self, grid: GridMap) -> Self:
        """The same on another grid."""

    @abstractmethod
    def in_view(
        self, low: ArrayLike, high: ArrayLike, shape: tuple[int, ...], shrink: Shrink
    ) -> Self | None:
        """The same in a view: the window ``low <= index < high`` of the image, shrunk to `shape`.

        Args:
            low: first index of the window, per axis.
            high: first index after it.
            shape: pixels of the view.
            shrink: a mask to a shape, as shares of its pixels.

        Returns:
            None where nothing of it lies in the window.
        """

    @abstractmethod
    def on_slice(self, index: int, axis: int = 0) -> Self:
        """A 2D prompt lifted onto slice `index` of a volume, across `axis`; others stay.

        Raises:
            PromptError: a 2D mask, which fills no volume.
        """

    @abstractmethod
    def to_slice(self, axis: int = 0) -> tuple[Self, int] | None:
        """Inverse of `on_slice`: the 2D prompt and its slice; None if not 3D, or on several."""

    @abstractmethod
    def section(self, index: int, axis: int) -> Self | None:
        """The 2D part of a 3D prompt on slice `index` across `axis`; None where it is not there."""

    @abstractmethod
    def paint(self, mask: Mask, click_radius: float | Sequence[float]) -> None:
        """Set the pixels that it covers, in place.

        Args:
            mask: boolean, with as many axes.
            click_radius: of the disk or ball around a click, in pixels.

        Raises:
            PromptError: a mask prompt of another shape.
        """

    @abstractmethod
    def to_fields(self) -> dict[str, Any]:
        """JSON values by the names of `json_fields`."""

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Self:
        """Inverse of `to_fields`.

        Raises:
            PromptError, TypeError, ValueError, KeyError, OverflowError: a value is malformed.
        """
        return cls(**fields)


class PointsPrompt(PromptBase):
    """A prompt that is made of positions, each the centre of a pixel."""

    @property
    @abstractmethod
    def positions(self) -> tuple[Position, ...]:
        """All of them, at least one, in index order."""

    @abstractmethod
    def moved_to(self, positions: Sequence[Sequence[float]]) -> Self:
        """The same prompt with other positions, as many."""

    @property
    def num_axes(self) -> int:
        """Axes of the positions, 2 or 3."""
        return len(self.positions[0])

    def extent(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Half-open index bounds of the pixels at the positions."""
        points = np.asarray(self.positions)
        return points.min(axis=0), points.max(axis=0) + 1

    def is_outside(self, shape: Sequence[int]) -> bool:
        """Whether the bounding box touches no pixel."""
        low, high = self.extent()
        return bool((high < 0.5).any() or (low > np.asarray(shape) - 0.5).any())

    def reaches_over(self, shape: Sequence[int]) -> bool:
        """Never: a line may begin outside."""
        return False

    def mapped(self, grid: GridMap) -> Self:
        """Every position on another grid."""
        return self.moved_to([grid.point(p) for p in self.positions])

    def in_view(
        self, low: ArrayLike, high: ArrayLike, shape: tuple[int, ...], shrink: Shrink
    ) -> Self | None:
        """Every position in the view; those outside it stay outside."""
        first, begin, end = np.asarray(low), *self.extent()
        if (end <= first).any() or (begin >= high).any():
            return None
        scale = np.asarray(shape) / (np.asarray(high) - first)
        return self.mapped(
            GridMap(
                lambda p: tuple(((np.asarray(p) - first + 0.5) * scale - 0.5).tolist()),
                radius=lambda r: r * float(np.exp(np.log(scale).mean())),
            )
        )

    def on_slice(self, index: int, axis: int = 0) -> Self:
        """2D positions lifted onto a slice."""
        if self.num_axes != 2:
            return self
        return self.moved_to([insert_axis(p, axis, float(index)) for p in self.positions])

    def to_slice(self, axis: int = 0) -> tuple[Self, int] | None:
        """3D positions that share a slice, to the nearest, on it."""
        if self.num_axes != 3:
            return None
        touched = {round(p[axis]) for p in self.positions}
        if len(touched) > 1:
            return None
        return self.moved_to([drop_axis(p, axis) for p in self.positions]), touched.pop()

    def section(self, index: int, axis: int) -> Self | None:
        """All positions projected onto a slice that the bounding box meets."""
        low, high = self.extent()
        if not low[axis] - 0.5 <= index < high[axis]:
            return None
        return self.moved_to([drop_axis(p, axis) for p in self.positions])


@dataclass(frozen=True, init=False)
class CornersPrompt(PromptBase):
    """A prompt that fills a box or a part of it, half-open: ``low <= index < high``.

    Attributes:
        low: first index inside, per axis.
        high: first index outside, per axis; at least one pixel above `low`.
    """

    low: Position
    high: Position
    json_fields: ClassVar[tuple[tuple[str, ...], tuple[str, ...]]] = (("low", "high"), ())

    def __init__(self, low: Positionlike, high: Positionlike) -> None:
        kind = self.kind
        corner = f"A {kind} corner"
        first, end = check_position(low, corner), check_position(high, corner)
        if len(first) != len(end):
            raise PromptError(
                f"{kind.title()} low={first} and high={end} differ in their number of axes."
            )
        for axis, (a, b) in enumerate(zip(first, end, strict=True)):
            if b - a < 1:
                raise PromptError(
                    f"{kind.title()} low={_show(first)} is not below high={_show(end)} on axis "
                    f"{axis}; a {kind} needs at least one pixel per axis."
                )
        object.__setattr__(self, "low", first)
        object.__setattr__(self, "high", end)

    def moved_to(self, low: Sequence[float], high: Sequence[float]) -> Self:
        """The same prompt with other corners."""
        return type(self)(tuple(low), tuple(high))

    @property
    def num_axes(self) -> int:
        """Axes of the corners, 2 or 3."""
        return len(self.low)

    def extent(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """The corners."""
        return np.asarray(self.low), np.asarray(self.high)

    def is_outside(self, shape: Sequence[int]) -> bool:
        """Whether it holds the centre of no pixel of the image on some axis."""
        low, high = self.extent()
        return bool((high <= 0).any() or (low > np.asarray(shape) - 1).any())

    def reaches_over(self, shape: Sequence[int]) -> bool:
        """Whether a side lies outside the image."""
        limits = zip(self.low, self.high, shape, strict=True)
        return any(low < 0 or high > size for low, high, size in limits)

    def mapped(self, grid: GridMap) -> Self:
        """The box around both corners on another grid."""
        edge = grid.edge or grid.point
        low, high = edge(self.low), edge(self.high)
        return self.moved_to(tuple(map(min, low, high)), tuple(map(max, low, high)))

    def in_view(
        self, low: ArrayLike, high: ArrayLike, shape: tuple[int, ...], shrink: Shrink
    ) -> Self | None:
        """The part in the view, at least one of its pixels."""
        first = np.asarray(low)
        scale = np.asarray(shape) / (np.asarray(high) - first)
        start = np.clip((np.asarray(self.low) - first) * scale, 0, shape)
        stop = np.clip((np.asarray(self.high) - first) * scale, 0, shape)
        if (stop <= start).any():
            return None
        start = np.minimum(start, np.maximum(stop - 1, 0))
        return self.moved_to(tuple(start), tuple(np.maximum(stop, start + 1)))

    def on_slice(self, index: int, axis: int = 0) -> Self:
        """One slice thick."""
        if self.num_axes != 2:
            return self
        low = insert_axis(self.low, axis, float(index))
        return self.moved_to(low, insert_axis(self.high, axis, float(index + 1)))

    def to_slice(self, axis: int = 0) -> tuple[Self, int] | None:
        """In 2D where it is one slice thick."""
        if self.num_axes != 3 or int(self.high[axis]) - int(self.low[axis]) != 1:
            return None
        return self.moved_to(drop_axis(self.low, axis), drop_axis(self.high, axis)), int(
            self.low[axis]
        )

    def section(self, index: int, axis: int) -> Self | None:
        """The corners without an axis, on the slices between them."""
        if not self.low[axis] - 0.5 <= index < self.high[axis]:
            return None
        return self.moved_to(drop_axis(self.low, axis), drop_axis(self.high, axis))

    def to_fields(self) -> dict[str, Any]:
        """The corners as lists."""
        return {"low": list(self.low), "high": list(self.high)}


class PlacelessPrompt(PromptBase):
    """A prompt that has no place in the image: everything that moves positions leaves it alone."""

    @property
    def num_axes(self) -> None:
        """None."""
        return

    @property
    def layer(self) -> None:
        """None."""
        return

    def extent(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Refused."""
        raise PromptError(f"A {self.kind} prompt has no place in the image.")

    def is_outside(self, shape: Sequence[int]) -> bool:
        """False."""
        return False

    def reaches_over(self, shape: Sequence[int]) -> bool:
        """False."""
        return False

    def mapped(self, grid: GridMap) -> Self:
        """The prompt itself."""
        return self

    def in_view(
        self, low: ArrayLike, high: ArrayLike, shape: tuple[int, ...], shrink: Shrink
    ) -> Self | None:
        """The prompt itself."""
        return self

    def on_slice(self, index: int, axis: int = 0) -> Self:
        """The prompt itself."""
        return self

    def to_slice(self, axis: int = 0) -> tuple[Self, int] | None:
        """None."""
        return None

    def section(self, index: int, axis: int) -> Self | None:
        """None."""
        return None

    def paint(self, mask: Mask, click_radius: float | Sequence[float]) -> None:
        """Nothing."""


def insert_axis(position: Position, axis: int, place: float) -> Position:
    """A 2D position in a volume, at `place` along `axis`."""
    return (*position[:axis], place, *position[axis:])


def drop_axis(position: Position, axis: int) -> Position:
    """A 3D position on a slice across `axis`."""
    return tuple(x for k, x in enumerate(position) if k != axis)


def _show(position: Position) -> str:
    return "(" + ", ".join(f"{x:g}" for x in position) + ")"
