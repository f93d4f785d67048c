"""Exclusion of tracked objects: no pixel belongs to two of them, unless they overlap where they are
annotated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.sessions.answers.image_view import ImageView
from limner.sessions.answers.sparse_logits import BACKGROUND_LOGIT, STEP, SparseLogits
from limner.sessions.answers.zoom import ViewPrediction, to_image_grid
from limner.sessions.propagation.schedule import FrameSpan


def find_overlapping(
    spans: Sequence[FrameSpan],
    marks: Mapping[int, Sequence[int]],
    drawn: Callable[[int, int], NDArray[np.bool_]],
) -> set[frozenset[int]]:
    """Pairs of objects that share pixels on a frame on which both are annotated.

    Args:
        spans: whose objects are tracked; other objects count as partners.
        marks: all annotated frames by object.
        drawn: an object's mask on an annotated frame.
    """
    run = {span.object_id for span in spans}
    return {
        frozenset(pair)
        for pair in combinations(sorted(marks), 2)
        if run & set(pair)
        for k in set(marks[pair[0]]) & set(marks[pair[1]])
        if (drawn(pair[0], k) & drawn(pair[1], k)).any()
    }


def separate_objects(
    view: ImageView, predictions: dict[FrameSpan, ViewPrediction], may_overlap: set[frozenset[int]]
) -> dict[FrameSpan, ViewPrediction]:
    """Predictions of which none has a pixel that another one is surer of.

    Args:
        view: the frame.
        predictions: on it, by span.
        may_overlap: pairs of objects that are left alone.
    """
    result = dict(predictions)
    for one, other in combinations(predictions, 2):
        if frozenset((one.object_id, other.object_id)) in may_overlap:
            continue
        boxes = result[one].found, result[other].found
        if boxes[0] is None or boxes[1] is None:
            continue
        low = _ints(np.maximum(boxes[0][0], boxes[1][0]))
        high = _ints(np.minimum(boxes[0][1], boxes[1][1]))
        if any(a >= b for a, b in zip(low, high, strict=True)):
            continue
        first, second = (
            to_image_grid(view, result[span]).window(low, high) for span in (one, other)
        )
        both = (first > 0) & (second > 0)
        for span, lost in ((one, both & (first < second)), (other, both & (first >= second))):
            if lost.any():
                result[span] = _remove_pixels(result[span], view, low, lost)
    return result


def keep_off_others(
    view: ImageView,
    predictions: Mapping[FrameSpan, ViewPrediction],
    there: Iterable[tuple[int, NDArray[np.bool_]]],
    may_overlap: set[frozenset[int]],
) -> dict[FrameSpan, ViewPrediction]:
    """Predictions without the pixels that other objects have, which are not tracked here.

    Args:
        view: the frame.
        predictions: on it, by span.
        there: masks of all objects on the frame.
        may_overlap: pairs of objects that are left alone.
    """
    result = dict(predictions)
    here = {span.object_id for span in predictions}
    known = [(i, mask) for i, mask in there if i not in here] if predictions else []
    for span, (other, mask) in product(predictions, known):
        prediction = result[span]
        if prediction.found is not None and frozenset((span.object_id, other)) not in may_overlap:
            low, high = _ints(prediction.found[0]), _ints(prediction.found[1])
            lost = mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
            lost = lost & (to_image_grid(view, prediction).window(low, high) > 0)
            if lost.any():
                result[span] = _remove_pixels(prediction, view, low, lost)
    return result


def _remove_pixels(
    prediction: ViewPrediction, view: ImageView, low: tuple[int, ...], lost: NDArray[np.bool_]
) -> ViewPrediction:
    """A prediction without some pixels of the frame."""
    gone = np.zeros(view.shape, np.bool_)
    gone[tuple(slice(a, a + n) for a, n in zip(low, lost.shape, strict=True))] = lost
    share = SparseLogits.of_mask(gone).shrunk(*prediction.bounds, prediction.logits.shape)
    taken = np.where(share > 0, np.minimum(prediction.logits, np.float32(-STEP)), prediction.logits)
    return replace(prediction, logits=np.maximum(taken, np.float32(BACKGROUND_LOGIT)))


def _ints(position: Iterable[Any]) -> tuple[int, ...]:
    return tuple(int(n) for n in position)
