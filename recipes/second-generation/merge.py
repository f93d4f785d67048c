"""Corrections that never hurt: what of a new answer is taken over, beside an answer that a mark was
set on.

After FocalClick's progressive merge (https://arxiv.org/abs/2204.02574): a positive mark only adds
and a negative one only takes away, only in the part of the change that hangs together with the
mark, and outside a box only where the mark itself is outside. What the network would change beyond
that is reported, never applied. Arrays may have any number of axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

_STRONGEST = 8.0  # logit of what is kept from the answer before
_WEAKEST = 0.5  # logit of a pixel that the network would have changed
_OBEYED = 2.0  # logit of marked pixels at least


@dataclass(frozen=True, eq=False)
class Merged:
    """What an answer becomes.

    Attributes:
        logits: of the answer, above 0 inside.
        refused: pixels that the network would have changed, too.
    """

    logits: Floats
    refused: Mask


def merge(
    after: Floats,
    before: Floats,
    mark: Mask,
    *,
    positive: bool,
    reach: float = 2.5,
    region: Mask | None = None,
    neck: float = 0.0,
) -> Merged:
    """A new answer merged into the one before.

    Args:
        after: logits of the new answer.
        before: logits of the answer before.
        mark: pixels of the newest mark.
        positive: what the mark says.
        reach: a change so near to the mark, in pixels, holds it.
        region: inside of the box or lasso; None without one.
        neck: parts that hang on by a bridge thinner than so much of the change's own thickness at
            the mark stay as they were; 0 takes them along.
    """
    was, now = before > 0, after > 0
    change = now & ~was if positive else was & ~now
    if positive and region is not None and not (mark & ~region).any():
        change &= region
    change = touching(change, mark, reach)
    if neck:
        change = unbridged(change, mark, reach, neck)
    answer = was | change if positive else was & ~change
    refused = (answer != now) & ~mark
    logits = _settled(after, before, answer)
    return Merged(obeyed(logits, mark, positive=positive), refused)


def touching(change: Mask, mark: Mask, reach: float) -> Mask:
    """The parts of a change that hold a mark or come so near to it."""
    if not (change.any() and mark.any()):
        return np.zeros_like(change)
    near = ndimage.distance_transform_edt(~mark) <= reach
    labels, _ = ndimage.label(change, np.ones((3,) * change.ndim))
    held = np.unique(labels[near & change])
    return np.asarray(np.isin(labels, held[held > 0]))


def unbridged(change: Mask, mark: Mask, reach: float, neck: float) -> Mask:
    """The part of a change around a mark, without what hangs on by thin bridges.

    Args:
        change: pixels that would change.
        mark: pixels of the mark.
        reach: a change so near to the mark, in pixels, holds it.
        neck: half the thickness of the thinnest bridge taken along, as a share of that at the mark.
    """
    if not (change.any() and mark.any()):
        return change
    near = ndimage.distance_transform_edt(~mark) <= reach
    deep = ndimage.distance_transform_edt(np.pad(change, 1))[(slice(1, -1),) * change.ndim]
    least = neck * float(deep[near].max())
    if least < 1:  # thin structures are all bridges
        return change
    labels, _ = ndimage.label(deep > least, np.ones((3,) * change.ndim))
    held = np.unique(labels[near & (deep > least)])
    core = np.isin(labels, held[held > 0])
    return np.asarray(change & (ndimage.distance_transform_edt(~core) <= least + 1))


def within(logits: Floats, region: Mask) -> Floats:
    """A first answer to a box or lasso: nothing outside it."""
    return np.where(region, logits, np.minimum(logits, -np.float32(_WEAKEST))).astype(np.float32)


def obeyed(logits: Floats, mark: Mask, *, positive: bool) -> Floats:
    """Marked pixels are as the user said."""
    said: Any = np.maximum(logits, _OBEYED) if positive else np.minimum(logits, -_OBEYED)
    return np.where(mark, said, logits).astype(np.float32)


def _settled(after: Floats, before: Floats, answer: Mask) -> Floats:
    """Logits of an answer: the new ones where they say so, else those before, else weak ones."""
    old = np.clip(before, -_STRONGEST, _STRONGEST)
    weak = np.where(answer, _WEAKEST, -_WEAKEST)
    kept = np.where((old > 0) == answer, old, weak)
    return np.where((after > 0) == answer, after, kept).astype(np.float32)
