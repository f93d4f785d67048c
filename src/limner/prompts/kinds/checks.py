"""Checks of what prompts are made of: positions, numbers, truth values, JSON fields."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from limner.errors import PromptError

Position: TypeAlias = tuple[float, ...]
Positionlike: TypeAlias = Sequence[float] | NDArray[Any]  # what a caller may give


def check_position(value: Any, what: str) -> Position:
    """Two or three finite numbers.

    Raises:
        PromptError: `value` is no such thing; the message begins with `what`.
    """
    try:
        numbers = None if isinstance(value, (str, bytes)) else tuple(value)
    except TypeError:
        numbers = None
    if numbers is None:
        raise PromptError(f"{what} is a sequence of numbers in index order, not {value!r}.")
    position = tuple(check_number(x, f"{what}'s coordinate") for x in numbers)
    if len(position) not in (2, 3) or not all(math.isfinite(x) for x in position):
        raise PromptError(f"{what} has 2 or 3 finite coordinates, not {position}.")
    return position


def check_line(value: Any, what: str, least: int) -> tuple[Position, ...]:
    """At least `least` positions with equal numbers of axes; raises as `check_position`."""
    if isinstance(value, str) or not np.iterable(value):
        raise PromptError(f"{what} is a sequence of positions, not {value!r}.")
    points = tuple(check_position(p, f"{what}'s point") for p in value)
    if len(points) < least or len({len(p) for p in points}) != 1:
        raise PromptError(f"{what} needs {least} or more points with equal numbers of axes.")
    return points


def check_number(value: Any, what: str) -> float:
    """A number as float; no text and no truth value."""
    try:
        if isinstance(value, (str, bytes, bool, np.bool_)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise PromptError(f"{what} is a number, not {value!r}.") from None


def check_boolean(value: Any, name: str) -> bool:
    """True or False, also NumPy's."""
    if not isinstance(value, (bool, np.bool_)):
        raise PromptError(f"{name} is True or False, not {value!r}.")
    return bool(value)


def check_fields(
    given: Any, kind: str, needed: Sequence[str], optional: Sequence[str] = ()
) -> None:
    """Refuse JSON fields that are missing or that a kind does not have, and say which it has.

    Raises:
        PromptError: no object, or other fields.
    """
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
