"""What a correction may change, and what not."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from merge import merge, touching, unbridged, within


def _logits(*windows: tuple[slice, slice]) -> np.ndarray:
    found = np.full((40, 40), -5.0, dtype=np.float32)
    for window in windows:
        found[window] = 5.0
    return found


def _mark(row: int, column: int) -> np.ndarray:
    mark = np.zeros((40, 40), dtype=bool)
    mark[row, column] = True
    return mark


LEFT, RIGHT = np.s_[5:15, 5:15], np.s_[5:15, 25:35]
LOWER = np.s_[25:35, 5:15]


def test_positive_mark_only_adds() -> None:
    found = merge(_logits(RIGHT), _logits(LEFT), _mark(10, 30), positive=True)
    assert np.array_equal(found.logits > 0, _logits(LEFT, RIGHT) > 0)
    assert np.array_equal(found.refused, _logits(LEFT) > 0)


def test_negative_mark_only_takes_away() -> None:
    found = merge(_logits(LOWER), _logits(LEFT, RIGHT), _mark(10, 30), positive=False)
    assert np.array_equal(found.logits > 0, _logits(LEFT) > 0)


def test_far_parts_stay_as_they_are() -> None:
    found = merge(_logits(LEFT, RIGHT, LOWER), _logits(LEFT), _mark(10, 30), positive=True)
    assert np.array_equal(found.logits > 0, _logits(LEFT, RIGHT) > 0)
    assert found.refused.sum() == 100


@pytest.mark.parametrize("positive", [True, False])
def test_a_mark_that_confirms_changes_nothing(positive: bool) -> None:
    mark = _mark(10, 10) if positive else _mark(30, 30)
    before = _logits(LEFT)
    found = merge(_logits(RIGHT), before, mark, positive=positive)
    assert np.array_equal(found.logits > 0, before > 0)


@pytest.mark.parametrize("positive", [True, False])
def test_marked_pixel_obeys_a_network_that_does_not(positive: bool) -> None:
    before = _logits(LEFT)
    mark = _mark(30, 30) if positive else _mark(10, 10)
    found = merge(before, before, mark, positive=positive)
    assert ((found.logits > 0) != (before > 0)).sum() == 1
    assert (found.logits > 0)[mark].item() is positive


def test_nothing_outside_a_box_unless_the_mark_is_there() -> None:
    box = np.zeros((40, 40), dtype=bool)
    box[:20] = True
    spill = _logits(np.s_[5:30, 25:35])
    found = merge(spill, _logits(LEFT), _mark(10, 30), positive=True, region=box)
    assert not (found.logits > 0)[20:].any()
    assert (found.logits > 0)[10, 30]
    found = merge(spill, _logits(LEFT), _mark(25, 30), positive=True, region=box)
    assert np.array_equal(found.logits > 0, _logits(LEFT, np.s_[5:30, 25:35]) > 0)
    assert not (within(spill, box) > 0)[20:].any()


def test_logits_agree_with_the_answer_and_stay_finite() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=(2, 40, 40)).astype(np.float32) * 30
    for positive in (True, False):
        found = merge(after, before, _mark(3, 4), positive=positive)
        assert found.logits.dtype == np.float32
        assert np.isfinite(found.logits).all()
        changed = (found.logits > 0) != (before > 0)
        assert (found.logits > 0)[changed].all() == positive or not changed.any()


def test_a_part_on_a_thin_bridge_stays_if_asked() -> None:
    bridge = np.s_[9:11, 15:25]
    before, after = _logits(LOWER), _logits(LOWER, LEFT, bridge, RIGHT)
    whole = merge(after, before, _mark(10, 10), positive=True)
    assert np.array_equal(whole.logits > 0, after > 0)
    cut = merge(after, before, _mark(10, 10), positive=True, neck=0.5)
    assert (cut.logits > 0)[LEFT].mean() > 0.9
    assert not (cut.logits > 0)[RIGHT].any()
    assert cut.refused[RIGHT].all()


def test_thin_structures_have_no_bridges() -> None:
    line = _logits(np.s_[20:22, 2:38]) > 0
    assert np.array_equal(unbridged(line, _mark(20, 5), 2.5, 0.3), line)


def test_volumes_too() -> None:
    change = np.zeros((4, 8, 8), dtype=bool)
    change[1:3, 2:4, 2:4] = change[0, 7, 7] = True
    mark = np.zeros_like(change)
    mark[2, 3, 3] = True
    assert touching(change, mark, 1.0).sum() == 8
