"""The schedule of a propagation: which frames follow from which, and by what prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from limner.prompts.types import Box
from limner.sessions.answers.answer import Answer
from limner.sessions.answers.sparse_logits import SparseLogits

MOST_GROWTH = 1.05  # of a carried mask's area from one frame to the next
REACH = 0.05  # of the square root of the area: how far a mask that leaked may go beyond the last
BOX_MARGIN = 0.1  # of the object's size, around the last mask for models that take no mask


@dataclass(frozen=True)
class FrameSpan:
    """Part of a propagation: consecutive frames that follow from one annotated frame, in order.

    Attributes:
        object_id: whose.
        source: the annotated frame.
        frames: to write.
        ahead: the next annotated frame beyond, None where there is none.
    """

    object_id: int
    source: int
    frames: range
    ahead: int | None = None


def assign_spans(
    object_id: int, sources: Sequence[int], low: int, high: int, direction: str
) -> Iterator[FrameSpan]:
    """Assign frames to the annotated frame that they follow from: the nearest one if both ways,
    forward first.
    """
    both = direction == "both"
    if direction != "backward":
        for k, source in enumerate(sources):
            ahead = None if k + 1 == len(sources) else sources[k + 1]
            end = high if ahead is None else ahead
            if both and ahead is not None:
                end = (source + end) // 2 + 1
            yield FrameSpan(object_id, source, range(max(source + 1, low), min(end, high)), ahead)
    if direction != "forward":
        for k, source in reversed(list(enumerate(sources))):
            ahead = None if k == 0 else sources[k - 1]
            end = low - 1 if ahead is None else ahead
            if both and ahead is not None:
                end = (source + end) // 2
            frames = range(min(source, high) - 1, max(end, low - 1), -1)
            yield FrameSpan(object_id, source, frames, ahead)


def find_gaps(object_id: int, marks: Sequence[int], low: int, high: int) -> Iterator[FrameSpan]:
    """The frames between annotated ones that follow one another."""
    for before, after in pairwise(marks):
        yield FrameSpan(object_id, before, range(max(before + 1, low), min(after, high)), after)


def interleave_spans(parts: Sequence[FrameSpan]) -> Iterator[tuple[FrameSpan, int]]:
    """Yield (span, frame) in propagation order, all objects interleaved."""
    if not parts:
        return
    for frame in sorted({k for span in parts for k in span.frames})[:: parts[0].frames.step]:
        yield from ((span, frame) for span in parts if frame in span.frames)


def limit_growth(answer: Answer, before: SparseLogits) -> Answer:
    """Limit the growth of a propagated mask: one that jumps in size is held near the one before.

    Wherever it moves, an object grows little from one frame to the next; a mask that does not may
    have run into something else, and a leak carried on only gets larger. The score falls with the
    jump, so that the frame is among those to look at.
    """
    old, new = before.mask(), answer.region.mask()
    growth = new.sum() / max(1, old.sum())
    if growth <= MOST_GROWTH:
        return answer
    from scipy import ndimage

    reach = max(1.0, REACH * float(np.sqrt(old.sum())))
    near = ndimage.distance_transform_edt(~old) <= reach
    return Answer(SparseLogits.of_mask(new & near), answer.score / float(growth))


def box_around(region: SparseLogits) -> Box:
    """The box of a mask that is not empty, with a margin, within the image."""
    assert region.mask_bounds is not None
    low, high = (np.asarray(b, dtype=float) for b in region.mask_bounds)
    margin = np.ceil(BOX_MARGIN * (high - low))
    return Box(tuple(np.maximum(low - margin, 0)), tuple(np.minimum(high + margin, region.shape)))


def interpolate_box(marks: Mapping[int, Box], frame: int) -> Box | None:
    """The box on a frame between two marked ones: every side moves evenly from one to the other.

    Args:
        marks: boxes by frame, in ascending order.
        frame: where.

    Returns:
        None on a marked frame and beyond the outermost ones.
    """
    before = max((k for k in marks if k <= frame), default=None)
    after = min((k for k in marks if k >= frame), default=None)
    if before is None or after is None or before == after:
        return None
    share = (frame - before) / (after - before)
    first, last = marks[before], marks[after]
    low = _steps((1 - share) * np.asarray(first.low) + share * np.asarray(last.low))
    high = _steps((1 - share) * np.asarray(first.high) + share * np.asarray(last.high))
    return Box(tuple(low.tolist()), tuple(np.maximum(high, low + 1).tolist()))


def _steps(position: NDArray[np.float64]) -> NDArray[np.float64]:
    """In whole steps of 1/1024 pixel, so that a pixel's width stays exact."""
    return np.asarray(np.round(position * 1024) / 1024)
