"""Masks that are copied, or moved with what is under them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from limner import metrics
from limner.errors import PromptError
from limner.models import PreviousFrame, TrackerModel, View, create_model
from limner.models.classical.optical_flow import DRAWN, MOST_GIVEN, lucas_kanade
from limner.prompts import Box, Lasso, MaskPrompt, Scribble

SIDE = 96
NAMES = ("classical/copy", "classical/flow")
both = pytest.mark.parametrize("name", NAMES)


def texture(seed: int, side: int = SIDE) -> NDArray[np.float32]:
    noise = np.random.default_rng(seed).normal(size=(side, side))
    found = ndimage.gaussian_filter(noise, 2, mode="wrap")
    return (100 + 40 * found / found.std()).astype(np.float32)


def disk(row: float, column: float, radius: float = 14) -> NDArray[np.bool_]:
    rows, columns = np.ogrid[:SIDE, :SIDE]
    return np.asarray(np.hypot(rows - row, columns - column) < radius)


def scene(step: int) -> tuple[View, NDArray[np.bool_]]:
    """A textured disk that moves two rows down and one column to the left with each step, over
    another texture that does not.
    """
    mask = disk(30 + 2 * step, 50 - step)
    moved = np.roll(texture(1), (2 * step, -step), axis=(0, 1)) + 60
    return View(np.where(mask, moved, texture(2)), (1.0, 1.0), (0.0, 300.0)), mask


def drawn(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    return np.where(mask, np.float32(DRAWN), np.float32(-DRAWN))


def model_of(name: str) -> Any:
    model = create_model(name)
    assert isinstance(model, TrackerModel)
    return model


@both
def test_what_is_drawn_stays_as_it_is(name: str) -> None:
    model = create_model(name)
    view, mask = scene(0)
    shape = model.embed(view)
    found = model.segment(shape, [MaskPrompt(mask)])
    np.testing.assert_array_equal(found.logits > 0, mask)
    assert found.score == 1
    line = Lasso([(10, 10), (10, 30), (30, 30), (30, 10)])
    wider = model.segment(shape, [MaskPrompt(mask), line]).logits > 0
    assert wider[20, 20]
    assert (wider | ~mask).all()
    eraser = Scribble([(30, 40), (30, 60)], positive=False, radius=2)
    less = model.segment(shape, [eraser], drawn(mask)).logits > 0
    assert 0 < less.sum() < mask.sum()
    with pytest.raises(PromptError, match="lasso, mask, scribble, not box"):
        model.segment(shape, [Box((1, 1), (5, 5))])


def test_the_flow_of_a_picture_that_moves() -> None:
    before = texture(1) / 255
    after = np.roll(before, (3, -2), axis=(0, 1))
    motion = lucas_kanade(before, after)[12:-12, 12:-12]
    np.testing.assert_allclose(np.median(motion, axis=(0, 1)), (-3, 2), atol=0.2)
    tiny = lucas_kanade(before[:5, :7], after[:5, :7])
    assert tiny.shape == (5, 7, 2)
    assert np.isfinite(lucas_kanade(np.zeros((20, 20), np.float32), before[:20, :20])).all()


def test_a_moving_disk_is_followed_by_the_flow_and_lost_by_the_copy() -> None:
    scores = {}
    for name in NAMES:
        model = model_of(name)
        view, mask = scene(0)
        looked = model.encode_window(view, (0.0, 0.0))
        memory = model.remember(None, looked, drawn(mask), place=0, given=True)
        before = PreviousFrame(view, drawn(mask))
        for step in range(1, 13):
            view, mask = scene(step)
            looked = model.encode_window(view, (0.0, 0.0))
            found = model.track_object(memory, looked, before)
            assert found.logits.dtype == np.float32
            assert 0 <= found.score <= 1
            kept = {key: value.copy() for key, value in memory.items()}
            after = model.remember(memory, looked, found.logits, place=step, given=False)
            assert_same(memory, kept)
            memory, before = after, PreviousFrame(view, found.logits)
        scores[name] = metrics.dice(before.logits > 0, mask), found.score
    assert scores["classical/flow"][0] > 0.8
    assert scores["classical/copy"][0] < 0.3
    assert scores["classical/flow"][1] > scores["classical/copy"][1]


def assert_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key])


@both
def test_another_window_of_the_same_frame(name: str) -> None:
    model = model_of(name)
    view, mask = scene(0)
    memory = model.remember(
        None, model.encode_window(view, (0.0, 0.0)), drawn(mask), place=0, given=True
    )
    window = slice(12, 60), slice(30, 90)
    part = View(view.array[window], view.spacing, view.intensity)
    found = model.track_object(memory, model.encode_window(part, (12.0, 30.0)), None)
    np.testing.assert_array_equal(found.logits > 0, mask[window])
    beyond = model.track_object(memory, model.encode_window(part, (500.0, 500.0)), None)
    assert not (beyond.logits > 0).any()
    assert beyond.score == 0


@both
def test_of_several_annotated_frames_the_one_like_the_frame_before_is_gone_on_from(
    name: str,
) -> None:
    model = model_of(name)
    memory = None
    for step in (0, 12):  # the second lies ahead
        view, mask = scene(step)
        looked = model.encode_window(view, (0.0, 0.0))
        memory = model.remember(memory, looked, drawn(mask), place=step, given=True)
    view, mask = scene(1)
    assert memory is not None
    found = model.track_object(
        memory, model.encode_window(view, (0.0, 0.0)), PreviousFrame(view, drawn(scene(0)[1]))
    )
    assert metrics.dice(found.logits > 0, mask) > 0.85


@both
def test_memory_is_bounded_and_a_lost_object_stays_lost(name: str) -> None:
    model = model_of(name)
    view, mask = scene(0)
    looked = model.encode_window(view, (0.0, 0.0))
    memory = None
    sizes = set()
    for place in range(12):
        memory = model.remember(memory, looked, drawn(mask), place=place, given=place % 2 == 0)
        sizes.add(sum(value.nbytes for value in memory.values()))
    assert max(sizes) <= (MOST_GIVEN + 1) * (2 * 4 * SIDE**2 + 100)
    memory = model.remember(None, looked, drawn(mask & False), place=0, given=True)
    found = model.track_object(memory, looked, None)
    assert not (found.logits > 0).any()
    assert found.score == 0


def test_colour_and_holes_in_the_data_are_looked_at() -> None:
    model = model_of("classical/flow")
    pixels = np.full((20, 30, 3), 50.0)
    pixels[3, 4] = np.nan
    looked = model.encode_window(View(pixels, (1.0, 1.0), (0.0, 100.0)), (0.0, 0.0))
    assert looked.grey.shape == (20, 30)
    assert np.isfinite(looked.grey).all()
    assert looked.grey[0, 0] == pytest.approx(0.5)
