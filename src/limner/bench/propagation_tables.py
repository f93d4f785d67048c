"""What rows of the protocol ``propagation`` say: tables, and Dice by the distance from what was
given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from limner.bench import statistics as stats
from limner.bench.rows import Row
from limner.bench.tables import ByProtocol, Table, interval

ByModel: TypeAlias = Mapping[str, Sequence[Row]]
Floats: TypeAlias = NDArray[np.float64]

BINS = (1, 2, 3, 4, 6, 9, 13, 19, 28)  # first distance of each; the last is open
AXIS = "distance from the given slice or frame"
COLUMNS = (
    *("frame", "distance", "truth_pixels", "answer_pixels"),
    *("frame_dice", "jaccard", "boundary_f", "frames_per_second"),
)
NOTE = (
    "Dice: of all scored slices or frames together. Frame, J, F, J&F: means over those where truth "
    "or answer is not empty, of Dice, of intersection over union, of the agreement of outlines "
    "within 0.008 of the diagonal (DAVIS), and of J and F."
)


def is_propagation_task(by_model: ByModel) -> bool:
    """Whether the rows are of this protocol."""
    return all(row.protocol == "propagation" for rows in by_model.values() for row in rows)


def dice(row: Row) -> float:
    """Of all scored frames together."""
    return stats.score(row, "dice", 0)


def frame_dice(row: Row) -> float:
    """Mean over scored frames where truth or answer is not empty; 1 where there are none."""
    size, both = _numbers(row, "truth") + _numbers(row, "answer"), _numbers(row, "both")
    return _mean_of(2 * both[size > 0] / size[size > 0])


def jaccard(row: Row) -> float:
    """J, likewise."""
    both = _numbers(row, "both")
    union = _numbers(row, "truth") + _numbers(row, "answer") - both
    return _mean_of(both[union > 0] / union[union > 0])


def boundary_f(row: Row) -> float:
    """F, likewise."""
    there = _numbers(row, "truth") + _numbers(row, "answer") > 0
    return _mean_of(_numbers(row, "f")[there])


def j_and_f(row: Row) -> float:
    """Mean of J and F."""
    return (jaccard(row) + boundary_f(row)) / 2


def frames_per_second(row: Row) -> float:
    """Of the propagation; NaN where there was none."""
    seconds = row.followed["carry_seconds"] if row.followed else 0
    return row.followed["num_written"] / seconds if row.followed and seconds else np.nan


MEASURES: dict[str, Callable[[Row], float]] = {
    "Dice": dice,
    "frame": frame_dice,
    "J": jaccard,
    "F": boundary_f,
    "J&F": j_and_f,
}


def tables(plain: ByProtocol) -> list[Table]:
    """What to read first."""
    return [overall(plain), by_distance(plain), speed(plain)] if plain else []


def overall(plain: ByProtocol) -> Table:
    """Means over sets, by standing."""
    body = []
    for task, by_model in plain.items():
        every = [row for rows in by_model.values() for row in rows]
        groups = [g for g in stats.GROUPS if stats.select_standing(every, g)]
        for group in ["all"] if len(groups) == 2 else groups:
            for model, rows in by_model.items():
                mine = stats.select_standing(rows, group)
                found = [stats.summarize(mine, value) for value in MEASURES.values()]
                cells = [interval(s.over_sets) if s else "" for s in found]
                body.append([task, group, model, str(len(mine)), *cells])
    return Table(
        "Propagation, mean over sets",
        ["protocol", "sets", "model", "objects", *MEASURES],
        body,
        f"{NOTE} In brackets: 95 % bootstrap interval over images or patients within sets.",
        num_words=3,
    )


def by_set(task: str, by_model: ByModel) -> Table:
    """Every set, a line for every model."""
    every = [row for rows in by_model.values() for row in rows]
    body = []
    for name in sorted({row.set_name for row in every}):
        for model, rows in by_model.items():
            mine = [row for row in rows if row.set_name == name]
            if not mine:
                continue
            frames = sum(len(_numbers(row, "frame")) for row in mine)
            cells = [f"{np.mean([value(row) for row in mine]):.3f}" for value in MEASURES.values()]
            given = np.mean([row.followed["given_dice"] for row in mine if row.followed])
            rates = [frames_per_second(row) for row in mine]
            rate = f"{np.nanmedian(rates):.1f}" if np.isfinite(rates).any() else ""
            body.append([name, model, str(len(mine)), str(frames), f"{given:.3f}", *cells, rate])
    return Table(
        f"Every set: {task}",
        ["set", "model", "objects", "scored", "given", *MEASURES, "frames/s"],
        body,
        f"{NOTE} Given: Dice of what the model made of the annotated ones, which are not scored. "
        "Frames/s: median.",
        num_words=2,
    )


def speed(plain: ByProtocol) -> Table:
    """Frames per second, seconds to the first answer, memory."""
    body = []
    for task, by_model in plain.items():
        for model, rows in by_model.items():
            rates = [r for r in map(frames_per_second, rows) if np.isfinite(r)]
            first = [row.seconds[0] for row in rows if row.seconds]
            peaks = [row.peak_mb for row in rows if row.peak_mb is not None]
            grown = [r.followed["grown_mb"] for r in rows if r.followed]
            grown = [g for g in grown if g is not None]
            cells = [_percentile(rates, q, ".1f") for q in (50, 5)]
            cells += [_percentile(first, q, ".2f") for q in (50, 95)]
            cells += [_percentile(peaks, q, ".0f") for q in (50, 100)]
            body.append([task, model, *cells, _percentile(grown, 95, ".0f")])
    columns = ["frames/s p50", "p5", "first s p50", "p95", "peak MB p50", "most", "grown MB p95"]
    return Table(
        "Propagation: speed and memory",
        ["protocol", "model", *columns],
        body,
        "Slices or frames a second of the propagation, reading them from the file included; "
        "seconds from the first prompt to the first carried answer; memory above that before the "
        "session, and at the end above that after the first answer (2^20 bytes).",
        num_words=2,
    )


def by_distance(plain: ByProtocol) -> Table:
    """Mean Dice over sets by the distance from the nearest given frame."""
    body = []
    for task, by_model in plain.items():
        rows_of = list(by_model.values())
        counts = _num_objects(rows_of[0])
        body.append([task, "(objects)", *(str(n) if n else "" for n in counts)])
        for model, rows in by_model.items():
            cells = [f"{x:.3f}" if np.isfinite(x) else "" for x in curve(rows)]
            body.append([task, model, *cells])
    return Table(
        "Dice by distance from the nearest given slice or frame",
        ["protocol", "model", *bin_names()],
        body,
        "Where the object is. Mean over objects of a set that reach so far, then over sets; long "
        "objects are not the same as short ones, so compare models, not columns.",
        num_words=2,
    )


def curve(rows: Sequence[Row]) -> list[float]:
    """Mean Dice in each of `BINS`: over the frames of an object, the objects of a set, the sets;
    NaN where no object reaches so far.
    """
    by_set: dict[str, list[Floats]] = {}
    for row in rows:
        by_set.setdefault(row.set_name, []).append(_binned(row))
    means = [_nan_mean(np.stack(found)) for found in by_set.values()]
    return [float(x) for x in _nan_mean(np.stack(means))]


def bin_names() -> list[str]:
    """Distances of each of `BINS` in words."""
    ends = [f"{b - 1}" for b in BINS[1:]]
    closed = [f"{a}" if f"{a}" == b else f"{a}-{b}" for a, b in zip(BINS, ends, strict=False)]
    return [*closed, f"{BINS[-1]}+"]


def marks_on_axis() -> list[str]:
    """The first distance of each of `BINS`."""
    return [*(f"{first}" for first in BINS[:-1]), f"{BINS[-1]}+"]


def worst_frame(row: Row) -> int:
    """The frame with the lowest Dice of those where the object has half its median area or more: at
    its ends a few pixels say little. Of equal ones the nearest to what was given. Where the object
    is nowhere else, the one with the largest answer.
    """
    truth, answer = _numbers(row, "truth"), _numbers(row, "answer")
    frames = _numbers(row, "frame").astype(int)
    if not truth.any():
        return int(frames[answer.argmax()])
    large = truth >= 0.5 * np.median(truth[truth > 0])
    scores = np.where(large, 2 * _numbers(row, "both") / np.maximum(truth + answer, 1), np.inf)
    return int(frames[np.lexsort((_numbers(row, "distance"), scores))[0]])


def flatten_row(row: Row) -> list[dict[str, Any]]:
    """One record per scored frame."""
    assert row.followed is not None
    names = ("frame", "distance", "truth", "answer", "both", "f")
    rate = frames_per_second(row)
    records = []
    for values in zip(*(row.followed[name] for name in names), strict=True):
        frame, distance, truth, answer, both, f = values
        size = truth + answer
        scores = (2 * both / size, both / (size - both)) if size else (1.0, 1.0)
        values = (frame, distance, truth, answer, *scores, f, rate if np.isfinite(rate) else None)
        records.append(dict(zip(COLUMNS, values, strict=True)))
    return records


def _binned(row: Row) -> Floats:
    truth = _numbers(row, "truth")
    there = truth > 0
    scores = 2 * _numbers(row, "both")[there] / (truth + _numbers(row, "answer"))[there]
    places = np.searchsorted(BINS, _numbers(row, "distance")[there], side="right") - 1
    found = [scores[places == k] for k in range(len(BINS))]
    return np.array([x.mean() if x.size else np.nan for x in found])


def _num_objects(rows: Sequence[Row]) -> list[int]:
    return [int(n) for n in np.isfinite([_binned(row) for row in rows]).sum(axis=0)]


def _nan_mean(values: Floats) -> Floats:
    """Means down the columns of what is no NaN; NaN, quietly, where there is nothing else."""
    known = np.isfinite(values)
    count = known.sum(axis=0)
    total = np.where(known, values, 0).sum(axis=0)
    return np.where(count, total / np.maximum(count, 1), np.nan)


def _numbers(row: Row, name: str) -> Floats:
    assert row.followed is not None
    return np.asarray(row.followed[name], dtype=np.float64)


def _mean_of(values: Floats) -> float:
    return float(values.mean()) if values.size else 1.0


def _percentile(values: Sequence[float], percent: float, form: str) -> str:
    return f"{np.percentile(values, percent):{form}}" if values else ""
