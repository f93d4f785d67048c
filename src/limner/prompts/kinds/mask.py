"""Rough masks as prompts, and masks as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limner import rle
from limner.errors import PromptError
from limner.label_values import mask_of_values
from limner.prompts.kinds.base import GridMap, Layer, Mask, PromptBase, Shrink
from limner.prompts.kinds.checks import Position

MAX_MASK_PIXELS = 2**30  # of a mask read from JSON: twice a CT of 2000 slices


@dataclass(frozen=True, eq=False)
class MaskPrompt(PromptBase):
    """A rough mask to start from.

    Attributes:
        mask: boolean, the shape of the image, or of one frame or slice when added to that. Also
            numbers with one value besides 0, such as 0 and 255, by the rules of
            `limner.label_values`.

    Raises:
        PromptError: no mask, but probabilities, NaN, negative numbers, labels of several objects
            or a picture; the message says what to give instead.
    """

    mask: Mask
    kind: ClassVar[str] = "mask"
    json_fields: ClassVar[tuple[tuple[str, ...], tuple[str, ...]]] = (("shape", "counts"), ())

    def __post_init__(self) -> None:
        given = np.asarray(self.mask)
        if given.ndim not in (2, 3):
            raise PromptError(f"A mask has 2 or 3 axes, not shape {given.shape}.")
        try:
            mask = mask_of_values(given, name="The mask prompt")  # the only copy: volumes are large
        except ValueError as error:
            raise PromptError(f"A mask prompt is one mask: {error}.") from error
        mask.flags.writeable = False
        object.__setattr__(self, "mask", mask)

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

    @property
    def num_axes(self) -> int:
        """Axes of the mask, 2 or 3."""
        return self.mask.ndim

    @property
    def layer(self) -> Layer:
        """The map of masks."""
        return "mask"

    def extent(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """`bounds` as arrays."""
        return np.asarray(self.bounds[0]), np.asarray(self.bounds[1])

    def is_outside(self, shape: Sequence[int]) -> bool:
        """False: a mask has the image's shape, or is refused for that."""
        return False

    def reaches_over(self, shape: Sequence[int]) -> bool:
        """False, likewise."""
        return False

    def mapped(self, grid: GridMap) -> Self:
        """The mask on another grid; a view of it is not copied."""
        if grid.mask is None:
            return self
        result = object.__new__(type(self))
        object.__setattr__(result, "mask", grid.mask(self.mask))
        result.mask.flags.writeable = False
        return result

    def in_view(
        self, low: ArrayLike, high: ArrayLike, shape: tuple[int, ...], shrink: Shrink
    ) -> Self | None:
        """The view's pixels that are more than half in it, or at all where none is; it may be
        empty, which says something, too.
        """
        window = self.mask[tuple(map(slice, np.asarray(low), np.asarray(high)))]
        share = shrink(window, shape) if window.shape != shape else window
        return type(self)(share >= 0.5 if (share >= 0.5).any() else share > 0)

    def on_slice(self, index: int, axis: int = 0) -> Self:
        """The mask itself in 3D; refused in 2D, since nothing says how large the volume is."""
        if self.mask.ndim == 2:
            raise PromptError("A 2D mask belongs to a slice: add it with frame=K.")
        return self

    def to_slice(self, axis: int = 0) -> tuple[Self, int] | None:
        """None: a mask of a volume speaks of all its slices, also where it is empty."""
        return None

    def section(self, index: int, axis: int) -> Self | None:
        """The mask's slice; None where it is empty."""
        part = np.asarray(self.mask.take(index, axis=axis))
        return type(self)(part) if part.any() else None

    def paint(self, mask: Mask, click_radius: float | Sequence[float]) -> None:
        """The pixels of the mask."""
        if self.mask.shape != mask.shape:
            raise PromptError(
                f"A mask of shape {self.mask.shape} does not fit a grid of {mask.shape}."
            )
        mask |= self.mask

    def to_fields(self) -> dict[str, Any]:
        """Row-major runs; see `limner.rle`."""
        return mask_to_json(self.mask)

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Self:
        """Inverse of `to_fields`."""
        return cls(mask_from_json(**fields))


def mask_to_json(mask: Mask) -> dict[str, Any]:
    """A mask as its shape and row-major runs."""
    return {"shape": list(mask.shape), "counts": rle.encode(mask)}


def mask_from_json(shape: Any, counts: Any) -> Mask:
    """Inverse of `mask_to_json`.

    Raises:
        ValueError: malformed, or larger than `MAX_MASK_PIXELS`.
    """
    for name, value in (("shape", shape), ("counts", counts)):
        if not isinstance(value, (list, tuple)) or not all(type(n) is int for n in value):
            raise ValueError(f"{name} is a list of whole numbers")
    size = [int(n) for n in shape]
    if math.prod(size) > MAX_MASK_PIXELS:  # a few runs may claim any size
        raise ValueError(f"a mask of shape {size} has more than {MAX_MASK_PIXELS} pixels")
    return np.asarray(rle.decode(counts, size), dtype=np.bool_)
