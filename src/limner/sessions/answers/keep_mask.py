"""Masks that stand to the pixel: what begins as a finished mask, such as a model's label, is
changed only where clicks and scribbles ask for it.

A model that is shown a mask draws it anew, and a little differently everywhere; on a view that is
coarser than the image it draws steps. Here the mask given is the answer until another prompt comes,
and a click then adds or takes away only what hangs together with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.adapters.prompt_checks import mask_of_prompt
from limner.adapters.resize import bin_edges
from limner.prompts.types import Mark, MaskPrompt
from limner.sessions.answers.answer import Answer, Query
from limner.sessions.answers.image_view import ImageView
from limner.sessions.answers.sparse_logits import SparseLogits
from limner.sessions.answers.zoom import (
    ViewPrediction,
    prompt_to_view,
    to_image_grid,
    turn_query,
)

Mask = NDArray[np.bool_]


def start_from_mask(query: Query) -> Query:
    """The question with the newest mask as the answer before, where there is none yet."""
    masks = [p for p in query.prompts if isinstance(p, MaskPrompt)]
    if not masks or not isinstance(query.prompts[-1], Mark) or query.previous is not None:
        return query
    return replace(query, previous=SparseLogits.of_mask(masks[-1].mask))


def corrects_mask(query: Query) -> bool:
    """Whether a question is about marks that correct a mask."""
    has_mask = any(isinstance(p, MaskPrompt) for p in query.prompts)
    return has_mask and isinstance(query.prompts[-1], Mark)


def correct_mask(view: ImageView, query: Query, prediction: ViewPrediction) -> Answer:
    """The answer before, changed where the marks contradict it.

    Args:
        view: of the image.
        query: what was asked, in the index order as stored.
        prediction: the model's answer to it.
    """
    turned = query if view.axes.is_same else turn_query(view, query)
    assert turned.previous is not None
    newest = max(k for k, p in enumerate(turned.prompts) if isinstance(p, MaskPrompt))
    marks = [p for p in turned.prompts[newest:] if isinstance(p, Mark)]
    region = change_near_marks(view, prediction, turned.previous, marks)
    return Answer(region.turned(view.axes.inverse), prediction.score, prediction.memory)


def change_near_marks(
    view: ImageView, prediction: ViewPrediction, previous: SparseLogits, marks: Sequence[Mark]
) -> SparseLogits:
    """The answer before, with what a new one adds at positive marks and takes at negative ones.

    What is changed is decided on the view's own pixels, so that a coarse view leaves the outline
    alone elsewhere.

    Args:
        view: of the image.
        prediction: the new answer on a view of it.
        previous: the answer before.
        marks: clicks and scribbles in the index order in which models see the image.
    """
    (low, high), shape = prediction.bounds, prediction.logits.shape
    after = prediction.logits > 0
    before = previous.shrunk(low, high, shape) > 0
    marked = {True: np.zeros(shape, np.bool_), False: np.zeros(shape, np.bool_)}
    for mark in marks:
        placed = prompt_to_view(mark, prediction.bounds, shape)
        if placed is not None:
            marked[mark.positive] |= mask_of_prompt(placed, shape)
    changed = _touched(after & ~before, marked[True]) | _touched(before & ~after, marked[False])
    mask = previous.mask()
    window = mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    region = to_image_grid(view, prediction)
    finer = np.zeros(mask.shape, np.bool_)
    finer[region.slices] = region.inside
    answer = finer[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    np.copyto(window, answer, where=_enlarge(changed, low, high))
    for mark in marks:  # to the pixel, however coarse the view
        mask[mask_of_prompt(mark, mask.shape)] = mark.positive
    return SparseLogits.of_mask(mask)


def _touched(change: Mask, marks: Mask) -> Mask:
    """The parts of a change that hang together with marks."""
    from scipy import ndimage

    if not (change & marks).any():
        return np.zeros_like(change)
    labels, _ = ndimage.label(change)
    found = np.unique(labels[marks])
    return np.asarray(np.isin(labels, found[found > 0]))


def _enlarge(mask: Mask, low: Sequence[int], high: Sequence[int]) -> Mask:
    """A mask of the view on the pixels of the image."""
    result: NDArray[Any] = mask
    for axis, (a, b, bins) in enumerate(zip(low, high, mask.shape, strict=True)):
        if b - a != bins:
            result = np.repeat(result, np.diff(bin_edges(b - a, bins)), axis=axis)
    return result
