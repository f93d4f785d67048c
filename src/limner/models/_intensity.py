"""From stored intensities to the pair that a model's adapter maps to black and white.

CT windows are named here and used only when the user names one; without one, robust limits of the
whole image are taken, the same for every view of it.
"""

from __future__ import annotations

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
                f"Unknown window {window!r}; use low,high or one of {', '.join(WINDOWS)}."
            )
        return WINDOWS[window]
    if len(window) != 2 or not np.isfinite(window).all() or not window[0] < window[1]:
        raise ValueError(f"A window is a pair low < high of finite numbers, not {tuple(window)}.")
    return float(window[0]), float(window[1])


def robust_limits(array: NDArray[Any]) -> tuple[float, float]:
    """0.5th and 99.5th percentile of the finite values, from a regular sample of a large array.

    A constant image gives limits one unit apart; one without a finite value gives (0, 1).
    """
    flat = array.reshape(-1)
    values = flat[:: max(1, flat.size // _MOST_VALUES)]
    if values.dtype.kind == "f":
        values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(values, (LOW_PERCENTILE, HIGH_PERCENTILE)))
    if low == high:  # mostly background: fall back to the whole range
        low, high = float(values.min()), float(values.max())
    return (low, high) if low < high else (low, low + 1.0)
