"""Layout of panels in one rendering, and the legend below them: objects with names and sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw

from limner.colors import color_of
from limner.io.image import Image
from limner.io.labels import Labels, count_labels
from limner.render.panel import BACKDROP, Pixels, draw_text, font, text_size

Array = NDArray[Any]

GAP = 8  # pixels between panels
_MOST_LEGEND = 12  # objects


def count_objects(labels: Any, array: Array, frame: int | None) -> Mapping[int, int]:
    """Pixels per object, overlaps counted for each where the segmentation knows them."""
    if frame is None and isinstance(labels, Labels):
        return labels.sizes()
    if isinstance(labels, Labels):
        return {i: n for i in labels.ids if (n := int(labels.mask(i)[frame].sum()))}
    return count_labels(array if frame is None else array[frame])


def list_legend(
    image: Image, sizes: Mapping[int, int], names: Mapping[int, str], frame: int | None
) -> list[tuple[int, str]]:
    """Objects with their names and sizes; id 0 for the line that says how many are left out."""
    rows = []
    for object_id, count in sizes.items():
        name = names.get(object_id, f"object {object_id}")
        rows.append((object_id, f"{name}: {_format_size(image, count, frame)}"))
    left = len(rows) - _MOST_LEGEND
    return [*rows[:_MOST_LEGEND], (0, f"and {left} more")] if left > 0 else rows


def _format_size(image: Image, count: int, frame: int | None) -> str:
    """As the command line reports it: millilitres, square millimetres, else pixels."""
    grid = image.geometry if frame is None else image.geometry.slice_at(frame)
    if image.kind == "video" and frame is None:
        return f"{count:,} pixels in all frames"
    if grid.has_spacing:
        text = grid.format_size(count)
        for sign, word in (("²", "sq "), ("³", "cu ")):  # the font has no such digits, and no µ
            if text.endswith(sign):
                number, unit = text.rstrip(sign).replace("µ", "u").split(" ")
                text = f"{number} {word}{unit}"
        return text
    return f"{count:,} {'voxels' if grid.ndim == 3 else 'pixels'}"


def lay_out(
    panels: Sequence[Pillow.Image | list[Pillow.Image]], legend: Sequence[tuple[int, str]]
) -> Pixels:
    """Lay out panels in rows on a dark ground, up to four beside each other, the legend below.

    Args:
        panels: or rows of them.
        legend: object ids and words.
    """
    rows = [row if isinstance(row, list) else [row] for row in panels]
    if all(len(row) == 1 for row in rows) and not any(isinstance(p, list) for p in panels):
        flat = [row[0] for row in rows]
        rows = [flat[k : k + 4] for k in range(0, len(flat), 4)]
    single = len(rows) == len(rows[0]) == 1
    pad = 0 if single else GAP
    width = max(sum(p.width for p in row) + pad * (len(row) + 1) for row in rows)
    height = pad + sum(max(p.height for p in row) + pad for row in rows)
    size = text_size(width)
    entries = _wrap_legend(legend, width, size)
    line = round(1.5 * size)
    canvas = Pillow.new("RGB", (width, height + len(entries) * line + bool(entries) * 6), BACKDROP)
    for place, panel in _places(rows, pad):
        canvas.paste(panel, place)
    draw = ImageDraw.Draw(canvas)
    for k, words in enumerate(entries):
        for x, object_id, label in words:
            middle, half = height + 3 + k * line + line // 2, size // 2
            if object_id:
                box = [x, middle - half, x + 2 * half, middle + half]
                draw.rectangle(box, fill=color_of(object_id))
            draw_text(draw, (x + 1.5 * size, middle), label, anchor="lm", size=size)
    return np.array(canvas)


def _places(
    rows: Sequence[Sequence[Pillow.Image]], pad: int
) -> Iterator[tuple[tuple[int, int], Pillow.Image]]:
    """Upper left corners of panels, ``(x, y)``."""
    y = pad
    for row in rows:
        x = pad
        for panel in row:
            yield (x, y), panel
            x += panel.width + pad
        y += max(p.height for p in row) + pad


def _wrap_legend(
    legend: Sequence[tuple[int, str]], width: int, size: int
) -> list[list[tuple[int, int, str]]]:
    """Legend entries in lines that fit: ``(x, object id, words)``."""
    lines: list[list[tuple[int, int, str]]] = []
    x = width
    for object_id, label in legend:
        needed = round(3 * size + font(size).getlength(label))
        if x + needed > width:
            lines.append([])
            x = GAP
        lines[-1].append((x, object_id, label))
        x += needed
    return lines
