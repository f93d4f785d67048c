"""The kinds of prompt, as frozen values with JSON both ways.

Positions are array indices in index order: ``(row, column)`` in 2D and on a frame or slice,
``(slice, row, column)`` in 3D. The centre of a pixel is its integer index. Which object and which
frame a prompt belongs to is said when it is added to a session, not in the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limner import rle
from limner.errors import PromptError
from limner.prompts._packed import pack, unpack

Position: TypeAlias = tuple[float, ...]

_MASK_FIELDS = (("shape", "counts"), ())
MAX_MASK_PIXELS = 2**30  # of a mask read from JSON: twice a CT of 2000 slices


@dataclass(frozen=True)
class Click:
    """One click.

    Attributes:
        at: array index, ``(row, column)`` in 2D, ``(slice, row, column)`` in 3D.
        positive: True "this belongs to the object", False "this does not".
    """

    at: Position
    positive: bool = True
    kind: ClassVar[str] = "click"

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", _position(self.at, "A click"))
        object.__setattr__(self, "positive", _boolean(self.positive, "positive"))


@dataclass(frozen=True)
class Box:
    """A box around the object, half-open: ``low <= index < high``.

    Attributes:
        low: first index inside, per axis.
        high: first index outside, per axis; at least one pixel above `low`.
    """

    low: Position
    high: Position
    kind: ClassVar[str] = "box"

    def __post_init__(self) -> None:
        low, high = _position(self.low, "A box corner"), _position(self.high, "A box corner")
        if len(low) != len(high):
            raise PromptError(f"Box low={low} and high={high} differ in their number of axes.")
        for axis, (a, b) in enumerate(zip(low, high, strict=True)):
            if b - a < 1:
                raise PromptError(
                    f"Box low={_show(low)} is not below high={_show(high)} on axis {axis}; "
                    "a box needs at least one pixel per axis."
                )
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)


@dataclass(frozen=True)
class Scribble:
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", _line(self.points, "A scribble", 1))
        object.__setattr__(self, "positive", _boolean(self.positive, "positive"))
        radius = _number(self.radius, "Scribble radius")
        if not math.isfinite(radius) or radius < 0:
            raise PromptError(f"Scribble radius={radius} must be finite and not below 0 pixels.")
        object.__setattr__(self, "radius", radius)


@dataclass(frozen=True)
class Lasso:
    """A closed line drawn roughly around the object, in one plane.

    Attributes:
        points: corners of the polygon in index order, at least three; the last joins the first. In
            3D all share one coordinate, which names the plane (any axis).
    """

    points: tuple[Position, ...]
    kind: ClassVar[str] = "lasso"

    def __post_init__(self) -> None:
        points = _line(self.points, "A lasso", 3)
        if len(points[0]) == 3 and self._plane_axis(points) is None:
            raise PromptError(
                "A lasso in 3D lies in one slice: its points must share one coordinate. "
                "Draw it on a slice of any axis, or use a box or a mask."
            )
        object.__setattr__(self, "points", points)

    @staticmethod
    def _plane_axis(points: tuple[Position, ...]) -> int | None:
        for axis in range(3):
            if len({p[axis] for p in points}) == 1:
                return axis
        return None

    @property
    def plane_axis(self) -> int | None:
        """In 3D the axis that is constant, None in 2D."""
        return self._plane_axis(self.points) if len(self.points[0]) == 3 else None


@dataclass(frozen=True, eq=False)
class MaskPrompt:
    """A rough mask to start from.

    Attributes:
        mask: boolean, the shape of the image, or of one frame or slice when added to that.
    """

    mask: NDArray[np.bool_]
    kind: ClassVar[str] = "mask"

    def __post_init__(self) -> None:
        given = np.asarray(self.mask)
        if given.ndim not in (2, 3):
            raise PromptError(f"A mask has 2 or 3 axes, not shape {given.shape}.")
        mask = np.asarray(given != 0)  # a copy of its own, and the only one: volumes are large
        mask.flags.writeable = False
        object.__setattr__(self, "mask", mask)

    def turned(self, turn: Callable[[NDArray[np.bool_]], NDArray[np.bool_]]) -> MaskPrompt:
        """The same mask through `turn`, which gives a view of it; nothing is copied."""
        result = object.__new__(MaskPrompt)
        object.__setattr__(result, "mask", turn(self.mask))
        return result

    @cached_property
    def bounds(self) -> tuple[Position, Position]:
        """Half-open bounding box of what is drawn; all 0 where nothing is."""
        axes = range(self.mask.ndim)
        lines = [np.array(self.mask.any(axis=tuple(k for k in axes if k != a))) for a in axes]
        high = tuple(float(n.size - n[::-1].argmax()) if n.any() else 0.0 for n in lines)
        return tuple(float(line.argmax()) for line in lines), high

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MaskPrompt) and np.array_equal(self.mask, other.mask)

    def __hash__(self) -> int:
        return hash((self.mask.shape, np.packbits(self.mask).tobytes()))


@dataclass(frozen=True)
class TextPrompt:
    """A word or phrase naming the object, such as ``"liver"``.

    Attributes:
        text: not empty.
    """

    text: str
    kind: ClassVar[str] = "text"

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text.strip():
            raise PromptError(f"A text prompt needs words, not {self.text!r}.")
        object.__setattr__(self, "text", self.text.strip())


@dataclass(frozen=True, eq=False)
class Example:
    """Another image with its mask: "segment this like that" (UniverSeg,
    https://arxiv.org/abs/2304.06131).

    Attributes:
        image: ``(row, column)`` or ``(row, column, channel)``, intensities as stored.
        mask: boolean ``(row, column)``.
    """

    image: NDArray[Any]
    mask: NDArray[np.bool_]
    kind: ClassVar[str] = "example"

    def __post_init__(self) -> None:
        image, mask = np.array(self.image), np.array(self.mask) != 0
        if mask.ndim != 2 or image.shape[:2] != mask.shape or image.ndim not in (2, 3):
            raise PromptError(
                f"An example pairs an image with a 2D mask of the same rows and columns, "
                f"not {image.shape} with {mask.shape}."
            )
        image.flags.writeable = mask.flags.writeable = False
        object.__setattr__(self, "image", image)
        object.__setattr__(self, "mask", mask)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Example)
            and self.image.dtype == other.image.dtype
            and np.array_equal(self.image, other.image)
            and np.array_equal(self.mask, other.mask)
        )

    def __hash__(self) -> int:
        return hash((self.image.tobytes(), np.packbits(self.mask).tobytes()))


Prompt: TypeAlias = Click | Box | Scribble | Lasso | MaskPrompt | TextPrompt | Example

KINDS: dict[str, type[Prompt]] = {
    "click": Click,
    "box": Box,
    "scribble": Scribble,
    "lasso": Lasso,
    "mask": MaskPrompt,
    "text": TextPrompt,
    "example": Example,
}


_FIELDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # of JSON: needed, optional
    "click": (("at",), ("positive",)),
    "box": (("low", "high"), ()),
    "scribble": (("points",), ("positive", "radius")),
    "lasso": (("points",), ()),
    "mask": _MASK_FIELDS,
    "text": (("text",), ()),
    "example": (("image", "dtype", "mask"), ("shape",)),
}


def num_axes(prompt: Prompt) -> int | None:
    """How many axes the prompt's positions have; None for text and examples, which have none."""
    match prompt:
        case Click():
            return len(prompt.at)
        case Box():
            return len(prompt.low)
        case Scribble() | Lasso():
            return len(prompt.points[0])
        case MaskPrompt():
            return prompt.mask.ndim
    return None


def to_json(prompt: Prompt) -> dict[str, Any]:
    """The prompt as JSON values, with its kind under ``"kind"``; masks as row-major runs
    (`limner.rle`), the pixels of examples whole, compressed without loss.
    """
    match prompt:
        case Click():
            return {"kind": "click", "at": list(prompt.at), "positive": prompt.positive}
        case Box():
            return {"kind": "box", "low": list(prompt.low), "high": list(prompt.high)}
        case Scribble():
            return {
                "kind": "scribble",
                "points": [list(p) for p in prompt.points],
                "positive": prompt.positive,
                "radius": prompt.radius,
            }
        case Lasso():
            return {"kind": "lasso", "points": [list(p) for p in prompt.points]}
        case MaskPrompt():
            return {"kind": "mask", **_mask_to_json(prompt.mask)}
        case TextPrompt():
            return {"kind": "text", "text": prompt.text}
        case Example():
            return {
                "kind": "example",
                "image": pack(prompt.image),
                "dtype": prompt.image.dtype.str,
                "shape": list(prompt.image.shape),
                "mask": _mask_to_json(prompt.mask),
            }


def from_json(value: dict[str, Any]) -> Prompt:
    """Inverse of `to_json`.

    Raises:
        PromptError: the kind is unknown, or a field is missing, unknown or of the wrong type.
    """
    if not isinstance(value, dict) or value.get("kind") not in tuple(KINDS):
        kind = value.get("kind") if isinstance(value, dict) else value
        raise PromptError(f"Unknown kind of prompt {kind!r}; known are {', '.join(KINDS)}.")
    fields = {k: v for k, v in value.items() if k != "kind"}
    _check_fields(fields, value["kind"], *_FIELDS[value["kind"]])
    try:
        match value["kind"]:
            case "mask":
                return MaskPrompt(_mask_from_json(**fields))
            case "example":
                return _example_from_json(**fields)
        return KINDS[value["kind"]](**fields)
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        reason = str(error).rstrip(".")
        raise PromptError(f"Malformed {value['kind']} prompt: {reason}.") from error


def _check_fields(given: Any, kind: str, needed: Sequence[str], optional: Sequence[str]) -> None:
    """Refuse fields that are missing or that the kind does not have, and say which it has."""
    known = ", ".join((*needed, *(f"{name} (optional)" for name in optional)))
    if not isinstance(given, dict):
        raise PromptError(f"A {kind} is an object with the fields {known}, not {given!r}.")
    for what, names in (
        ("unknown field", [name for name in given if name not in (*needed, *optional)]),
        ("missing field", [name for name in needed if name not in given]),
    ):
        if names:
            listed = ", ".join(repr(name) for name in names)
            raise PromptError(
                f"Malformed {kind} prompt: {what} {listed}; the fields of a {kind} are {known}."
            )


def _mask_to_json(mask: NDArray[np.bool_]) -> dict[str, Any]:
    return {"shape": list(mask.shape), "counts": rle.encode(mask)}


def _mask_from_json(shape: Any, counts: Any) -> NDArray[np.bool_]:
    for name, value in (("shape", shape), ("counts", counts)):
        if not isinstance(value, (list, tuple)) or not all(type(n) is int for n in value):
            raise ValueError(f"{name} is a list of whole numbers")
    size = [int(n) for n in shape]
    if math.prod(size) > MAX_MASK_PIXELS:  # a few runs may claim any size
        raise ValueError(f"a mask of shape {size} has more than {MAX_MASK_PIXELS} pixels")
    return np.asarray(rle.decode(counts, size), dtype=np.bool_)


def _example_from_json(image: Any, dtype: str, mask: dict[str, Any], shape: Any = None) -> Example:
    """`image`: packed, then with its shape; or written out as nested lists."""
    _check_fields(mask, "mask", *_MASK_FIELDS)
    kind = np.dtype(dtype)
    if kind.kind not in "biuf":
        raise ValueError(f"an example's pixels are numbers, not {dtype!r}")
    if isinstance(image, str):
        pixels = unpack(image, kind, () if shape is None else shape)
    else:
        pixels = np.asarray(image, dtype=kind)
    return Example(pixels, _mask_from_json(**mask))


def _position(value: Any, what: str) -> Position:
    try:
        numbers = None if isinstance(value, (str, bytes)) else tuple(value)
    except TypeError:
        numbers = None
    if numbers is None:
        raise PromptError(f"{what} is a sequence of numbers in index order, not {value!r}.")
    position = tuple(_number(x, f"{what}'s coordinate") for x in numbers)
    if len(position) not in (2, 3) or not all(math.isfinite(x) for x in position):
        raise PromptError(f"{what} has 2 or 3 finite coordinates, not {position}.")
    return position


def _line(value: ArrayLike | Sequence[Any], what: str, least: int) -> tuple[Position, ...]:
    if isinstance(value, str) or not np.iterable(value):
        raise PromptError(f"{what} is a sequence of positions, not {value!r}.")
    points = tuple(_position(p, f"{what}'s point") for p in value)
    if len(points) < least or len({len(p) for p in points}) != 1:
        raise PromptError(f"{what} needs {least} or more points with equal numbers of axes.")
    return points


def _number(value: Any, what: str) -> float:
    try:
        if isinstance(value, (str, bytes, bool, np.bool_)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise PromptError(f"{what} is a number, not {value!r}.") from None


def _boolean(value: Any, name: str) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise PromptError(f"{name} is True or False, not {value!r}.")
    return bool(value)


def _show(position: Position) -> str:
    return "(" + ", ".join(f"{x:g}" for x in position) + ")"
