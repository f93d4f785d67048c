"""Windows, shrinking and regions: what a model sees and how its answer comes back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limner import Box, Click, Lasso, MaskPrompt, Scribble, TextPrompt
from limner.sessions._region import Region, changed_box, rounded
from limner.sessions._resize import bin_edges, enlarge, shrink
from limner.sessions._zoom import to_view

SIZES = st.integers(1, 60)


@given(st.data())
def test_shrinking_keeps_the_mean_and_enlarging_a_constant(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(SIZES, SIZES))
    target = tuple(data.draw(st.integers(1, n)) for n in shape)
    array = np.random.default_rng(0).random(shape).astype(np.float32)
    small = shrink(array, target)
    assert small.shape == target
    weights = np.multiply.outer(
        *[np.diff(bin_edges(n, m)) for n, m in zip(shape, target, strict=True)]
    )
    assert (small * weights).sum() == pytest.approx(array.sum(), rel=1e-4)
    edges = [bin_edges(n, m) for n, m in zip(shape, target, strict=True)]
    assert np.allclose(enlarge(np.full(target, 3.0, np.float32), edges), 3.0)


@given(st.data())
def test_enlarging_a_ramp_gives_the_ramp_between_the_outer_centres(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 60))
    bins = data.draw(st.integers(2, size))
    ramp = np.arange(size, dtype=np.float32)[:, None]
    small = shrink(ramp, (bins, 1))
    back = enlarge(small, [bin_edges(size, bins), bin_edges(1, 1)])
    inner = slice(int(np.ceil(small[0, 0])), int(small[-1, 0]) + 1)
    assert np.allclose(back[inner], ramp[inner], atol=0.05)


def test_shrinking_keeps_channels_and_leaves_fitting_arrays_alone() -> None:
    array = np.random.default_rng(0).integers(0, 255, (8, 6, 3), dtype=np.uint8)
    assert shrink(array, (8, 6)) is array
    assert shrink(array, (4, 3)).shape == (4, 3, 3)


MASKS = st.integers(0, 2**30).map(
    lambda seed: np.random.default_rng(seed).random((9, 11)) > np.random.default_rng(seed).random()
)


@given(MASKS, MASKS)
def test_regions_hold_masks_exactly_and_tell_what_changed(
    before: np.ndarray, after: np.ndarray
) -> None:
    old, new = Region.of_mask(before), Region.of_mask(after)
    assert np.array_equal(new.mask(), after)
    assert np.array_equal(new.full() > 0, after)
    assert np.array_equal(new.window((2, 3), (9, 8)) > 0, after[2:9, 3:8])
    box = changed_box(old, new)
    differs = np.argwhere(before != after)
    if len(differs):
        assert box is not None
        assert (box.low, box.high) == (tuple(differs.min(axis=0)), tuple(differs.max(axis=0) + 1))
    else:
        assert box is None


def test_tiny_positive_logits_stay_positive_in_half_precision() -> None:
    logits = np.array([1e-12, 0.0, -1e-12, 1e9, -1e9], dtype=np.float32)
    kept = rounded(logits).astype(np.float16)
    assert (kept > 0).tolist() == [True, False, False, True, False]
    assert np.isfinite(kept).all()


def test_a_plane_of_a_region_is_the_region_of_the_plane() -> None:
    mask = np.random.default_rng(1).random((5, 6, 7)) > 0.7
    region = Region.of_mask(mask)
    for k in range(5):
        plane = region.plane(k)
        assert plane is not None
        assert np.array_equal(plane.mask(), mask[k])
    assert region.plane(99) is None


def test_prompts_land_where_the_view_shows_their_pixels() -> None:
    bounds, shape = ((10, 20), (50, 100)), (20, 40)  # half the size
    click = to_view(Click((30, 60)), bounds, shape)
    assert click == Click((9.75, 19.75))
    assert to_view(Click((9, 60)), bounds, shape) is None
    box = to_view(Box((0, 30), (30, 120)), bounds, shape)
    assert box == Box((0, 5), (10, 40))
    assert to_view(Box((0, 0), (5, 5)), bounds, shape) is None
    tiny = to_view(Box((30, 60), (31, 61)), bounds, shape)
    assert isinstance(tiny, Box)
    stroke = to_view(Scribble(((30, 60), (30, 80)), radius=2.0), bounds, shape)
    assert isinstance(stroke, Scribble)
    assert stroke.radius == pytest.approx(1.0)
    assert isinstance(to_view(Lasso(((20, 30), (20, 40), (40, 40))), bounds, shape), Lasso)
    assert to_view(TextPrompt("liver"), bounds, shape) == TextPrompt("liver")
    mask = np.zeros((60, 120), dtype=bool)
    mask[33, 71] = True
    shown = to_view(MaskPrompt(mask), bounds, shape)
    assert isinstance(shown, MaskPrompt)
    assert np.argwhere(shown.mask).tolist() == [[11, 25]]
