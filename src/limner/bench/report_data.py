"""What a report of the benchmark holds, before it is drawn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from limner.bench._worst_cases import WorstCase
from limner.bench.rows import Row
from limner.bench.tables import Table

Grouped: TypeAlias = dict[str, dict[str, list[Row]]]  # `Row.task`, then model
Labels: TypeAlias = dict[tuple[str, str | None, str | None], str]

NUM_WORST_CASES = 6  # worst cases per model and protocol
BY_SLICES = (
    "By slices: models that work in 2D are told the box on the slice where the object is largest "
    "and the range of its slices, and every click on its slice; each time all that was said is "
    "carried to the other slices."
)


@dataclass(frozen=True)
class Chart:
    """Scores by number of prompts, or by something else.

    Attributes:
        protocol: charts of one protocol have one scale.
        title: protocol and sets.
        lines: scores after each prompt, by model.
        axis: what the scores go by.
        places: names of the places along it; numbers from 1 if None.
    """

    protocol: str
    title: str
    lines: dict[str, list[float]]
    axis: str = "prompts"
    places: list[str] | None = None


@dataclass(frozen=True)
class Report:
    """Everything that a page shows.

    Attributes:
        facts: what was run, and what to beware of, a sentence each.
        models: in the order in which they were asked.
        tables: in reading order.
        charts: likewise.
        worst_cases: drawn.
        rows: all rows of the runs.
    """

    facts: list[str]
    models: list[str]
    tables: list[Table]
    charts: list[Chart]
    worst_cases: list[WorstCase]
    rows: list[Row] = field(repr=False)
