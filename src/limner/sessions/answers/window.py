"""Zoom windows around prompts and masks: where they lie, how they grow, and how many pixels a model
is shown of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from limner.adapters.axes import Bounds
from limner.prompts.types import MaskPrompt, Prompt
from limner.sessions.answers.image_view import ImageView, Shape

MARGIN = 0.3  # of the object's size, around it on each side
LEAST_MARGIN = 12  # pixels around even the smallest object, on the finest axis
GROWTH = 0.5  # of the window's size, on a side that the mask touches
CLOSE = 4.0  # times as large as the window that was wanted, a window does as well
LEAST_WINDOW = 0.5  # of the model's window: no window is smaller
MOST_UNEVEN = 3.0  # times the step of rows and columns, that of slices may become by shrinking


def view_shape(view: ImageView, bounds: Bounds, limits: Shape) -> Shape:
    """Pixels of a view of `bounds`: native where that fits, else equal steps in millimetres.

    In a volume the step across the slices may differ: slices thicker than that are never cut finer,
    and where a model's window holds few of them it grows to `MOST_UNEVEN` times the others, or as
    far as it was uneven before, until rows and columns are shrunk for it, too.
    """
    size = np.subtract(bounds[1], bounds[0])
    if (size <= limits).all():
        return tuple(size.tolist())
    spacing = np.asarray(view.spacing)
    length = size * spacing
    least = np.where(size > limits, length / limits, spacing)  # step that each axis needs
    flat = slice(1, None) if size.size == 3 else slice(None)
    step = float(least[flat][size[flat] > np.asarray(limits)[flat]].max(initial=0.0))
    steps = np.full(size.size, step)
    if size.size == 3:
        uneven = max(MOST_UNEVEN, float(spacing[0] / spacing[1:].min()))
        steps[1:] = np.maximum(step, least[0] / uneven)
        steps[0] = max(least[0], step)
    shape = np.minimum(size, np.maximum(1, np.round(length / np.maximum(steps, spacing))))
    return tuple(int(n) for n in np.minimum(shape, limits))


def around(
    view: ImageView, prompts: Sequence[Prompt], found: Bounds | None, limits: Shape
) -> Bounds:
    """A window around prompts and mask, with a margin and a least size."""
    spans = [
        p.extent()
        for p in prompts
        if p.num_axes is not None
        and getattr(p, "positive", True)
        and not (isinstance(p, MaskPrompt) and not any(p.bounds[1]))
    ]
    if found is not None:
        spans.append((np.asarray(found[0], dtype=float), np.asarray(found[1], dtype=float)))
    if not spans:
        return view.whole
    low = np.min([a for a, _ in spans], axis=0)
    high = np.max([b for _, b in spans], axis=0)
    finest = min(view.spacing) / np.asarray(view.spacing)  # 1 on the finest axis, less on others
    margin = np.maximum(MARGIN * (high - low), np.ceil(LEAST_MARGIN * finest))
    least = np.ceil(LEAST_WINDOW * np.minimum(max(limits) * finest, limits))
    margin = np.maximum(margin, (least - (high - low)) / 2)
    low = np.clip(np.floor(low - margin), 0, np.asarray(view.shape) - 1)
    high = np.clip(np.ceil(high + margin), low + 1, view.shape)
    return tuple(int(a) for a in low), tuple(int(b) for b in high)


def ever_larger(view: ImageView, prompts: Sequence[Prompt], limits: Shape) -> list[Bounds]:
    """Windows around marks: the least one, then each half as large again on every side, as far as
    the image goes, up to the whole.
    """
    bounds = around(view, prompts, None, limits)
    windows = [bounds]
    while bounds != view.whole:
        size = np.subtract(bounds[1], bounds[0])
        low = np.maximum(0, np.asarray(bounds[0]) - (size + 1) // 2)
        high = np.minimum(view.shape, np.asarray(bounds[1]) + (size + 1) // 2)
        bounds = tuple(int(a) for a in low), tuple(int(b) for b in high)
        windows.append(bounds)
    return windows


def grown(logits: NDArray[np.float32], bounds: Bounds, shape: Shape) -> Bounds:
    """The window, wider on every side that the mask touches and the image goes on."""
    low, high = list(bounds[0]), list(bounds[1])
    for axis, n in enumerate(shape):
        step = max(1, math.ceil(GROWTH * (bounds[1][axis] - bounds[0][axis])))
        if low[axis] > 0 and (np.take(logits, 0, axis=axis) > 0).any():
            low[axis] = max(0, low[axis] - step)
        if high[axis] < n and (np.take(logits, -1, axis=axis) > 0).any():
            high[axis] = min(n, high[axis] + step)
    return tuple(low), tuple(high)


def is_close(window: Bounds, wanted: Bounds) -> bool:
    """Whether a window shows the object about as large as the one that was wanted."""
    sizes = np.subtract(window[1], window[0]) / np.subtract(wanted[1], wanted[0])
    return bool(sizes.max() <= CLOSE)
