"""Painting on masks: disks and balls, brush strokes, filled polygons and boxes.

A pixel's centre is its integer index. Everything works in place and in parts of bounded memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]
Mask: TypeAlias = NDArray[np.bool_]

CHUNK = 2**20  # pixels worked on at a time, which bounds the memory of large shapes to some 50 MB
MAX_RADIUS = 1e9  # pixels; a wider brush paints no more, and its square would overflow
_EDGE = 1e-9  # rounding allowed when a pixel's centre lies on an outline


def paint_ball(mask: Mask, at: ArrayLike, radius: float | Sequence[float]) -> None:
    """Set the pixels of a disk (2D) or ball (3D), in place; with a radius per axis, an ellipsoid.

    Args:
        mask: boolean, 2D or 3D.
        at: centre in index order; may lie outside.
        radius: in pixels, one number or one per axis. The pixel nearest to the centre is always
            set, if it is in the image.
    """
    centre = np.asarray(at, dtype=np.float64)
    radii = np.broadcast_to(np.asarray(radius, dtype=np.float64), (mask.ndim,))
    if not np.isfinite(radii).all() or radii.min() < 0:
        raise ValueError(f"radius={radius} must be finite and not below 0 pixels.")
    nearest = _nearest_pixels(centre[None], mask.shape)
    if len(nearest):
        mask[tuple(nearest[0])] = True
    window = _window(centre - radii, centre + radii, mask.shape)
    for part in _slabs(window):
        distance: Any = 0.0
        for grid, middle, reach in zip(np.ogrid[part], centre, radii, strict=True):
            distance = distance + ((grid - middle) / max(reach, _EDGE)) ** 2
        mask[part] |= distance <= 1.0 + _EDGE


def paint_stroke(mask: Mask, points: ArrayLike, radius: float) -> None:
    """Set the pixels of a line of straight pieces drawn with a round brush, in place.

    In 3D a line whose points share a coordinate was drawn on that slice (of the first such axis)
    and stays in it, as a viewer's brush does; any other line becomes a round tube.

    Args:
        mask: boolean, 2D or 3D.
        points: ``(n, ndim)`` in index order, at least one; may lie outside.
        radius: of the brush in pixels; 0 paints an unbroken line one pixel wide.
    """
    line = np.asarray(points, dtype=np.float64)
    level = (line == line[0]).all(axis=0)
    if mask.ndim == 3 and level.any():
        axis = int(level.argmax())
        part = slice_view(mask, axis, line[0, axis])
        if part is not None:
            paint_stroke(part, np.delete(line, axis, axis=1), radius)
        return
    starts, ends = (line[:-1], line[1:]) if len(line) > 1 else (line, line)
    thin = _clip_segments(starts, ends, 1.0, mask.shape)
    for first in range(0, len(thin[0]), 1024):
        _paint_lines(mask, *(x[first : first + 1024] for x in thin))
    if radius > 0:
        reach = min(float(radius), MAX_RADIUS)
        _paint_capsules(mask, *_clip_segments(starts, ends, reach + 1.0, mask.shape), reach)


def paint_polygon(mask: Mask, points: ArrayLike) -> None:
    """Set the pixels whose centre is inside a polygon or on its outline, in place.

    Where the outline crosses itself, whatever it goes around is inside (non-zero winding): a lasso
    whose end overshoots its start has no hole there.

    Args:
        mask: boolean, 2D.
        points: ``(n, 2)`` as ``(row, column)``, at least one; the last joins the first; may lie
            outside.
    """
    corners = np.asarray(points, dtype=np.float64)
    window = _window(corners.min(axis=0), corners.max(axis=0), mask.shape)
    rows, columns = window
    height, width = rows.stop - rows.start, columns.stop - columns.start
    if height <= 0 or width <= 0:
        return
    turns = np.zeros((height, width + 1), dtype=np.int32)
    start = corners - (rows.start, columns.start)
    end = np.roll(start, -1, axis=0)
    on_outline = np.zeros((height, width), dtype=bool)
    per_chunk = max(1, CHUNK // height)
    for first in range(0, len(start), per_chunk):
        part = slice(first, first + per_chunk)
        _add_crossings(turns, on_outline, start[part], end[part])
    mask[window] |= (np.cumsum(turns[:, :-1], axis=1, dtype=np.int32) != 0) | on_outline


def paint_box(mask: Mask, low: ArrayLike, high: ArrayLike) -> None:
    """Set the pixels whose centre is in a half-open box ``low <= index < high``, in place."""
    mask[_window(np.asarray(low), np.asarray(high), mask.shape, half_open=True)] = True


def slice_view(mask: Mask, axis: int, place: float) -> Mask | None:
    """The slice of a volume nearest to a coordinate, as a view; None outside the volume."""
    index = _nearest_pixels(np.array([[place]]), (mask.shape[axis],))
    return np.moveaxis(mask, axis, 0)[int(index[0, 0])] if len(index) else None


def _add_crossings(turns: Array, on_outline: Mask, start: Array, end: Array) -> None:
    """Add the edges from `start` to `end` to the winding steps of the rows they cross.

    An edge crosses the rows ``low <= row < high``, so that a corner between two edges counts once;
    ``turns[row, c]`` changes at the first column at or right of the crossing. Pixels exactly on an
    edge are marked in `on_outline`.
    """
    height, width = on_outline.shape
    low, high = np.minimum(start[:, 0], end[:, 0]), np.maximum(start[:, 0], end[:, 0])
    first = np.clip(np.ceil(low - _EDGE), 0, height).astype(np.int64)
    last = np.clip(np.floor(high + _EDGE), -1, height - 1).astype(np.int64)
    count = np.maximum(last - first + 1, 0)
    edge = np.repeat(np.arange(len(start)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    rise = end[edge, 0] - start[edge, 0]
    level = rise == 0
    share = np.clip((row - start[edge, 0]) / np.where(level, 1.0, rise), 0.0, 1.0)
    column = start[edge, 1] + share * (end[edge, 1] - start[edge, 1])

    crosses = (low[edge] <= row) & (row < high[edge])
    at = np.clip(np.ceil(column[crosses]), 0, width).astype(np.int64)
    np.add.at(turns, (row[crosses], at), np.where(rise[crosses] > 0, 1, -1))

    near = np.rint(column)
    touched = ~level & (np.abs(column - near) <= _EDGE) & (near >= 0) & (near < width)
    on_outline[row[touched], near[touched].astype(np.int64)] = True
    for k in np.flatnonzero(level):  # edges along a row
        ends = sorted((start[edge[k], 1], end[edge[k], 1]))
        left, right = max(np.ceil(ends[0] - _EDGE), 0), min(np.floor(ends[1] + _EDGE), width - 1)
        on_outline[row[k], int(left) : int(right) + 1] = True


def _paint_lines(mask: Mask, starts: Array, ends: Array) -> None:
    """Lines one pixel wide without gaps: a sample at every step of the axis that changes most."""
    steps = np.ceil(np.abs(ends - starts).max(axis=1)).astype(np.int64) + 1
    line = np.repeat(np.arange(len(starts)), steps)
    place = np.arange(len(line)) - np.repeat(np.cumsum(steps) - steps, steps)
    share = (place / np.maximum(steps[line] - 1, 1))[:, None]
    samples = starts[line] + share * (ends[line] - starts[line])
    mask[tuple(_nearest_pixels(samples, mask.shape).T)] = True


def _paint_capsules(mask: Mask, starts: Array, ends: Array, radius: float) -> None:
    """The pixels within `radius` of each segment: short pieces of it, each in its own window."""
    longest = max(2.0 * radius, 4.0)
    count = np.maximum(np.ceil(np.linalg.norm(ends - starts, axis=1) / longest), 1).astype(np.int64)
    segment = np.repeat(np.arange(len(starts)), count)
    place = np.arange(len(segment)) - np.repeat(np.cumsum(count) - count, count)
    steps = ((ends - starts) / count[:, None])[segment]
    origins = starts[segment] + place[:, None] * steps

    half = int(np.ceil(longest / 2 + radius)) + 1
    side = 2 * half + 1
    if side**mask.ndim > CHUNK // 8:
        for origin, step in zip(origins, steps, strict=True):
            _paint_large_capsule(mask, origin, step, radius)
        return
    offsets = np.indices((side,) * mask.ndim).reshape(mask.ndim, 1, -1) - half
    at_once = CHUNK // 8 // offsets.shape[-1] + 1
    for first in range(0, len(origins), at_once):
        origin, step = (x[first : first + at_once].T[:, :, None] for x in (origins, steps))
        cells = np.rint(origin + step / 2).astype(np.int64) + offsets  # (ndim, piece, pixel)
        hit = _is_near(list(cells), list(origin), list(step), radius)
        for axis, size in enumerate(mask.shape):
            hit &= (cells[axis] >= 0) & (cells[axis] < size)
        mask[tuple(axis[hit] for axis in cells)] = True


def _paint_large_capsule(mask: Mask, origin: Array, step: Array, radius: float) -> None:
    low, high = np.minimum(origin, origin + step), np.maximum(origin, origin + step)
    for part in _slabs(_window(low - radius, high + radius, mask.shape)):
        mask[part] |= _is_near(np.ogrid[part], list(origin), list(step), radius)


def _is_near(
    cells: Sequence[Any], origin: Sequence[Any], step: Sequence[Any], radius: float
) -> Any:
    """Whether cells are within `radius` of the segments from `origin` to ``origin + step``; each
    argument is one array per axis, and all broadcast.
    """
    gaps = [cell - o for cell, o in zip(cells, origin, strict=True)]
    squared = sum(s * s for s in step)
    along: Any = sum(gap * s for gap, s in zip(gaps, step, strict=True))
    along = np.clip(along / np.where(squared > 0, squared, 1.0), 0.0, 1.0)
    away: Any = sum((gap - along * s) ** 2 for gap, s in zip(gaps, step, strict=True))
    return away <= (radius + _EDGE) ** 2


def _clip_segments(
    starts: Array, ends: Array, margin: float, shape: tuple[int, ...]
) -> tuple[Array, Array]:
    """The parts of segments within `margin` of the image (Liang and Barsky's method): a stroke that
    leaves for a million pixels costs nothing.
    """
    along = ends - starts
    first, last = np.zeros(len(starts)), np.ones(len(starts))
    for axis, size in enumerate(shape):
        low, high = -margin - starts[:, axis], size - 1 + margin - starts[:, axis]
        moving = along[:, axis] != 0
        rate = np.where(moving, along[:, axis], 1.0)
        enter, leave = np.minimum(low / rate, high / rate), np.maximum(low / rate, high / rate)
        beside = ~moving & ((low > 0) | (high < 0))
        first = np.where(moving, np.maximum(first, enter), np.where(beside, 2.0, first))
        last = np.where(moving, np.minimum(last, leave), last)
    keep = first <= last
    starts, along = starts[keep], along[keep]
    return starts + first[keep, None] * along, starts + last[keep, None] * along


def _nearest_pixels(places: Array, shape: tuple[int, ...]) -> Array:
    """Indices ``(n, ndim)`` of the pixels that hold the places; those outside are left out. The
    outermost half pixel belongs to the image on both sides, as for `convert.check_inside`.
    """
    size = np.asarray(shape)
    inside = ((places >= -0.5) & (places <= size - 0.5)).all(axis=1)
    found = np.floor(places[inside] + 0.5).astype(np.int64)
    return np.asarray(np.minimum(found, size - 1))


def _window(
    low: Array, high: Array, shape: tuple[int, ...], half_open: bool = False
) -> tuple[slice, ...]:
    """The pixels with centres in ``low <= index <= high`` (``< high`` if half-open), clipped."""
    window = []
    for a, b, n in zip(low, high, shape, strict=True):
        stop = np.ceil(b) if half_open else np.floor(b + _EDGE) + 1
        start = int(np.clip(np.ceil(a - _EDGE), 0, n))
        window.append(slice(start, max(start, int(np.clip(stop, 0, n)))))
    return tuple(window)


def _slabs(window: tuple[slice, ...]) -> Iterable[tuple[slice, ...]]:
    """A window cut along its first axis into parts of about `CHUNK` pixels."""
    sizes = [s.stop - s.start for s in window]
    if min(sizes) <= 0:
        return
    depth = max(1, CHUNK // max(1, int(np.prod(sizes[1:]))))
    for start in range(window[0].start, window[0].stop, depth):
        yield (slice(start, min(start + depth, window[0].stop)), *window[1:])
