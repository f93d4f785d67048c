"""The tables of a report, from rows; cells are text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from limner.bench import statistics as stats
from limner.bench.measures import MEASURES
from limner.bench.rows import Row
from limner.bench.statistics import GROUPS, Mean

Rows: TypeAlias = Sequence[Row]
ByProtocol: TypeAlias = Mapping[str, Mapping[str, list[Row]]]  # `Row.task`, then model

TARGETS = (0.80, 0.85, 0.90)  # Dice that prompts are counted to
_CORRECTIONS = (0, 1, 3, 5)  # after a first prompt that is no click
_CLICKS = (1, 3, 5, 8)  # of the protocol of clicks alone
_FIRST_WORDS = {"box": "box", "mixed": "first", "scribbles": "strokes"}


@dataclass(frozen=True)
class Table:
    """A table as text.

    Attributes:
        title: one line.
        header: names of the columns.
        rows: cells, as many in each as columns.
        note: what the numbers are.
        num_words: leading columns that hold words; the others hold numbers.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]] = field(repr=False)
    note: str = ""
    num_words: int = 1


def milestones(protocol: str, num_rounds: int) -> dict[str, int]:
    """Columns of a protocol (`Row.task`): a name and the round, from 0, that it shows."""
    protocol, _, _ = protocol.partition(", 3D")
    if protocol == "clicks":
        shown = sorted({n for n in _CLICKS if n <= num_rounds} | {num_rounds})
        return {f"{n} click{'s' if n > 1 else ''}": n - 1 for n in shown}
    first = _FIRST_WORDS.get(protocol, protocol)
    shown = sorted({n for n in _CORRECTIONS if n < num_rounds} | {num_rounds - 1})
    return {f"{first} + {n}" if n else first: n for n in shown}


def overall(plain: ByProtocol, measure: str, *, over: str) -> Table:
    """Means after a few numbers of prompts, for all sets and by standing.

    Args:
        plain: undisturbed rows.
        measure: which score, a key of `MEASURES`.
        over: ``"sets"`` or ``"objects"``: what counts the same.
    """
    columns = [
        (protocol, name, number)
        for protocol, by_model in plain.items()
        for name, number in milestones(protocol, _num_rounds(by_model)).items()
    ]
    every = [row for by_model in plain.values() for rows in by_model.values() for row in rows]
    groups = [g for g in GROUPS if stats.select_standing(every, g)]
    groups = ["all"] if len(groups) == 2 else groups  # one standing only: the same numbers twice
    body = []
    for group in groups:
        for model in _models(plain):
            cells = []
            for protocol, _, number in columns:
                rows = stats.select_standing(plain[protocol].get(model, ()), group)
                summary = stats.summarize(rows, _after(measure, number))
                if summary is None:
                    cells.append("")
                    continue
                mean = summary.over_sets if over == "sets" else summary.over_objects
                cells.append(interval(mean))
            body.append([group, model, *cells])
    counts = "; ".join(
        f"{protocol}: " + ", ".join(filter(None, (_counted(by_model, group) for group in groups)))
        for protocol, by_model in plain.items()
    )
    return Table(
        f"{MEASURES[measure].title}, mean over {over}",
        ["sets", "model", *(name for _, name, _ in columns)],
        body,
        f"{counts}. In brackets: 95 % bootstrap interval over images or patients within sets.",
        num_words=2,
    )


def by_set(protocol: str, by_model: Mapping[str, list[Row]]) -> Table:
    """Dice of every set, after the first and after the last prompt."""
    return _grouped(f"Every set: {protocol}", "set", by_model, lambda row: row.set_name)


def by_modality(protocol: str, by_model: Mapping[str, list[Row]]) -> Table:
    """Dice of every modality, its sets counting the same, after the first and the last prompt."""
    return _grouped(f"Every modality: {protocol}", "modality", by_model, lambda row: row.modality)


def curves(plain: ByProtocol) -> Table:
    """Mean Dice over sets after each prompt."""
    longest = max(_num_rounds(by_model) for by_model in plain.values())
    body = []
    for protocol, by_model in plain.items():
        for model, rows in by_model.items():
            values = [f"{x:.3f}" for x in stats.curve(rows, "dice")]
            body.append([protocol, model, *values, *[""] * (longest - len(values))])
    return Table(
        "Dice by number of prompts",
        ["protocol", "model", *(str(n) for n in range(1, longest + 1))],
        body,
        "Mean over sets. A user who sees nothing wrong stops; the last answer then stands.",
        num_words=2,
    )


def effort(plain: ByProtocol) -> Table:
    """Prompts needed to reach a Dice, and how many conversations never do."""
    body = []
    for protocol, by_model in plain.items():
        for model, rows in by_model.items():
            cells = []
            for target in TARGETS:
                needed = [_prompts_to(row, target) for row in rows]
                missed = np.mean([n > len(r.dice) for n, r in zip(needed, rows, strict=True)])
                spent = [min(n, len(r.dice)) for n, r in zip(needed, rows, strict=True)]
                cells.append(f"{np.mean(spent):.2f} ({missed:.0%} never)")
            body.append([protocol, model, *cells])
    return Table(
        "Prompts to reach a Dice",
        ["protocol", "model", *(f"{target:.2f}" for target in TARGETS)],
        body,
        "Mean over objects; a conversation that never gets there counts as all its prompts.",
        num_words=2,
    )


def steadiness(protocol: str, by_model: Mapping[str, list[Row]]) -> Table:
    """Whether the mean Dice of a set ever falls from one prompt to the next."""
    found = {
        model: {f.set_name: f for f in stats.find_declines(rows)}
        for model, rows in by_model.items()
    }
    names = sorted({row.set_name for rows in by_model.values() for row in rows})
    body = []
    for name in names:
        body.append(
            [name]
            + [
                _fallen(fall.drop, fall.after_round) if fall else "no"
                for fall in (found[model].get(name) for model in by_model)
            ]
        )
    cells = []
    for model, rows in by_model.items():
        steps = np.diff(stats.curve(rows, "dice"))
        least = float(steps.min()) if steps.size else 0.0
        fallen = _fallen(-least, int(steps.argmin()) + 1) if least <= -stats.MIN_DECLINE else "no"
        cells.append(f"{fallen}; {len(found[model])} of {len(names)} sets fall")
    return Table(
        f"Does the mean ever fall with another prompt? {protocol}",
        ["set", *by_model],
        [*body, ["mean over sets", *cells]],
        "The largest fall of the set's mean Dice, and between which prompts; less than 0.0001 is "
        "none.",
    )


def speed(plain: ByProtocol) -> Table:
    """Seconds per prompt."""
    body = []
    for protocol, by_model in plain.items():
        for model, rows in by_model.items():
            first = [row.seconds[0] for row in rows if row.seconds]
            later = [x for row in rows for x in row.seconds[1:]]
            cells = [_percentile(values, q) for values in (first, later) for q in (50, 95)]
            body.append([protocol, model, *cells])
    return Table(
        "Seconds per prompt",
        ["protocol", "model", "first p50", "first p95", "later p50", "later p95"],
        body,
        "Wall clock of one add and predict on the machine of the run; the first one includes "
        "looking at the picture.",
        num_words=2,
    )


def robustness(plain: ByProtocol, disturbed: Mapping[str, ByProtocol]) -> Table:
    """What every disturbance costs against the undisturbed conversation about the same objects."""
    body = []
    for name, by_protocol in disturbed.items():
        for protocol, by_model in by_protocol.items():
            for model, rows in by_model.items():
                pairs, lost = stats.paired_drops(plain.get(protocol, {}).get(model, ()), rows)
                drop = stats.summarize(pairs, lambda row, lost=lost: lost[stats.case_key(row)])  # type: ignore[misc]
                after = stats.summarize(pairs, _after("dice", -1))
                if drop is None or after is None:
                    body.append([name, protocol, model, "0", "", "", "no undisturbed run"])
                    continue
                before = after.over_sets.value + drop.over_sets.value
                means = [f"{before:.3f}", f"{after.over_sets.value:.3f}"]
                cells = [str(len(pairs)), *means, interval(drop.over_sets, signed=True)]
                body.append([name, protocol, model, *cells])
    return Table(
        "Robustness",
        ["disturbance", "protocol", "model", "objects", "undisturbed", "disturbed", "drop"],
        body,
        "Dice after the last prompt, mean over sets, of the objects asked about both ways.",
        num_words=3,
    )


def failures(every: Rows, label: Callable[[Row], str]) -> Table:
    """Conversations in which a model raised, by message."""
    totals = Counter((label(r), r.task, r.disturbance) for r in every)
    failed = Counter(
        (label(r), r.task, r.disturbance, r.error) for r in every if r.error is not None
    )
    body = [
        [
            model,
            protocol,
            disturbance,
            str(error),
            f"{count} of {totals[model, protocol, disturbance]}",
        ]
        for (model, protocol, disturbance, error), count in failed.most_common(20)
    ]
    return Table(
        "Failures",
        ["model", "protocol", "disturbance", "error", "conversations"],
        body,
        f"{sum(failed.values())} of {len(every)} conversations failed; they count as 0 from the "
        "round on in which the model failed.",
        num_words=4,
    )


def interval(mean: Mean, *, signed: bool = False) -> str:
    """A mean with its interval, as text; alone where there was nothing to draw anew."""
    form = "+.3f" if signed else ".3f"
    value, low, high = (f"{round(x, 3) + 0.0:{form}}" for x in (mean.value, mean.low, mean.high))
    return value if mean.low == mean.high else f"{value} [{low}, {high}]"


def _fallen(drop: float, after: int) -> str:
    return f"-{drop:.4f} ({after} to {after + 1})"


def _grouped(
    title: str, what: str, by_model: Mapping[str, list[Row]], key: Callable[[Row], str]
) -> Table:
    every = [row for rows in by_model.values() for row in rows]
    standings = {key(row): row.standing for row in every}
    body = []
    for name in sorted({key(row) for row in every}):
        cells, counts = [], []
        for rows in by_model.values():
            mine = [row for row in rows if key(row) == name]
            counts.append(len(mine))
            values = [float(x) for x in stats.curve(mine, "dice")] if mine else []
            cells += [f"{values[0]:.3f}", f"{values[-1]:.3f}"] if values else ["", ""]
        facts = [standings[name]] if what == "set" else []
        body.append([name, *facts, str(max(counts)), *cells])
    facts = ["standing"] if what == "set" else []
    columns = [f"{model}: {end}" for model in by_model for end in ("first", "last")]
    return Table(
        title,
        [what, *facts, "objects", *columns],
        body,
        "Dice after the first and after the last prompt.",
        num_words=1 + len(facts),
    )


def _after(measure: str, number: int) -> Callable[[Row], float]:
    """The score after a round; of a shorter conversation the last."""
    return lambda row: stats.score(row, measure, min(number, len(row.dice) - 1))


def _prompts_to(row: Row, target: float) -> int:
    """Prompts until the Dice is `target`; one more than there were if never."""
    reached = [k for k in range(len(row.dice)) if stats.score(row, "dice", k) >= target]
    return reached[0] + 1 if reached else len(row.dice) + 1


def _models(plain: ByProtocol) -> list[str]:
    return list(dict.fromkeys(model for by_model in plain.values() for model in by_model))


def _num_rounds(by_model: Mapping[str, list[Row]]) -> int:
    return max(len(row.dice) for rows in by_model.values() for row in rows)


def _counted(by_model: Mapping[str, list[Row]], group: str) -> str:
    rows = max((stats.select_standing(rows, group) for rows in by_model.values()), key=len)
    if not rows:
        return ""
    num_sets = len({row.set_name for row in rows})
    sets, objects = "set" if num_sets == 1 else "sets", "object" if len(rows) == 1 else "objects"
    return f"{group} {num_sets} {sets}, {len(rows)} {objects}"


def _percentile(values: Sequence[float], percent: float) -> str:
    return f"{np.percentile(values, percent):.3f}" if values else ""
