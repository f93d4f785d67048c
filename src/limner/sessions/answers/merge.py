"""Corrections that never hurt: what of a model's new answer is taken over beside the one before.

After FocalClick's progressive merge (https://arxiv.org/abs/2204.02574): a positive mark only adds
and a negative one only takes away, only in the part of the change that hangs together with the
mark; nothing lies outside a box or lasso unless a mark is there. What the model would change beyond
that is counted, never applied. What it gains, measured: docs/notes/second-generation.md, table 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.adapters.prompt_checks import mask_of_prompt
from limner.prompts.raster import rasterize
from limner.prompts.types import Box, Lasso, Mark, Prompt

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

REACH = 2.5  # pixels; a change so near to a mark holds it
NEW_READING = 0.6  # IoU with the answer before, below which marks alone were read anew
FEW_MARKS = 9  # from so many on an answer to marks alone is never read anew
_STRONGEST = 8.0  # logit of what is kept from the answer before
_WEAKEST = 0.5  # logit of a pixel that the model would have changed


@dataclass(frozen=True, eq=False)
class Merged:
    """What an answer becomes.

    Attributes:
        logits: above 0 inside.
        withheld: pixels that the model would have changed, too.
    """

    logits: Floats
    withheld: Mask


def merge_answer(
    after: Floats, before: Floats | None, prompts: Sequence[Prompt], fresh: Sequence[Prompt]
) -> Merged:
    """A new answer, merged into the one before.

    An answer to marks alone that shares little with the one before is a new reading of all of them
    and counts whole: a first answer was often of another scale.

    Args:
        after: logits of the new answer on a view.
        before: those of the answer before, None for none.
        prompts: all prompts, oldest first, on the view.
        fresh: those of them that came after the answer before.
    """
    limit = None if before is None and not prompts else _limit(prompts, after.shape)
    marks = [p for p in fresh if isinstance(p, Mark)]
    if before is None or not (before > 0).any() or len(marks) < len(fresh) or not marks:
        return _within(after, limit)
    alone = len(fresh) < len(prompts) < FEW_MARKS and all(isinstance(p, Mark) for p in prompts)
    was, now = before > 0, after > 0
    if alone and (was & now).sum() < NEW_READING * (was | now).sum():
        return _within(after, limit)
    maps = rasterize(marks, after.shape, click_radius=REACH)
    added, removed = now & ~was, was & ~now
    answer = was.copy()
    if maps.positive is not None:
        answer |= touching(added if limit is None else added & limit, maps.positive)
    if maps.negative is not None:
        answer &= ~touching(removed, maps.negative)
    for mark in prompts:
        if isinstance(mark, Mark):
            answer[mask_of_prompt(mark, answer.shape)] = mark.positive
    return Merged(_settled(after, before, answer), answer != now)


def touching(change: Mask, near: Mask) -> Mask:
    """The connected parts of a change that reach into `near`."""
    from scipy import ndimage

    if not (change & near).any():
        return np.zeros_like(change)
    labels, _ = ndimage.label(change, np.ones((3,) * change.ndim))
    held = np.unique(labels[near])
    return np.asarray(np.isin(labels, held[held > 0]))


def _limit(prompts: Sequence[Prompt], shape: tuple[int, ...]) -> Mask | None:
    """Where the object may lie: in boxes and lassos; None for anywhere, also where a positive mark
    lies beyond them. In a volume one that is a slice thick speaks of its slice alone.
    """
    inside, spoken = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
    for prompt in prompts:
        if isinstance(prompt, Box | Lasso):
            region = mask_of_prompt(prompt, shape)
            inside |= region
            spoken[_extent(prompt, region)] = True
    if not inside.any():
        return None
    allowed: Mask = inside | ~spoken
    positive = [mask_of_prompt(p, shape) for p in prompts if isinstance(p, Mark) and p.positive]
    return allowed if all(allowed[mark].all() for mark in positive) else None


def _extent(prompt: Box | Lasso, region: Mask) -> tuple[slice, ...]:
    """The part of a view that a box or lasso speaks of."""
    extent = [slice(None)] * region.ndim
    if region.ndim == 3 and region.any():
        for axis in range(3):
            others = tuple(k for k in range(3) if k != axis)
            places = np.flatnonzero(region.any(axis=others))
            thin = len(places) == 1 < region.shape[axis]
            if thin and not (isinstance(prompt, Box) and _thickness(prompt, axis) > 1):
                extent[axis] = slice(int(places[0]), int(places[0]) + 1)
    return tuple(extent)


def _thickness(box: Box, axis: int) -> float:
    return float(box.high[axis] - box.low[axis])


def _within(logits: Floats, limit: Mask | None) -> Merged:
    """An answer that counts whole, but for what lies where the object may not."""
    if limit is None:
        return Merged(logits, np.zeros(logits.shape, np.bool_))
    outside: Any = ~limit & (logits > 0)
    return Merged(np.where(outside, np.float32(-_WEAKEST), logits), outside)


def _settled(after: Floats, before: Floats, answer: Mask) -> Floats:
    """Logits of an answer: the new ones where they say so, else those before, else weak ones."""
    old = np.clip(before, -_STRONGEST, _STRONGEST)
    weak = np.where(answer, _WEAKEST, -_WEAKEST)
    kept = np.where((old > 0) == answer, old, weak)
    return np.where((after > 0) == answer, after, kept).astype(np.float32)
