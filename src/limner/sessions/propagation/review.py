"""Frames to review: where a propagation is least sure."""

from __future__ import annotations

from array import array
from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from limner import rle
from limner.sessions.answers.answer_table import AnswerTable
from limner.sessions.history.events import Runs
from limner.sessions.history.log import PromptLog

_SPREAD = 4  # times as many places are told apart as entries are wanted


class ReviewFrame(NamedTuple):
    """A frame that needs a look.

    Attributes:
        frame: its number.
        score: 0…1, lower where a look is needed more.
        object_id: whose mask is in doubt there.
    """

    frame: int
    score: float
    object_id: int


def find_review_frames(
    log: PromptLog,
    answers: AnswerTable,
    object_ids: Sequence[int],
    damaged: Container[int],
    count: int,
) -> tuple[ReviewFrame, ...]:
    """The propagated frames of some objects that most need a look, the worst first.

    Args:
        log: prompts and propagated frames.
        answers: to the prompts.
        object_ids: whose.
        damaged: frames that could not be read, which are left out.
        count: of frames, at most.
    """
    sure: dict[int, tuple[float, int]] = {}
    for i in object_ids:
        annotated = log.frames(i)
        written = log.committed(i).items()
        propagated = {
            k: (w.runs, w.score) for k, w in written if k not in annotated and k not in damaged
        }
        beside = (k for k in annotated if {k - 1, k + 1} & propagated.keys())
        fixed = {k: array("Q", rle.encode(answers.answer(i, k).region.mask())) for k in beside}
        for k, score in rate_certainty(propagated, fixed).items():
            sure[k] = min(sure.get(k, (score, i)), (score, i))
    return choose_worst(sure, count)


def rate_certainty(
    propagated: Mapping[int, tuple[Runs, float]], fixed: Mapping[int, Runs]
) -> dict[int, float]:
    """How sure each propagated frame of an object is, 0…1.

    That is its score, lowered where the mask overlaps less with those on the frames beside it than
    is usual for this object: a jump of area or of place. A frame without the object between others
    without it is sure; that it goes or comes is a jump.

    Args:
        propagated: runs and score by frame.
        fixed: runs on frames that the user annotated; they are neighbours only.
    """
    masks = {**{k: runs for k, (runs, _) in propagated.items()}, **fixed}
    overlaps = {k: overlap(masks[k], masks[k + 1]) for k in masks if k + 1 in masks}
    shown = [o for k, o in overlaps.items() if any(masks[k][1::2]) and any(masks[k + 1][1::2])]
    usual = float(np.median(shown)) if shown else 1.0
    found = {}
    for k, (runs, score) in propagated.items():
        beside = [overlaps[j] for j in (k - 1, k) if j in overlaps]
        steady = min([1.0, *(o / max(usual, 1e-6) for o in beside)])
        found[k] = (score if any(runs[1::2]) else 1.0) * steady
    return found


def overlap(one: Sequence[int], other: Sequence[int]) -> float:
    """Dice of two masks of one shape, from their runs; 1 where both are empty."""
    ends = [np.cumsum(np.asarray(runs, dtype=np.int64)) for runs in (one, other)]
    area = sum(int(np.asarray(runs[1::2], dtype=np.int64).sum()) for runs in (one, other))
    if area == 0:
        return 1.0
    cuts = np.unique(np.concatenate([[0], *ends]))
    inside = [np.searchsorted(e, cuts[:-1], side="right") % 2 == 1 for e in ends]
    both = int(np.diff(cuts)[inside[0] & inside[1]].sum())
    return 2 * both / area


def choose_worst(sure: Mapping[int, tuple[float, int]], count: int) -> tuple[ReviewFrame, ...]:
    """The least sure frames, spread out: what is near to a worse one is left out.

    Args:
        sure: certainty and object by frame.
        count: of entries, at most.
    """
    apart = max(2, len(sure) // max(1, _SPREAD * count))
    chosen: list[ReviewFrame] = []
    for frame in sorted(sure, key=lambda k: (sure[k][0], k)):
        if len(chosen) >= count:
            break
        if all(abs(frame - other.frame) > apart for other in chosen):
            chosen.append(ReviewFrame(frame, *sure[frame]))
    return tuple(chosen)
