"""Tables of a report that only volumes have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from limner.bench import statistics as stats
from limner.bench.rows import Row
from limner.bench.scores import area_under_curve, gate_nsd
from limner.bench.tables import ByProtocol, Table, interval, milestones

NUM_CLICKS = 5  # that the challenge counts


def is_volumetric(by_model: Mapping[str, list[Row]]) -> bool:
    """Whether the conversations are about volumes."""
    return all(row.dimensions == 3 for rows in by_model.values() for row in rows)


def click_rounds(row: Row) -> slice | None:
    """The rounds that answer the five clicks; None where there were fewer."""
    first = 0 if row.protocol == "clicks" else 1
    found = slice(first, first + NUM_CLICKS)
    return found if len(row.dice) >= found.stop else None


def dsc_auc(row: Row) -> float:
    """Area under the Dice of the five answers to clicks; NaN where there were fewer."""
    rounds = click_rounds(row)
    return np.nan if rounds is None else area_under_curve(_dice(row)[rounds])


def nsd_auc(row: Row) -> float:
    """Likewise of NSD, 0 where the Dice is not above 0.2."""
    rounds = click_rounds(row)
    return np.nan if rounds is None else area_under_curve(_nsd(row)[rounds])


def challenge(plain: ByProtocol) -> Table:
    """The challenge's four numbers, object by object instead of case by case."""
    body = []
    for task, by_model in plain.items():
        for model, rows in by_model.items():
            found = [row for row in rows if click_rounds(row) is not None]
            cells = []
            for value in (dsc_auc, nsd_auc, _last(_dice), _last(_nsd)):
                summary = stats.summarize(found, value)
                cells.append("" if summary is None else interval(summary.over_sets))
            body.append([task, model, *cells])
    return Table(
        "Five clicks, as the CVPR 2025 challenge scores them",
        ["protocol", "model", "DSC_AUC", "NSD_AUC", "DSC_final", "NSD_final"],
        body,
        "Mean over sets. Areas are trapezoids over the five answers to clicks, 4 at most; NSD at "
        "2 mm counts as 0 where the Dice is not above 0.2. Every object by itself: the challenge "
        "asks about all of a volume at once (limner bench cvpr).",
        num_words=2,
    )


def by_set(task: str, by_model: Mapping[str, list[Row]]) -> Table:
    """Every set's numbers, a line for every model."""
    every = [row for rows in by_model.values() for row in rows]
    columns = milestones(task, max(len(row.dice) for row in every))
    body = []
    for name in sorted({row.set_name for row in every}):
        for model, rows in by_model.items():
            mine = [row for row in rows if row.set_name == name]
            if not mine:
                continue
            cells = [f"{np.mean([_at(row, k) for row in mine]):.3f}" for k in columns.values()]
            cells += [_mean(mine, value) for value in (dsc_auc, nsd_auc, _last(_nsd))]
            distances = [x for row in mine if (x := row.scores.get("hd95", [None])[-1]) is not None]
            cells.append(f"{np.median(distances):.1f}" if distances else "")
            body.append([name, model, str(len(mine)), *cells])
    return Table(
        f"Every set in full: {task}",
        ["set", "model", "objects", *columns, "DSC_AUC", "NSD_AUC", "NSD last", "HD95 last, mm"],
        body,
        "Dice after so many prompts, the areas over five clicks and the last NSD at 2 mm: means "
        "over objects; the median of the last HD95 where it is finite.",
        num_words=2,
    )


def memory(plain: ByProtocol) -> Table:
    """The most memory of a conversation above what there was when it began."""
    body = []
    for task, by_model in plain.items():
        for model, rows in by_model.items():
            peaks = [row.peak_mb for row in rows if row.peak_mb is not None]
            cells = [f"{np.percentile(peaks, q):.0f}" for q in (50, 95, 100)] if peaks else [""] * 3
            body.append([task, model, *cells])
    return Table(
        "Peak memory in MB",
        ["protocol", "model", "p50", "p95", "most"],
        body,
        "Of the process while it answers, above volume, labels and model when the conversation "
        "began (2^20 bytes; memory of a graphics card is not in it). The first conversation "
        "includes what a model prepares once.",
        num_words=2,
    )


def _dice(row: Row) -> list[float]:
    return [stats.score(row, "dice", k) for k in range(len(row.dice))]


def _nsd(row: Row) -> list[float]:
    scores = [stats.score(row, "nsd", k) for k in range(len(row.dice))]
    return [gate_nsd(nsd, dice) for nsd, dice in zip(scores, _dice(row), strict=True)]


def _last(values: Callable[[Row], list[float]]) -> Callable[[Row], float]:
    """The score after the fifth click, or after the last prompt where there were fewer."""

    def value(row: Row) -> float:
        rounds = click_rounds(row)
        return values(row)[-1 if rounds is None else rounds.stop - 1]

    return value


def _at(row: Row, number: int) -> float:
    return stats.score(row, "dice", min(number, len(row.dice) - 1))


def _mean(rows: Sequence[Row], value: Callable[[Row], float]) -> str:
    found = np.mean([value(row) for row in rows])
    return f"{found:.3f}" if np.isfinite(found) else ""
