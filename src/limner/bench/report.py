"""Report of benchmark runs: tables, charts and the worst cases."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from limner import errors
from limner.atomic import atomic_bytes, atomic_path
from limner.bench import propagation_tables, tables, volume_tables
from limner.bench import statistics as stats
from limner.bench._worst_cases import worst_cases
from limner.bench.config import DISTURBANCES, PROTOCOLS
from limner.bench.measures import MEASURES
from limner.bench.propagation import describe_start
from limner.bench.report_data import BY_SLICES, NUM_WORST_CASES, Chart, Grouped, Labels, Report
from limner.bench.rows import Row, read_left_out, read_rows, read_run_config
from limner.bench.tables import Table
from limner.errors import FormatError

_MOST_LEFT_OUT = 12  # pictures that are named

_log = logging.getLogger(__name__)


def build_report(folders: Sequence[Path], *, num_cases: int = NUM_WORST_CASES) -> Report:
    """Put runs together.

    Where models were asked about different objects by one protocol, only those that all were asked
    about are compared.

    Args:
        folders: of `limner bench run`; finished or not.
        num_cases: worst cases per model and protocol; 0 for none.

    Raises:
        FormatError: a folder holds no run, or no run holds a row.
    """
    rows = _merged(folders)
    if not rows:
        listed = ", ".join(str(folder) for folder in folders)
        raise FormatError(f"There are no rows yet in {listed}; let limner bench run hold some.")
    labels = _labels(rows)
    facts = _facts(folders, rows)
    undisturbed = [row for row in rows if row.disturbance == "none"]
    plain = _grouped(_longest(undisturbed), labels)
    facts += _compare_same(plain)
    still, moving = _apart(plain)
    disturbed = {
        name: _grouped((r for r in rows if r.disturbance == name), labels)
        for name in DISTURBANCES
        if name != "none" and any(r.disturbance == name for r in rows)
    }
    return Report(
        facts,
        list(dict.fromkeys(labels[_identity(row)] for row in rows)),
        [
            *_tables(still),
            *propagation_tables.tables(moving),
            *([tables.robustness(_grouped(undisturbed, labels), disturbed)] if disturbed else []),
            tables.failures(rows, lambda row: labels[_identity(row)]),
            *_details(still),
            *(propagation_tables.by_set(*task) for task in moving.items()),
        ],
        [*_charts(still), *_distance_charts(moving)],
        worst_cases(folders, plain, num_cases) if num_cases else [],
        rows,
    )


def to_markdown(report: Report) -> str:
    """The report's facts and tables as Markdown."""
    parts = ["# limner bench", *(f"- {fact}" for fact in report.facts)]
    for table in report.tables:
        parts += ["", f"## {table.title}", ""]
        if table.rows:
            rule = ["---"] * table.num_words
            rule += ["---:"] * (len(table.header) - table.num_words)
            parts += [_line(cells) for cells in (table.header, rule, *table.rows)]
            parts.append("")
        parts.append(table.note)
    return "\n".join(parts) + "\n"


def write_html(report: Report, path: Path) -> None:
    """Write one page that needs no other file.

    Raises:
        FormatError: it cannot be written.
    """
    from limner.bench._page import page

    atomic_bytes(path, page(report).encode())


def write_table(report: Report, path: Path) -> None:
    """Write one line per round of every row as Parquet.

    Raises:
        MissingDependency: pyarrow is not installed.
        FormatError: it cannot be written.
    """
    pyarrow = errors.require("pyarrow", extra="bench", purpose="write a Parquet table")
    parquet = errors.require("pyarrow.parquet", extra="bench", purpose="write a Parquet table")
    with atomic_path(path) as temporary:
        parquet.write_table(pyarrow.Table.from_pylist(list(flatten_rows(report.rows))), temporary)


def flatten_rows(rows: Iterable[Row]) -> Iterable[dict[str, object]]:
    """One flat record per round of every row, of the protocol ``propagation`` one per scored frame;
    `seconds` is None where no prompt was needed, and so is what a protocol does not have.
    """
    left_out = {"scores", "seconds", "prompts", "answer", "examples", "followed"}
    nothing = dict.fromkeys(propagation_tables.COLUMNS)
    for row in rows:
        facts = {name: value for name, value in vars(row).items() if name not in left_out}
        for k in range(len(row.dice)):
            scores: dict[str, object] = {"round": k + 1}
            scores |= {key: _at(row.scores.get(key, ()), k) for key in MEASURES}
            scores["seconds"] = _at(row.seconds, k)
            for frame in [nothing] if row.followed is None else propagation_tables.flatten_row(row):
                yield {**facts, "num_examples": len(row.examples), **scores, **frame}


def _tables(plain: Grouped) -> list[Table]:
    """What to read first."""
    if not plain:
        return []
    solid = {t: by_model for t, by_model in plain.items() if volume_tables.is_volumetric(by_model)}
    return [
        *(
            tables.overall(plain, key, over=over)
            for over in ("sets", "objects")
            for key, measure in MEASURES.items()
            if over in measure.means and all(key in row.scores for row in _rows_of(plain))
        ),
        tables.curves(plain),
        tables.effort(plain),
        tables.speed(plain),
        *([volume_tables.challenge(solid), volume_tables.memory(solid)] if solid else []),
    ]


def _details(plain: Grouped) -> list[Table]:
    """Protocol by protocol."""
    makers = (tables.by_modality, tables.by_set, tables.steadiness)
    return [
        *(make(protocol, by_model) for make in makers for protocol, by_model in plain.items()),
        *(
            volume_tables.by_set(protocol, by_model)
            for protocol, by_model in plain.items()
            if volume_tables.is_volumetric(by_model)
        ),
    ]


def _apart(plain: Grouped) -> tuple[Grouped, Grouped]:
    """Conversations, and propagations."""
    moves = propagation_tables.is_propagation_task
    return (
        {task: by_model for task, by_model in plain.items() if not moves(by_model)},
        {task: by_model for task, by_model in plain.items() if moves(by_model)},
    )


def _distance_charts(plain: Grouped) -> list[Chart]:
    """Dice by the distance from what was given: all sets, and each of them."""
    charts = []
    for task, by_model in plain.items():
        names = sorted({row.set_name for rows in by_model.values() for row in rows})
        for name in ["all sets", *(names if len(names) > 1 else [])]:
            lines = {
                model: propagation_tables.curve(mine)
                for model, rows in by_model.items()
                if (mine := [r for r in rows if name in (r.set_name, "all sets")])
            }
            charts.append(
                Chart(
                    task,
                    f"{task.removeprefix('propagation, ')}: {name}",
                    lines,
                    propagation_tables.AXIS,
                    propagation_tables.marks_on_axis(),
                )
            )
    return charts


def _charts(plain: Grouped) -> list[Chart]:
    charts = []
    for protocol, by_model in plain.items():
        every = [row for rows in by_model.values() for row in rows]
        standings = [g for g in stats.GROUPS if stats.select_standing(every, g)]
        for group in standings if len(standings) > 2 else ["all"]:
            lines = {
                model: [float(x) for x in stats.curve(mine, "dice")]
                for model, rows in by_model.items()
                if (mine := stats.select_standing(rows, group))
            }
            charts.append(Chart(protocol, f"{protocol}: {group} sets", lines))
    return charts


def _merged(folders: Sequence[Path]) -> list[Row]:
    """All rows; of a conversation that two folders hold, the first."""
    found: dict[tuple[object, ...], Row] = {}
    for folder in folders:
        read_run_config(folder)
        for row in read_rows(folder):
            key = (row.key, row.way, row.task, row.disturbance, row.split, row.seed, len(row.dice))
            found.setdefault(key, row)
    return list(found.values())


def _longest(rows: Iterable[Row]) -> list[Row]:
    """Of runs that differ in their number of rounds only, the rows with the most."""
    found: dict[tuple[object, ...], Row] = {}
    for row in rows:
        key = (*_identity(row), row.task, *stats.case_key(row))
        if key not in found or len(row.dice) > len(found[key].dice):
            found[key] = row
    return list(found.values())


def _identity(row: Row) -> tuple[str, str | None, str | None]:
    return row.model, row.weights_sha256, row.way


def _labels(rows: Sequence[Row]) -> Labels:
    """Names of models; with the beginning of the hash where one name had several weights, and a
    word where volumes were said to them slice by slice.
    """
    hashes: dict[str, set[str | None]] = {}
    for row in rows:
        hashes.setdefault(row.model, set()).add(row.weights_sha256)
    return {
        (model, sha, way): (model if len(hashes[model]) == 1 else f"{model} ({_short(sha)})")
        + (", by slices" if way == "slices" else "")
        for model, sha, way in map(_identity, rows)
    }


def _short(sha: str | None) -> str:
    return (sha or "no weights")[:8]


def _grouped(rows: Iterable[Row], labels: Labels) -> Grouped:
    order = list(PROTOCOLS)
    found: Grouped = {}
    for row in sorted(rows, key=lambda r: (order.index(r.protocol), r.examples_asked or 0, r.task)):
        by_model = found.setdefault(row.task, {})
        by_model.setdefault(labels[_identity(row)], []).append(row)
    return found


def _compare_same(plain: Grouped) -> list[str]:
    """Keep only what all models of a protocol were asked, and say so where that drops rows."""
    facts = []
    for protocol, by_model in plain.items():
        common = stats.common_cases(by_model)
        most = max(len({stats.case_key(row) for row in rows}) for rows in by_model.values())
        if len(common) == most:
            continue
        if not common:
            facts.append(f"{protocol}: the models share no object; do not compare them.")
            continue
        for rows in by_model.values():
            rows[:] = [row for row in rows if stats.case_key(row) in common]
        facts.append(
            f"{protocol}: only the {len(common)} cases that all models were asked about count "
            f"(one was asked about {most})."
        )
    return facts


def _facts(folders: Sequence[Path], rows: Sequence[Row]) -> list[str]:
    configs = [read_run_config(folder) for folder in folders]
    sets, images = {r.set_name for r in rows}, {(r.set_name, r.stem) for r in rows}
    objects = {(r.set_name, r.stem, r.object_id) for r in rows}
    weights = {f"{r.model}: {r.weights_sha256}" for r in rows if r.weights_sha256}
    dimensions = {r.dimensions for r in rows}
    what = " and ".join({2: "pictures", 3: "volumes"}[n] for n in sorted(dimensions))
    facts = [
        f"{len(rows)} conversations about {len(objects)} objects in {len(images)} {what} of "
        f"{len(sets)} sets; split {', '.join(sorted({c.split for c in configs}))}; seed "
        f"{', '.join(sorted({str(c.seed) for c in configs}))}; limner "
        f"{', '.join(sorted({r.version for r in rows}))}.",
        "Sets are seen (models may be trained on other images of the set), unseen (on nothing "
        "like it) or other (neither is promised).",
    ]
    if 2 in dimensions:
        facts.append("NSD: share of both outlines within 2 pixels of the other, by length.")
    facts += _rules_of_propagation(folders)
    if any(row.dimensions == 3 and row.followed is None for row in rows):
        facts.append("NSD in volumes: share of both surfaces within 2 mm of the other, by area.")
    if any(row.way == "slices" for row in rows):
        facts.append(BY_SLICES)
    caps = {(c.limit, c.objects) for c in configs}
    for limit, most in sorted(caps, key=str):
        if limit or most:
            facts.append(
                f"Not all were asked about: pictures per set {limit or 'all'}, objects per "
                f"picture {most or 'all'}, evenly spread."
            )
    for protocol in PROTOCOLS:
        if any(row.protocol == protocol for row in rows):
            facts.append(f"Protocol {protocol}: {PROTOCOLS[protocol]}.")
    for name in sorted({row.disturbance for row in rows} - {"none"}):
        facts.append(f"Disturbance {name}: {DISTURBANCES[name]}.")
    facts += [f"Weights of {line}." for line in sorted(weights)]
    return list(dict.fromkeys([*facts, *_shown(rows), *_left_out(folders)]))


def _rules_of_propagation(folders: Sequence[Path]) -> list[str]:
    """What is given and what is scored, of the runs of that protocol."""
    configs = [c for c in map(read_run_config, folders) if c.protocol == "propagation"]
    return [
        f"Given of every object: {describe_start(c)}, in the middle of equal parts of the slices "
        f"or frames that it is on; scored: all other annotated ones from its first to its last and "
        f"{c.margin} beyond."
        for c in configs
    ]


def _shown(rows: Sequence[Row]) -> list[str]:
    """Whether there were as many examples as asked for."""
    facts = []
    for task in sorted({r.task for r in rows if r.examples_asked}):
        mine = [row for row in rows if row.task == task]
        counts = [len(row.examples) for row in mine]
        fewer = sum(len(row.examples) < (row.examples_asked or 0) for row in mine)
        if fewer:
            facts.append(
                f"{task}: {fewer} of {len(counts)} conversations had fewer, {min(counts)} at "
                "least: no more pictures hold the label."
            )
    return facts


def _left_out(folders: Sequence[Path]) -> list[str]:
    lines: dict[str, None] = {}
    for folder in folders:
        for fact in read_left_out(folder):
            one = f", object {fact['object']}" if "object" in fact else ""
            lines[f"Left out: {fact['set']} {fact['stem']}{one}: {fact['reason']}"] = None
    facts = list(lines)[:_MOST_LEFT_OUT]
    if len(lines) > _MOST_LEFT_OUT:
        facts.append(f"Left out: {len(lines) - _MOST_LEFT_OUT} more, see left_out.jsonl.")
    return facts


def _rows_of(plain: Grouped) -> Iterable[Row]:
    return (row for by_model in plain.values() for rows in by_model.values() for row in rows)


def _at(values: Sequence[float | None], place: int) -> float | None:
    """A value of a list, None beyond its end."""
    return values[place] if place < len(values) else None


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
