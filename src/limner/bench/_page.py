"""A report as one HTML page that needs no other file."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape
from math import isfinite

from limner.bench._charts import legend, line_chart, scale_of
from limner.bench._worst_cases import WorstCase
from limner.bench.report_data import Report
from limner.bench.tables import Table

_LONG = 12  # rows from which on a table is folded up

# Okabe and Ito's colours, told apart with any kind of colour vision; lighter ones on a dark ground.
_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #63676d; --ground: #fff; --rule: #d9dce0;
  --c0: #0072b2; --c1: #c45500; --c2: #00805c; --c3: #a8507f; --c4: #1f9bd1; --c5: #a87b00;
  --c6: #444; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e7e9; --soft: #a0a5ab; --ground: #16181b;
  --rule: #34383d; --c0: #56b4e9; --c1: #ff8c42; --c2: #1fc99a; --c3: #e69ac4; --c4: #8ab8ff;
  --c5: #f0e442; --c6: #c8c8c8; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--ground);
  max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .4rem; }
.facts, .note, figcaption, .legend { color: var(--soft); font-size: .87rem; }
.facts { padding-left: 1.1rem; } .wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
th, td { padding: .22rem .7rem .22rem 0; text-align: right; border-bottom: 1px solid var(--rule);
  white-space: nowrap; }
th { color: var(--soft); font-weight: 600; } th.word, td.word { text-align: left; }
td.error { white-space: normal; min-width: 20rem; }
summary { cursor: pointer; font-weight: 600; font-size: 1.1rem; margin: 2rem 0 .4rem; }
.charts { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; } .charts > svg { width: 340px; }
svg text { font-size: 11px; fill: var(--soft); } svg .name { fill: var(--ink); font-weight: 600;
  font-size: 12px; }
svg .grid { stroke: var(--rule); } polyline, .key line { fill: none; stroke-width: 2; }
.dashed polyline, .key .dashed { stroke-dasharray: 5 4; }
.legend span { margin-right: 1.2rem; white-space: nowrap; } .key { width: 22px; height: 10px;
  margin-right: .35rem; }
.pictures { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); }
figure { margin: 0; } figure img { width: 100%; border-radius: 3px; }
.target { color: #00b070; font-weight: 600; } .answer { color: #e07b00; font-weight: 600; }
"""


def page(report: Report) -> str:
    """The report as HTML."""
    colours = "\n".join(
        f".m{k}, .m{k} polyline {{ stroke: var(--c{k}); }} .m{k} circle {{ fill: var(--c{k}); "
        "stroke: none; }"
        for k in range(7)
    )
    folded = [table for table in report.tables if len(table.rows) > _LONG]
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>limner bench</title><style>{_STYLE}{colours}</style></head><body>",
        "<h1>limner bench</h1>",
        f'<ul class="facts">{"".join(f"<li>{escape(fact)}</li>" for fact in report.facts)}</ul>',
        _charts(report),
        *(_table(table) for table in report.tables if table not in folded),
        *(
            f"<details><summary>{escape(table.title)}</summary>{_table(table, titled=False)}"
            "</details>"
            for table in folded
        ),
        _render_worst_cases(report.worst_cases),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _charts(report: Report) -> str:
    scores: dict[str, list[float]] = {}
    for chart in report.charts:
        known = (x for line in chart.lines.values() for x in line if isfinite(x))
        scores.setdefault(chart.protocol, []).extend(known)
    parts = []
    for axis in dict.fromkeys(chart.axis for chart in report.charts):
        drawn = "\n".join(
            line_chart(
                c.title, c.lines, report.models, scale_of(scores[c.protocol]), c.axis, c.places
            )
            for c in report.charts
            if c.axis == axis
        )
        title, note = "number of prompts", ""
        if axis != "prompts":
            title, note = axis, " Few objects reach far."
        parts.append(
            f"<h2>Dice by {escape(title)}</h2>"
            f'{legend(report.models)}<div class="charts">{drawn}</div>'
            '<p class="note">Mean over sets. Dashed: never looks at the picture.'
            f"{note}</p>"
        )
    return "\n".join(parts)


def _table(table: Table, *, titled: bool = True) -> str:
    heads = "".join(
        f"<th{_word(k, table)}>{escape(name)}</th>" for k, name in enumerate(table.header)
    )
    body = "".join(f"<tr>{_cells(cells, table)}</tr>" for cells in table.rows)
    title = f"<h2>{escape(table.title)}</h2>" if titled else ""
    if not table.rows:
        return f'{title}<p class="note">{escape(table.note)}</p>'
    return (
        f'{title}<div class="wide"><table><thead><tr>{heads}</tr></thead>'
        f'<tbody>{body}</tbody></table></div><p class="note">{escape(table.note)}</p>'
    )


def _cells(cells: Sequence[str], table: Table) -> str:
    """Cells of a row; the interval behind a mean is set in the colour of notes."""
    texts = (
        re.sub(r"(\[[-+., \d]+\])", r'<span class="note">\1</span>', escape(cell)) for cell in cells
    )
    return "".join(
        f'<td class="word error">{text}</td>'
        if table.header[k] == "error"
        else f"<td{_word(k, table)}>{text}</td>"
        for k, text in enumerate(texts)
    )


def _word(column: int, table: Table) -> str:
    return ' class="word"' if column < table.num_words else ""


def _render_worst_cases(cases: Sequence[WorstCase]) -> str:
    if not cases:
        return ""
    figures = "".join(
        f'<figure><img alt="" src="data:image/png;base64,{base64.b64encode(p.png).decode()}">'
        f"<figcaption>{escape(p.caption)}</figcaption></figure>"
        for p in cases
    )
    return (
        '<h2>Worst cases</h2><p class="note">The lowest last Dice of every model, one of a set. '
        '<span class="target">Green: target.</span> <span class="answer">Orange: answer.'
        "</span> Numbers: the rounds of clicks.</p>"
        f'<div class="pictures">{figures}</div>'
    )
