"""Statistics of benchmark rows: means with intervals, curves, declines, drops under disturbance.

Two means of every score: over sets, each counting the same however many objects it has, and over
objects. Intervals are 95 % bootstrap percentiles: within every set its clusters (images, or
patients where the set names them) are drawn anew, all objects of a cluster together. The sets
themselves stay, so an interval says how sure the number is for these sets, not for other ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from limner.bench.rows import Row

Floats: TypeAlias = NDArray[np.float64]

NUM_RESAMPLES = 1000
MIN_DECLINE = 1e-4  # of a mean Dice, that is called one
GROUPS: tuple[str, ...] = ("all", "seen", "unseen", "other")


@dataclass(frozen=True)
class Mean:
    """A mean with its 95 % interval.

    Attributes:
        value: the mean.
        low: 2.5th percentile of the resampled means.
        high: 97.5th percentile.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """One number of many rows.

    Attributes:
        over_sets: mean of the sets' means.
        over_objects: mean of all rows.
        num_sets: how many sets.
        num_rows: how many rows.
    """

    over_sets: Mean
    over_objects: Mean
    num_sets: int
    num_rows: int


def summarize(
    rows: Sequence[Row], value: Callable[[Row], float], *, seed: int = 0
) -> Summary | None:
    """Both means of a number of each row; None where there are no rows.

    Args:
        rows: of any sets.
        value: the number of a row.
        seed: of the resampling.
    """
    if not rows:
        return None
    rng = np.random.default_rng(seed)
    set_means, set_sums, set_counts = [], [], []
    clusters: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        clusters.setdefault(row.set_name, {}).setdefault(row.group, []).append(value(row))
    for name in sorted(clusters):
        sums = np.array([sum(values) for values in clusters[name].values()])
        counts = np.array([len(values) for values in clusters[name].values()])
        # Times that each cluster is drawn; the first line is the data as they are.
        drawn = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), NUM_RESAMPLES)
        drawn = np.vstack([np.ones(len(sums), dtype=drawn.dtype), drawn])
        set_sums.append(drawn @ sums)
        set_counts.append(drawn @ counts)
        set_means.append(set_sums[-1] / set_counts[-1])
    over_objects = np.sum(set_sums, axis=0) / np.sum(set_counts, axis=0)
    return Summary(
        _interval(np.mean(set_means, axis=0)),
        _interval(over_objects),
        len(clusters),
        len(rows),
    )


def select_standing(rows: Iterable[Row], group: str) -> list[Row]:
    """The rows of sets of a standing; ``"all"`` keeps every row."""
    return [row for row in rows if group in ("all", row.standing)]


def score(row: Row, measure: str, number: int) -> float:
    """A row's score after a round, counted from 0; -1 is the last. Must be defined there."""
    value = row.scores[measure][number]
    assert value is not None
    return value


def curve(rows: Sequence[Row], measure: str) -> Floats:
    """Mean over sets after each round; NaN-free for rows of undisturbed conversations.

    Rows of fewer rounds than the longest keep their last value.
    """
    length = max(len(row.dice) for row in rows)
    by_set: dict[str, list[list[float]]] = {}
    for row in rows:
        values = [score(row, measure, k) for k in range(len(row.dice))]
        values += values[-1:] * (length - len(values))
        by_set.setdefault(row.set_name, []).append(values)
    means: Floats = np.mean([np.mean(values, axis=0) for values in by_set.values()], axis=0)
    return means


@dataclass(frozen=True)
class Decline:
    """Where a set's mean Dice falls from one round to the next, most.

    Attributes:
        set_name: of the set.
        after_round: the prompt, from 1, after whose answer the mean was higher.
        drop: by how much it fell at the next one.
    """

    set_name: str
    after_round: int
    drop: float


def find_declines(rows: Sequence[Row]) -> list[Decline]:
    """The largest fall of every set's mean Dice whose mean falls at all, largest first."""
    found = []
    for name in sorted({row.set_name for row in rows}):
        steps = np.diff(curve([row for row in rows if row.set_name == name], "dice"))
        if steps.size and steps.min() <= -MIN_DECLINE:
            largest = int(steps.argmin())
            found.append(Decline(name, largest + 1, float(-steps[largest])))
    return sorted(found, key=lambda fall: -fall.drop)


def case_key(row: Row) -> tuple[Any, ...]:
    """What was asked, whoever was asked: rows of one key can be compared."""
    return (row.set_name, row.stem, row.object_id, row.annotator, row.split, row.seed)


def paired_drops(
    plain: Sequence[Row], disturbed: Sequence[Row]
) -> tuple[list[Row], dict[tuple[Any, ...], float]]:
    """How much the last Dice falls under a disturbance, object by object.

    Args:
        plain: undisturbed rows of a model and protocol.
        disturbed: rows of the same with one disturbance.

    Returns:
        The disturbed rows that have an undisturbed partner with as many rounds, and by `case_key`
        the partner's last Dice less the row's.
    """
    partners = {(*case_key(row), len(row.dice)): row for row in plain}
    pairs, lost = [], {}
    for row in disturbed:
        partner = partners.get((*case_key(row), len(row.dice)))
        if partner is not None:
            pairs.append(row)
            lost[case_key(row)] = score(partner, "dice", -1) - score(row, "dice", -1)
    return pairs, lost


def common_cases(rows_by_model: dict[str, list[Row]]) -> set[tuple[Any, ...]]:
    """The cases that every model was asked about."""
    cases_by_model = [{case_key(row) for row in rows} for rows in rows_by_model.values()]
    return set.intersection(*cases_by_model) if cases_by_model else set()


def worst_rows(rows: Sequence[Row], count: int) -> list[Row]:
    """The rows with the lowest last Dice, one of a set, so that they tell different stories."""
    chosen: dict[str, Row] = {}
    for row in sorted(rows, key=lambda r: (score(r, "dice", -1), r.key[2:5])):
        chosen.setdefault(row.set_name, row)
    return list(chosen.values())[:count]


def _interval(resampled: Floats) -> Mean:
    """Of resampled means whose first is the mean itself."""
    low, high = np.percentile(resampled[1:], (2.5, 97.5))
    return Mean(float(resampled[0]), float(low), float(high))
