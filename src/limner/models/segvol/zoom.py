"""Zoom-out-zoom-in (https://arxiv.org/abs/2311.13385, section 3.3): the whole volume shrunk, then
windows at full resolution over what was found, whose answers replace the first.

`zoom_in` is how limner does it; `zoom_in_as_published` repeats the authors' script to the voxel,
with its defects (see `docs/models.md`). Neither knows the network: it is a function from a window
and prompts to logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.adapters.sam import PADDING, POSITIVE
from limner.models.segvol.prompts import (
    Indices,
    Points,
    Reflection,
    VolumePrompts,
    WindowPrompts,
    reflected,
    shape_of,
)
from limner.models.segvol.volume import SIZE, Bounds, Floats, Shape, Volume, Window

OVERLAP = 0.5  # of neighbouring windows
MOST_LARGER = 2  # times: the region of the round before is kept unless it is this much too large
MOST_POINTS = 4  # clicks shown per window in the published way, after a first one


@dataclass(frozen=True, eq=False)
class ZoomedAnswer:
    """What both views gave.

    Attributes:
        coarse: logits of the whole, float32 of `SIZE`.
        bounds: of the closer view in the volume, None if there was none.
        logits: of the closer view, of that shape, float32; NaN where no window was looked at.
    """

    coarse: Floats
    bounds: Bounds | None = None
    logits: Floats | None = None

    def fill(self, out: Floats) -> None:
        """Write the answer into an array of the volume's shape."""
        slices, rows, columns = reflected(shape_of(out.shape))
        places = np.ix_(rows, columns)
        for k, index in enumerate(slices):
            out[k] = self.coarse[index][places]
        if self.bounds is not None and self.logits is not None:
            inside = out[_slices(*self.bounds)]
            np.copyto(inside, self.logits, where=~np.isnan(self.logits))


DecodeWindow = Callable[[Window, WindowPrompts], Floats]
Choose = Callable[[Indices], tuple[Points, NDArray[np.float32]]]


# How limner does it


def zoom_in(
    volume: Volume,
    volume_prompts: VolumePrompts,
    coarse: Floats,
    decode_window: DecodeWindow,
    before: Bounds | None = None,
) -> ZoomedAnswer:
    """Look closer at what was found, at the user's box and at the clicks on the object.

    Args:
        volume: what is looked at.
        volume_prompts: the prompts.
        coarse: logits of the whole, answered to ``volume_prompts.shrunk(volume.shape)``.
        decode_window: the network.
        before: bounds of the closer view of the round before, kept if they still do, since its
            windows are known.
    """
    mask = Reflection(coarse > 0, volume.shape)
    bounds = _region(mask, volume_prompts, before)
    if bounds is None:
        return ZoomedAnswer(coarse)
    windows = list(_windows(bounds))
    total = np.zeros(_size(bounds), np.float32)
    count = np.zeros(total.shape, np.uint8)
    for start in windows:
        prompts = _window_prompts(mask, volume_prompts, start, bounds, alone=len(windows) == 1)
        if prompts is not None:
            _add(decode_window(volume.window(start, bounds), prompts), start, bounds, total, count)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN, where no window was looked at
        np.divide(total, count, out=total)
    return ZoomedAnswer(coarse, bounds, total)


def _region(
    mask: Reflection, volume_prompts: VolumePrompts, before: Bounds | None
) -> Bounds | None:
    """What to look at closer: as large as a window at least, where the volume is."""
    spans = [span for span in (mask.bounds(), volume_prompts.box) if span is not None]
    for at in volume_prompts.voxels[volume_prompts.labels == POSITIVE]:
        spans.append((shape_of(at), shape_of(at + 1)))
    if not spans:
        return None
    low = np.min([a for a, _ in spans], axis=0)
    high = np.max([b for _, b in spans], axis=0)
    size = np.minimum(np.maximum(high - low, SIZE), mask.shape)
    first = np.clip(low - (size - (high - low)) // 2, 0, mask.shape - size)
    if before is not None and _volume(before) <= MOST_LARGER * size.prod():
        enough = (low >= before[0]).all() and (high <= before[1]).all()
        if enough:
            return before
    return shape_of(first), shape_of(first + size)


def _window_prompts(
    mask: Reflection, volume_prompts: VolumePrompts, start: Indices, bounds: Bounds, *, alone: bool
) -> WindowPrompts | None:
    """The prompts of a window, None where there is nothing to ask.

    The box of a window is that of what was found there, which with clicks alone reaches to those on
    the object, and within the user's own. If there is one window only, the user's own is taken.
    """
    low, high = (np.array(end) for end in _inside(start, bounds))
    shown = ((volume_prompts.voxels >= low) & (volume_prompts.voxels < high)).all(axis=1)
    points, labels = volume_prompts.voxels[shown], volume_prompts.labels[shown]
    own = (
        None
        if volume_prompts.box is None
        else _common(volume_prompts.box, (shape_of(low), shape_of(high)))
    )
    found = mask.within(shape_of(low), shape_of(high))
    if own is not None:
        found = own if alone or found is None else _common(found, own) or own
    elif volume_prompts.box is not None:
        found = None
    if found is None and not (labels == POSITIVE).any():
        return None
    box = None
    if found is not None and (volume_prompts.box is not None or len(volume_prompts.labels)):
        box = _corners(found, start)
        if volume_prompts.box is None and (labels == POSITIVE).any():
            near = points[labels == POSITIVE] - start
            box = np.append(
                np.minimum(box[:3], near.min(axis=0)), np.maximum(box[3:], near.max(axis=0))
            )
    placed = (points - start).astype(np.float32)
    return WindowPrompts(
        placed, labels, None if box is None else box.astype(np.float32), volume_prompts.text
    )


# How the authors do it


def zoom_in_as_published(
    volume: Volume,
    prompts: WindowPrompts,
    coarse: Floats,
    decode_window: DecodeWindow,
    choose: Choose | None = None,
) -> ZoomedAnswer:
    """Look closer as the authors' script does.

    Args:
        volume: what is looked at.
        prompts: the prompts on the whole shrunk to `SIZE`; clicks or a box, not both.
        coarse: logits of the whole, answered to them.
        decode_window: the network.
        choose: clicks on the object in a window, (M, 3), to those that are shown, with labels; by
            default drawn at random, but always alike.
    """
    mask = Reflection(coarse > 0, volume.shape)
    found = mask.bounds()
    if found is None:
        return ZoomedAnswer(coarse)
    low, high = np.array(found[0]), np.array(found[1])
    more = np.maximum(0, np.array(SIZE) - (high - low)) // 2
    bounds = shape_of(np.maximum(0, low - more)), shape_of(np.minimum(volume.shape, high + more))
    windows = list(_windows(bounds))
    total = np.zeros(_size(bounds), np.float32)
    count = np.zeros(total.shape, np.uint8)
    for start in windows:
        # The authors pad the image and what was found, but not the user's prompts; so those are
        # shifted against both where the region is smaller than a window.
        shift = np.maximum(0, np.array(bounds[0]) - start)
        shown = _draw_as_published(
            mask, prompts, start, bounds, shift, choose or drawn, alone=len(windows) == 1
        )
        _add(decode_window(volume.window(start, bounds), shown), start, bounds, total, count)
    total /= count
    return ZoomedAnswer(coarse, bounds, total)


def drawn(positions: Indices) -> tuple[Points, NDArray[np.float32]]:
    """Up to `MOST_POINTS` and one more of the given positions, the first perhaps twice, as the
    authors draw them, with points that say nothing in the place of missing ones.
    """
    nothing = np.full((1, 3), -1.0, np.float32)
    if not len(positions):
        return nothing, np.full(1, PADDING, np.float32)
    rng = np.random.default_rng(0)
    order = [rng.integers(len(positions)), *rng.permutation(len(positions))[:MOST_POINTS]]
    points = positions[order].astype(np.float32)
    missing = MOST_POINTS + 1 - len(points)
    labels = np.repeat(np.array([POSITIVE, PADDING], np.float32), [len(points), missing])
    return np.concatenate([points, np.repeat(nothing, missing, axis=0)]), labels


def _draw_as_published(
    mask: Reflection,
    prompts: WindowPrompts,
    start: Indices,
    bounds: Bounds,
    shift: Indices,
    choose: Choose,
    *,
    alone: bool,
) -> WindowPrompts:
    """The prompts of a window in the authors' script."""
    points, labels, box = np.zeros((0, 3), np.float32), np.zeros(0, np.float32), None
    found = mask.within(*_inside(start, bounds))
    first = start + shift
    if len(prompts.labels):
        low, high = _inside(first, bounds)
        points, labels = choose(mask.positions(prompts.positive, low, high) - first)
        box = _corners(found, start)
    elif prompts.box is not None and alone:
        low, high = _inside(first, bounds)
        solid = np.zeros(SIZE, np.bool_)
        solid[_slices(prompts.box[:3], prompts.box[3:] + 1)] = True
        box = _corners(Reflection(solid, mask.shape).within(low, high), first)
    elif prompts.box is not None:
        box = _corners(found, start)
    return WindowPrompts(
        points, labels, None if box is None else box.astype(np.float32), prompts.text
    )


# Both


def _windows(bounds: Bounds) -> Iterator[Indices]:
    """The first voxels of the windows over a region, which is in the middle where it is smaller."""
    starts = []
    for low, high, size in zip(*bounds, SIZE, strict=True):
        length = max(high - low, size)
        begin = low - (length - (high - low)) // 2
        step = size if length == size else int(size * (1 - OVERLAP))
        count = -(-(length - size) // step) + 1
        starts.append([begin + min(k * step, length - size) for k in range(count)])
    for start in product(*starts):
        yield np.array(start, np.int64)


def _add(
    logits: Floats, start: Indices, bounds: Bounds, total: Floats, count: NDArray[np.uint8]
) -> None:
    """Add the answer of a window where it is part of the region."""
    low, high = _inside(start, bounds)
    there = _slices(np.subtract(low, bounds[0]), np.subtract(high, bounds[0]))
    total[there] += logits[_slices(np.subtract(low, start), np.subtract(high, start))]
    count[there] += 1


def _inside(start: Indices, bounds: Bounds) -> Bounds:
    """The part of a window that is in a region."""
    return shape_of(np.maximum(start, bounds[0])), shape_of(np.minimum(start + SIZE, bounds[1]))


def _common(a: Bounds, b: Bounds) -> Bounds | None:
    """What two boxes share."""
    low, high = np.maximum(a[0], b[0]), np.minimum(a[1], b[1])
    return (shape_of(low), shape_of(high)) if (low < high).all() else None


def _corners(box: Bounds | None, start: Indices) -> Indices:
    """First and last voxel of a box in a window; six times -1 for none."""
    if box is None:
        return np.full(6, -1, np.int64)
    return np.concatenate([np.subtract(box[0], start), np.subtract(box[1], start) - 1])


def _size(bounds: Bounds) -> Shape:
    return shape_of(np.subtract(bounds[1], bounds[0]))


def _volume(bounds: Bounds) -> int:
    return int(np.prod(_size(bounds)))


def _slices(low: Any, high: Any) -> tuple[slice, ...]:
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
