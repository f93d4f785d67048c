"""Measures of the benchmark: one entry per score of an answer.

Rows, files, statistics and tables follow `MEASURES`; a new measure is a function (most are in
`limner.metrics`) and an entry here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from limner import metrics

Mask: TypeAlias = NDArray[np.bool_]
Scores: TypeAlias = dict[str, float | None]  # of one answer, by key of `MEASURES`
Over: TypeAlias = Literal["sets", "objects"]

TOLERANCE = 2.0  # of NSD: in pixels, since pictures mostly state no size; of volumes in millimetres


@dataclass(frozen=True, eq=False)
class Comparison:
    """An answer beside the truth.

    Attributes:
        mask: the answer, boolean ``(row, column)`` or ``(slice, row, column)``.
        target: the truth, of the same shape.
        spacing: millimetres per step of a volume, in index order; None in images: pixels.
    """

    mask: Mask
    target: Mask
    spacing: Sequence[float] | None

    @cached_property
    def surfaces(self) -> metrics.SurfaceDistances:
        """Distances between the surfaces, for several measures at once."""
        return metrics.surface_distances(self.mask, self.target, self.spacing)


@dataclass(frozen=True)
class Measure:
    """How an answer is scored.

    Attributes:
        title: in tables.
        compute: the score; one that is not finite is kept as None.
        decimals: that are kept.
        without_answer: the score where there is none.
        means: over what the report's first tables give its mean.
        volumes_only: whether images have no such score.
    """

    title: str
    compute: Callable[[Comparison], float]
    decimals: int = 6
    without_answer: float | None = 0.0
    means: tuple[Over, ...] = ()
    volumes_only: bool = False


# The first one says whether a set's mean declines, which cases are worst, and how many prompts are
# needed.
MEASURES: dict[str, Measure] = {
    "dice": Measure(
        "Dice", lambda pair: metrics.dice(pair.mask, pair.target), means=("sets", "objects")
    ),
    "nsd": Measure("NSD", lambda pair: pair.surfaces.nsd(TOLERANCE), means=("sets",)),
    "hd95": Measure(
        "HD95",
        lambda pair: pair.surfaces.hausdorff(95),
        decimals=3,
        without_answer=None,
        volumes_only=True,
    ),
}


def score_mask(mask: Mask | None, target: Mask, spacing: Sequence[float] | None) -> Scores:
    """The scores of an answer; where there is none those of no answer.

    Args:
        mask: the answer, or None.
        target: the truth.
        spacing: see `Comparison`.
    """
    if mask is None:
        return score_nothing(target.ndim)
    pair = Comparison(mask, target, spacing)
    found: Scores = {}
    for key, measure in measures_of(target.ndim).items():
        value = measure.compute(pair)
        found[key] = round(value, measure.decimals) if np.isfinite(value) else None
    return found


def score_nothing(ndim: int) -> Scores:
    """The scores where a model gave no answer."""
    return {key: measure.without_answer for key, measure in measures_of(ndim).items()}


def leave_open(ndim: int) -> Scores:
    """The scores of a round that is not scored."""
    return dict.fromkeys(measures_of(ndim))


def by_measure(rounds: Iterable[Scores]) -> dict[str, list[float | None]]:
    """Scores round by round as lists by measure."""
    found: dict[str, list[float | None]] = {}
    for scores in rounds:
        for key, value in scores.items():
            found.setdefault(key, []).append(value)
    return found


def measures_of(ndim: int) -> Mapping[str, Measure]:
    """The measures that images (2) or volumes (3) have."""
    return {k: m for k, m in MEASURES.items() if ndim == 3 or not m.volumes_only}
