"""The order in which models see the axes of a volume: slices first, then rows and columns, each
running the way a reader is used to, however the file stores them.

Sessions turn every view of a volume so (`canonical`), which costs no copy, and turn prompts and
answers with it: the same volume stored in any of the 48 ways gets the same mask in space. An
adapter that needs another order (head to foot first, say) turns its view once more with `facing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.geometry import Geometry
from limner.prompts.types import GridMap, Prompt

Array = NDArray[Any]
Bounds = tuple[tuple[int, ...], tuple[int, ...]]

COARSE = 1.5  # times any other step: only then does a volume's acquisition name its slice axis
_DIGITS = 6  # of a turned position: what is less is the rounding of affines
_TOWARDS = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}
# What the axes run towards, by the patient axis (x, y, z of LPS) that the slices are across.
_VIEWS = ("LIP", "PIL", "SPL")  # sagittal, coronal, axial


@dataclass(frozen=True)
class Axes:
    """A new order and direction of the spatial axes of an array.

    Attributes:
        order: axis ``k`` of the turned array is axis ``order[k]`` of the array.
        flipped: whether axis ``k`` of the turned array runs backwards.
    """

    order: tuple[int, ...]
    flipped: tuple[bool, ...]

    @classmethod
    def same(cls, ndim: int) -> Axes:
        """Nothing changes."""
        return cls(tuple(range(ndim)), (False,) * ndim)

    @property
    def is_same(self) -> bool:
        """Whether nothing changes."""
        return self == Axes.same(len(self.order))

    @cached_property
    def inverse(self) -> Axes:
        """What turns a turned array back."""
        order = tuple(int(k) for k in np.argsort(self.order))
        return Axes(order, tuple(self.flipped[k] for k in order))

    def apply(self, array: Array) -> Array:
        """The turned array, as a view of the same memory; axes behind the spatial ones stay."""
        rest = range(len(self.order), array.ndim)
        turned = array.transpose(*self.order, *rest)
        return turned[tuple(slice(None, None, -1 if flip else 1) for flip in self.flipped)]

    def undo(self, array: Array) -> Array:
        """The array of a turned one, as a view of the same memory."""
        return self.inverse.apply(array)

    def sizes(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """Values per axis, such as a shape or a spacing, in the turned order."""
        return tuple(values[k] for k in self.order)

    def bounds(self, bounds: Bounds, shape: Sequence[int]) -> Bounds:
        """Half-open bounds in an array of `shape`, in the turned one."""
        spans = [(bounds[0][k], bounds[1][k], shape[k]) for k in self.order]
        turned = [
            (n - b, n - a) if flip else (a, b)
            for (a, b, n), flip in zip(spans, self.flipped, strict=True)
        ]
        return tuple(a for a, _ in turned), tuple(b for _, b in turned)

    def prompt(self, prompt: Prompt, shape: Sequence[int]) -> Prompt:
        """A prompt about an array of `shape`, about the turned one."""
        if self.is_same:
            return prompt
        sizes = self.sizes(shape)

        def moved(position: Sequence[float], end: float) -> tuple[float, ...]:
            there = zip(self.sizes(position), sizes, self.flipped, strict=True)
            return tuple(round(n - end - x, 9) if flip else x for x, n, flip in there)

        return prompt.mapped(GridMap(lambda p: moved(p, 1), lambda p: moved(p, 0), mask=self.apply))

    def directions(self, matrix: Array) -> Array:
        """Directions, one column per axis, of the turned axes."""
        signs = np.where(self.flipped, -1.0, 1.0)
        return np.asarray(matrix[:, list(self.order)] * signs)


def canonical(geometry: Geometry) -> Axes:
    """How sessions turn a volume for models: ``(slice, row, column)`` as a reader would see it.

    The slices are across the axis with by far the coarsest steps, else across the patient's length:
    axial slices from foot to head, rows to the back, columns to the left; coronal slices to the
    back, rows down, columns to the left; sagittal slices to the left, rows down, columns to the
    back. Volumes without a spacing, whose orientation nobody knows, stay as they are stored.
    """
    if geometry.ndim != 3 or not geometry.has_spacing:
        return Axes.same(geometry.ndim)
    patient = _patient_axes(geometry.direction)
    coarsest = int(np.argmax(geometry.spacing))
    others = [s for k, s in enumerate(geometry.spacing) if k != coarsest]
    across = 2
    if geometry.spacing[coarsest] > COARSE * max(others):
        across = patient[coarsest]
    return facing(geometry.direction, _VIEWS[across])


def facing(directions: Array | None, letters: str) -> Axes:
    """The order in which the axes run nearest to wanted patient directions.

    Args:
        directions: 3×3, column ``k`` is the LPS unit vector along axis ``k``; None: unknown, then
            nothing changes.
        letters: where the first, second and third axis shall run to, such as ``"SPL"``: to the
            head, to the back, to the left.
    """
    if directions is None:
        return Axes.same(3)
    patient = _patient_axes(directions)
    order, flipped = [], []
    for letter in letters:
        towards, sign = _TOWARDS[letter]
        axis = patient.index(towards)
        order.append(axis)
        flipped.append(bool(directions[towards, axis] * sign < 0))
    return Axes(tuple(order), tuple(flipped))


def _patient_axes(directions: Array) -> tuple[int, ...]:
    """The patient axis (x, y, z) of each index axis: the assignment nearest to all of them."""
    cosines = np.round(np.abs(directions), _DIGITS)
    return max(permutations(range(3)), key=lambda p: float(sum(cosines[p[k], k] for k in range(3))))
