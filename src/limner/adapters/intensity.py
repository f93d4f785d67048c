"""Intensity limits of an image: the pair that a model's adapter maps to black and white.

CT windows are named here; `limner.adapters.default_window` says which one is used. Elsewhere robust
limits of the whole image are taken, the same for every view of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

LOW_PERCENTILE, HIGH_PERCENTILE = 0.5, 99.5
_MOST_VALUES = 1_000_000  # enough for percentiles to 0.1 %

# Hounsfield units (low, high): level ± width / 2 of the usual reading presets.
WINDOWS: MappingProxyType[str, tuple[float, float]] = MappingProxyType(
    {
        "abdomen": (-160.0, 240.0),
        "angio": (0.0, 600.0),
        "bone": (-500.0, 1300.0),
        "brain": (0.0, 80.0),
        "liver": (-40.0, 160.0),
        "lung": (-1350.0, 150.0),
        "mediastinum": (-125.0, 275.0),
        "soft-tissue": (-150.0, 250.0),
        "stroke": (20.0, 60.0),
        "subdural": (-50.0, 150.0),
    }
)


def resolve_window(window: str | Sequence[float] | None) -> tuple[float, float] | None:
    """The limits meant by a preset's name or by a pair ``(low, high)``; None stays None.

    Raises:
        ValueError: an unknown name, or a pair whose low is not below its high.
    """
    if window is None:
        return None
    if isinstance(window, str):
        if window not in WINDOWS:
            raise ValueError(
                f"Unknown window {window!r}; use low,high or one of {', '.join(WINDOWS)}, robust."
            )
        return WINDOWS[window]
    try:
        low, high = (float(limit) for limit in window)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"A window is a pair low < high of finite numbers, not {window!r}.")
    return low, high


def robust_limits(array: NDArray[Any]) -> tuple[float, float]:
    """0.5th and 99.5th percentile of the finite values, from a regular sample of a large array.

    A constant image gives limits one unit apart; one without a finite value gives (0, 1).
    """
    values = sample_values(array)
    if values.dtype.kind == "b":
        values = values.astype(np.uint8)
    if values.dtype.kind == "f":
        values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(values, (LOW_PERCENTILE, HIGH_PERCENTILE)))
    if low == high:  # mostly background: fall back to the whole range
        low, high = float(values.min()), float(values.max())
    return (low, high) if low < high else (low, low + 1.0)


def sample_values(array: NDArray[Any]) -> NDArray[Any]:
    """About `_MOST_VALUES` values from all over an array, without copying the rest."""
    step = max(1, array.size // _MOST_VALUES)
    while step > 1 and any(math.gcd(step, size) > 1 for size in array.shape):
        step += 1  # else only some columns or channels are seen
    if array.flags.c_contiguous:
        return array.reshape(-1)[::step]
    places = np.arange(0, array.size, step)
    return np.asarray(array[np.unravel_index(places, array.shape)])
