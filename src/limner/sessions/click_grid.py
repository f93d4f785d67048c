"""Grids of clicks on an image and on overlapping crops of it."""

from __future__ import annotations

import math
from collections.abc import Iterator

from limner.adapters.axes import Bounds

OVERLAP = 0.34  # of a crop's side that it shares with its neighbours
MOST_CROPS = 4  # layers


def lay_clicks(
    shape: tuple[int, ...], points: int, crops: int
) -> Iterator[tuple[int, Bounds, list[tuple[float, float]]]]:
    """Layer, bounds and clicks (from its corner) of the whole image and of every crop.

    Args:
        shape: of the image, rows and columns.
        points: clicks per side of the whole image.
        crops: layers beside it: layer k has 2ᵏ × 2ᵏ crops, with ``points / 2ᵏ`` clicks per side.
    """
    for layer in range(crops + 1):
        count = 2**layer
        sides = [_crop_sides(n, count) for n in shape]
        for top, bottom in sides[0]:
            for left, right in sides[1]:
                spans = (bottom - top, right - left)
                if min(spans) < 1:
                    continue
                rows, columns = (_space_evenly(n, points // count) for n in spans)
                positions = [(row, column) for row in rows for column in columns]
                yield layer, ((top, left), (bottom, right)), positions


def _crop_sides(size: int, count: int) -> list[tuple[int, int]]:
    """Where `count` overlapping crops along a side of `size` begin and end."""
    length = size if count == 1 else min(size, math.ceil(size / count * (1 + OVERLAP)))
    steps = [round(k * (size - length) / max(1, count - 1)) for k in range(count)]
    return sorted({(start, start + length) for start in steps})


def _space_evenly(size: int, count: int) -> list[float]:
    """Positions of `count` clicks along a side, each in the middle of its share."""
    return sorted({float(min(size - 1, int((k + 0.5) * size / count))) for k in range(count)})
