"""Scores over several clicks, as the CVPR 2025 challenge counts them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LEAST_DICE = 0.2  # with no more than that a surface counts as missed: NSD 0
TOLERANCE = 2.0  # of NSD, in millimetres


def area_under_curve(values: Sequence[float]) -> float:
    """The area under a curve of scores one step apart: the trapezoid; 4 at most for five."""
    curve = np.asarray(values, dtype=float)
    return float((curve[1:] + curve[:-1]).sum() / 2)


def gate_nsd(nsd: float, dice: float) -> float:
    """NSD as it counts: 0 unless the Dice is above `LEAST_DICE`."""
    return nsd if dice > LEAST_DICE else 0.0
