"""How much of the surroundings a model is shown: what the quality of answers hangs on.

The networks that limner ships were trained, and the benchmark's figures measured, on windows with
these margins. Who changes one of them changes both, and must measure again.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from limner import Box, Click, MaskPrompt
from limner.sessions.answers.image_view import ImageView
from limner.sessions.answers.window import around, ever_larger, grown, is_close


def view(*shape: int, spacing: tuple[float, ...] | None = None) -> ImageView:
    return ImageView(np.zeros(shape, np.uint8), spacing or (1.0,) * len(shape), (0, 255), None)


def test_an_object_is_seen_with_three_tenths_of_its_size_around_it() -> None:
    box = Box((400, 300), (500, 380))
    assert around(view(1000, 1000), [box], None, (64, 64)) == ((370, 276), (530, 404))


def test_a_small_object_is_seen_with_twelve_pixels_around_it() -> None:
    box = Box((400, 300), (420, 310))
    assert around(view(1000, 1000), [box], None, (16, 16)) == ((388, 288), (432, 322))


def test_margins_are_counted_on_the_finest_axis() -> None:
    box = Box((50, 300, 300), (52, 310, 310))
    thick = view(100, 600, 600, spacing=(4.0, 1.0, 1.0))
    assert around(thick, [box], None, (16, 16, 16)) == ((47, 288, 288), (55, 322, 322))


def test_a_window_is_at_least_half_of_what_the_model_takes() -> None:
    assert around(view(1000, 1000), [Click((500, 500))], None, (256, 256)) == (
        (436, 436),
        (565, 565),
    )


def test_what_was_found_counts_and_what_was_denied_does_not() -> None:
    said = [Click((500, 500)), Click((900, 900), positive=False), MaskPrompt(np.zeros((1000,) * 2))]
    found = ((400, 480), (600, 520))
    assert around(view(1000, 1000), said, found, (64, 64)) == ((340, 468), (660, 532))
    assert around(view(1000, 1000), said[1:2], None, (64, 64)) == ((0, 0), (1000, 1000))


def test_a_window_that_cuts_the_mask_grows_by_half_on_that_side() -> None:
    logits = np.full((8, 8), -1.0, np.float32)
    bounds = ((40, 40), (80, 80))
    assert grown(logits, bounds, (200, 200)) == bounds
    logits[0, 3] = logits[4, -1] = 1.0
    assert grown(logits, bounds, (200, 200)) == ((20, 40), (80, 100))
    assert grown(logits, bounds, (80, 90)) == ((20, 40), (80, 90))


def test_marks_alone_are_looked_at_in_windows_twice_as_large_each() -> None:
    windows = ever_larger(view(300, 300), [Click((150, 150))], (64, 64))
    sizes = [b - a for (a, _), (b, _) in windows]
    assert windows[-1] == ((0, 0), (300, 300))
    assert sizes[0] == 33
    assert all(1.9 < b / a <= 2.1 for a, b in pairwise(sizes[:-1]))


@pytest.mark.parametrize(("side", "close"), [(40, True), (160, True), (161, False)])
def test_a_window_up_to_four_times_as_large_does_as_well(side: int, close: bool) -> None:
    wanted, window = ((40, 40), (80, 80)), ((0, 0), (side, side))
    assert is_close(window, wanted) is close
