"""Corrections that never hurt: what of a new answer a session takes over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import limner
from limner.adapters.protocols import ModelCard, Segmentation, View
from limner.prompts import Box, Click, Lasso, Prompt, Scribble
from limner.sessions.answers.merge import merge_answer

CARD = ModelCard("told", "", (2, 3), frozenset({"click", "box", "scribble"}), "", "", False, {})


class Told:
    """Answers what it was told to, one mask after the other."""

    card = CARD

    def __init__(self, *masks: NDArray[Any]) -> None:
        self._masks = list(masks)

    def embed(self, view: View) -> View:
        return view

    def segment(
        self, embedding: View, prompts: Sequence[Prompt], previous: object = None
    ) -> Segmentation:
        return Segmentation(np.where(self._masks.pop(0), 5.0, -5.0).astype(np.float32), 0.5)


def mask(*parts: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """Rectangles (top, left, bottom, right) on 40 x 40 pixels."""
    result = np.zeros((40, 40), np.bool_)
    for top, left, bottom, right in parts:
        result[top:bottom, left:right] = True
    return result


def answered(masks: Sequence[NDArray[Any]], *rounds: Sequence[Prompt]) -> list[limner.Prediction]:
    found = []
    with limner.open_session(np.zeros(masks[0].shape, np.uint8), Told(*masks)) as session:
        for prompts in rounds:
            for prompt in prompts:
                session.add(prompt)
            found.append(session.predict())
    return found


def test_after_a_box_a_mark_changes_the_part_that_it_lies_in_and_nothing_else() -> None:
    box = Box((4, 4), (36, 36))
    first = mask((10, 10, 20, 20))
    # at the mark it adds; elsewhere it would add, and take half of the answer away
    second = mask((10, 10, 15, 20), (22, 22, 28, 28), (30, 5, 34, 9))
    (_, then) = answered([first, second], [box], [Click((25, 25))])
    assert np.array_equal(then.mask, first | mask((22, 22, 28, 28)))
    assert then.withheld == mask((15, 10, 20, 20), (30, 5, 34, 9)).sum()
    (_, then) = answered([first, second], [box], [Click((17, 15), positive=False)])
    assert np.array_equal(then.mask, mask((10, 10, 15, 20)))
    both = [Click((25, 25)), Scribble([(17, 12), (17, 18)], positive=False, radius=0)]
    (_, then) = answered([first, second], [box], both)
    assert np.array_equal(then.mask, mask((10, 10, 15, 20), (22, 22, 28, 28)))


def test_nothing_lies_outside_a_box_unless_a_mark_is_there() -> None:
    spilled = mask((2, 2, 30, 30))
    box = Box((4, 4), (20, 20))
    (first,) = answered([spilled], [box])
    assert np.array_equal(first.mask, mask((4, 4, 20, 20)))
    assert first.withheld == spilled.sum() - 256
    (_, then) = answered([spilled, spilled], [box], [Click((25, 25))])
    assert np.array_equal(then.mask, spilled)
    (_, then) = answered([spilled, mask()], [box], [Click((8, 8))])
    assert np.array_equal(then.mask, first.mask), "a click inside confirms; it takes nothing away"


def test_marks_alone_may_be_read_anew_until_there_are_many() -> None:
    first, other = mask((10, 10, 14, 14)), mask((9, 9, 30, 30))
    (_, then) = answered([first, other], [Click((12, 12))], [Click((13, 20))])
    assert np.array_equal(then.mask, other)
    smaller = mask((10, 10, 13, 14))
    (_, then) = answered([first, smaller], [Click((12, 12))], [Click((20, 20))])
    assert np.array_equal(then.mask, first | mask((20, 20, 21, 21)))
    clicks = [Click((10 + k // 4, 10 + k % 4)) for k in range(9)]
    (_, then) = answered([first, other], clicks, [Click((30, 35), positive=False)])
    assert np.array_equal(then.mask, first)


def test_a_new_box_or_a_first_answer_counts_whole_within_the_box() -> None:
    first, second = mask((10, 10, 20, 20)), mask((5, 5, 12, 12))
    (_, then) = answered([first, second], [Click((15, 15))], [Box((5, 5), (12, 12))])
    assert np.array_equal(then.mask, second & mask((5, 5, 12, 12)))
    assert then.withheld == 0


def test_in_a_volume_a_box_of_one_slice_speaks_of_that_slice_alone() -> None:
    after = np.full((5, 8, 8), 3.0, np.float32)
    box = Box((2, 2, 2), (3, 5, 5))
    found = merge_answer(after, None, [box], [box]).logits > 0
    assert found[[0, 1, 3, 4]].all()
    assert found[2].sum() == 9
    thick = Box((1, 2, 2), (3, 5, 5))
    assert (merge_answer(after, None, [thick], [thick]).logits > 0).sum() == 18


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans(), st.booleans())
def test_a_mark_moves_the_answer_its_own_way_only(seed: int, positive: bool, boxed: bool) -> None:
    rng = np.random.default_rng(seed)
    before, after = rng.normal(0, 2, (2, 12, 12)).astype(np.float32)
    area = Box((1, 1), (9, 9)) if boxed else Lasso([(1, 1), (1, 9), (9, 9), (9, 1)])
    at = tuple(float(n) for n in rng.integers(0, 12, 2))
    mark = Click(at, positive=positive)
    merged = merge_answer(after, before, [area, mark], [mark])
    was, found = before > 0, merged.logits > 0
    if was.any():
        assert (found >= was).all() if positive else (found <= was).all()
        assert found[int(at[0]), int(at[1])] == positive
        assert np.array_equal(found, (after > 0) ^ merged.withheld)


@pytest.mark.parametrize("shape", [(6, 6), (3, 6, 6)])
def test_an_empty_answer_is_no_answer(shape: tuple[int, ...]) -> None:
    after = np.ones(shape, np.float32)
    nothing = -after
    click = Click((1.0,) * len(shape))
    assert np.array_equal(merge_answer(after, nothing, [click], [click]).logits, after)
