"""Line charts as SVG text, coloured by the page's style sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

WIDTH, HEIGHT = 340, 240  # of the drawing, in its own units
LEFT, RIGHT, TOP, BOTTOM = 38, 10, 22, 34
NUM_COLOURS = 7
BLIND = ("baseline/", "classical/copy")  # models that never look at the picture


def line_chart(
    title: str,
    lines: Mapping[str, Sequence[float]],
    order: Sequence[str],
    limits: tuple[float, float],
    axis: str = "prompts",
    places: Sequence[str] | None = None,
) -> str:
    """Scores by number of prompts, or by something else.

    Args:
        title: above the chart.
        lines: scores 0…1 after each prompt, by model.
        order: all models, which fixes their colours across charts.
        limits: lowest and highest score of the scale, see `scale_of`.
        axis: what the scores go by.
        places: names along it; numbers from 1 if None. A score that is NaN is left out.
    """
    low, high = limits
    most = max(len(line) for line in lines.values())
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        f'<text class="name" x="{LEFT}" y="14">{escape(title)}</text>',
    ]
    for tick in np.arange(low, high + 0.01, _step(low, high)):
        y = _y(float(tick), low, high)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{tick:.1f}</text>')
    for number in _ticks(most):
        x, name = _x(number - 1, most), number if places is None else places[number - 1]
        parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{name}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(axis)}</text>')
    for model in order:
        if model in lines:
            parts.append(_line(model, lines[model], order.index(model), most, (low, high)))
    return "\n".join([*parts, "</svg>"])


def legend(order: Sequence[str]) -> str:
    """The models with their colours, as HTML."""
    entries = (
        f'<span><svg viewBox="0 0 22 10" class="key"><line class="{_classes(m, k)}" x1="0" '
        f'x2="22" y1="5" y2="5"/></svg>{escape(m)}</span>'
        for k, m in enumerate(order)
    )
    return f'<p class="legend">{" ".join(entries)}</p>'


def _line(
    model: str, line: Sequence[float], number: int, most: int, limits: tuple[float, float]
) -> str:
    known = [(k, value) for k, value in enumerate(line) if np.isfinite(value)]
    points = [(_x(k, most), _y(value, *limits)) for k, value in known]
    path = " ".join(f"{x},{y}" for x, y in points)
    dots = "".join(f'<circle cx="{x}" cy="{y}" r="2.6"/>' for x, y in points)
    values_text = (f"{value:.3f}" if np.isfinite(value) else "–" for value in line)
    tip = f"{model}: {', '.join(values_text)}"
    return (
        f'<g class="{_classes(model, number)}"><title>{escape(tip)}</title>'
        f'<polyline points="{path}"/>{dots}</g>'
    )


def _classes(model: str, number: int) -> str:
    """Baselines, which never look at the picture, are dashed; so are colours used again."""
    dashed = model.startswith(BLIND) or number >= NUM_COLOURS
    return f"m{number % NUM_COLOURS}{' dashed' if dashed else ''}"


def scale_of(values: Sequence[float]) -> tuple[float, float]:
    """Whole tenths around scores (even ones where they are far apart), at least three apart."""
    low, high = np.floor(min(values) * 10) / 10, np.ceil(max(values) * 10) / 10
    low, high = max(0.0, min(low, high - 0.3)), min(1.0, max(high, low + 0.3))
    step = _step(low, high)
    return round(np.floor(low / step + 1e-6) * step, 1), round(min(1.0, high), 1)


def _step(low: float, high: float) -> float:
    return 0.1 if high - low < 0.65 else 0.2


def _ticks(most: int) -> list[int]:
    step = max(1, -(-most // 10))
    return list(range(1, most + 1, step))


def _x(place: int, most: int) -> float:
    room = WIDTH - LEFT - RIGHT - 16
    return round(LEFT + 8 + (room * place / (most - 1) if most > 1 else room / 2), 1)


def _y(value: float, low: float, high: float) -> float:
    room = HEIGHT - TOP - BOTTOM - 8
    return round(HEIGHT - BOTTOM - room * (value - low) / (high - low), 1)
