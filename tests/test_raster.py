"""Prompts as pictures, against scikit-image and against distances worked out pixel by pixel."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limner.errors import PromptError
from limner.prompts.painting import paint_ball, paint_polygon, paint_stroke
from limner.prompts.raster import PromptMaps, rasterize
from limner.prompts.types import (
    Box,
    Click,
    Example,
    Lasso,
    MaskPrompt,
    Prompt,
    Scribble,
    TextPrompt,
)

SHAPES = {2: (24, 30), 3: (14, 18, 16)}


def only(prompt: Prompt, shape: tuple[int, ...], radius: float = 0) -> np.ndarray:
    """The one map that a prompt fills."""
    maps = rasterize([prompt], shape, click_radius=radius)
    filled = [m for m in vars(maps).values() if m is not None]
    assert len(filled) == 1
    assert filled[0].dtype == bool
    assert filled[0].shape == shape
    return filled[0]


def distance_to_line(points: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Distance of every pixel centre from a line of straight pieces."""
    grid = np.indices(shape).reshape(len(shape), -1).T.astype(float)
    best = np.full(len(grid), np.inf)
    for a, b in pairwise(points):
        step = b - a
        share = np.clip((grid - a) @ step / max(step @ step, 1e-30), 0, 1)
        best = np.minimum(best, np.linalg.norm(grid - a - share[:, None] * step, axis=1))
    return best.reshape(shape)


def test_what_was_not_said_is_none() -> None:
    assert vars(rasterize([], (4, 5))) == vars(PromptMaps())
    maps = rasterize([TextPrompt("liver"), Example(np.zeros((2, 2)), np.ones((2, 2)))], (4, 5))
    assert vars(maps) == vars(PromptMaps())
    maps = rasterize([Click((1, 1)), Click((2, 2), False)], (4, 5), click_radius=0)
    assert maps.box is maps.lasso is maps.mask is None
    assert np.argwhere(maps.positive).tolist() == [[1, 1]]
    assert np.argwhere(maps.negative).tolist() == [[2, 2]]


def test_prompts_of_one_kind_are_united() -> None:
    maps = rasterize(
        [
            Click((0, 0)),
            Scribble(((3, 0), (3, 4)), radius=0),
            Box((0, 0), (1, 2)),
            Box((2, 2), (4, 4)),
        ],
        (4, 5),
        click_radius=0,
    )
    assert maps.positive.sum() == 6
    assert maps.box.sum() == 6


@given(st.integers(0, 10**6), st.sampled_from((0, 0.4, 1, 2.5, 7)), st.sampled_from((2, 3)))
def test_ball_is_the_pixels_within_the_radius(seed: int, radius: float, ndim: int) -> None:
    shape = SHAPES[ndim]
    at = np.random.default_rng(seed).uniform(-0.5, np.array(shape) - 0.5)
    painted = only(Click(tuple(at)), shape, radius)
    gap = np.indices(shape) - at.reshape(-1, *[1] * ndim)
    expected = (gap**2).sum(axis=0) <= radius**2
    expected[tuple(np.minimum(np.floor(at + 0.5).astype(int), np.array(shape) - 1))] = True
    np.testing.assert_array_equal(painted, expected)


def test_disk_equals_skimage() -> None:
    draw = pytest.importorskip("skimage.draw")
    expected = np.zeros((40, 50), dtype=bool)
    expected[draw.disk((20, 45), 8.5, shape=(40, 50))] = True  # skimage's radius is exclusive
    np.testing.assert_array_equal(only(Click((20, 45)), (40, 50), 8.49), expected)


def test_radius_per_axis_makes_an_ellipsoid() -> None:
    maps = rasterize([Click((5, 10, 10))], (11, 21, 21), click_radius=(0, 3, 3))
    assert np.flatnonzero(maps.positive.any(axis=(1, 2))).tolist() == [5]
    assert maps.positive[5].sum() == 29
    maps = rasterize([Click((5, 10, 10))], (11, 21, 21), click_radius=(2, 4, 4))
    assert np.flatnonzero(maps.positive.any(axis=(1, 2))).tolist() == [3, 4, 5, 6, 7]


def test_clicks_outside_paint_what_reaches_in() -> None:
    mask = np.zeros((10, 10), dtype=bool)
    paint_ball(mask, (-2.0, 5.0), 3.0)
    assert mask[0, 5]
    assert not mask[2:].any()
    paint_ball(mask, (-50.0, 5.0), 3.0)
    assert mask.sum() == 6


@pytest.mark.slow
@pytest.mark.parametrize("radius", [0, 0.4, 1, 2.5, 8, 40])
@pytest.mark.parametrize("ndim", [2, 3])
@given(seed=st.integers(0, 10**6))
def test_stroke_is_the_pixels_near_the_line(ndim: int, radius: float, seed: int) -> None:
    shape = SHAPES[ndim]
    rng = np.random.default_rng(seed)
    points = rng.uniform(-12, 35, (rng.integers(2, 6), ndim))
    painted = only(Scribble(tuple(map(tuple, points)), radius=radius), shape)
    away = distance_to_line(points, shape)
    assert painted[away <= radius].all()
    assert (away[painted] <= max(radius, np.sqrt(ndim) / 2 + 1e-6)).all()


@given(st.integers(0, 10**6), st.sampled_from((2, 3)))
def test_thin_stroke_has_no_gaps(seed: int, ndim: int) -> None:
    from scipy import ndimage

    shape = SHAPES[ndim]
    points = np.random.default_rng(seed).uniform(0, np.array(shape) - 1, (4, ndim))
    painted = only(Scribble(tuple(map(tuple, points)), radius=0), shape)
    assert ndimage.label(painted, np.ones((3,) * ndim))[1] == 1
    for point in points:
        assert painted[tuple(np.floor(point + 0.5).astype(int))]


def test_thin_stroke_between_pixels_equals_skimage() -> None:
    draw = pytest.importorskip("skimage.draw")
    for end in ((3, 35), (35, 3), (30, 30), (2, 2), (2, 30), (30, 2)):
        expected = np.zeros((40, 40), dtype=bool)
        expected[draw.line(2, 2, *end)] = True
        painted = only(Scribble(((2, 2), end), radius=0), (40, 40))
        assert painted.sum() == expected.sum()
        assert np.abs(distance_to_line(np.array([(2.0, 2.0), end]), (40, 40))[painted]).max() <= 0.5


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_stroke_on_a_slice_stays_on_it(axis: int) -> None:
    rng = np.random.default_rng(axis)
    flat = rng.uniform(2, 12, (4, 2))
    points = np.insert(flat, axis, 6.0, axis=1)
    painted = only(Scribble(tuple(map(tuple, points)), radius=2), SHAPES[3])
    plane_shape = tuple(np.delete(SHAPES[3], axis))
    expected = only(Scribble(tuple(map(tuple, flat)), radius=2), plane_shape)
    np.testing.assert_array_equal(np.take(painted, 6, axis), expected)
    assert painted.sum() == expected.sum()


def test_one_point_is_a_dot() -> None:
    painted = only(Scribble(((5, 6),), radius=3), (12, 12))
    np.testing.assert_array_equal(painted, only(Click((5, 6)), (12, 12), 3))
    painted = only(Scribble(((5, 6, 7),), radius=3), (12, 12, 12))
    np.testing.assert_array_equal(painted[5], only(Click((6, 7)), (12, 12), 3))
    assert painted.sum() == painted[5].sum()


@pytest.mark.parametrize("integers", [True, False])
@given(seed=st.integers(0, 10**6))
def test_polygon_equals_skimage(integers: bool, seed: int) -> None:
    from skimage import draw

    rng = np.random.default_rng(seed)
    count = int(rng.integers(3, 9))
    # A star around a centre does not cross itself, so winding and even-odd rules agree.
    angles = np.sort(rng.uniform(0, 2 * np.pi, count))
    gaps = np.diff(np.append(angles, angles[0] + 2 * np.pi))
    if gaps.max() > 3.0:
        return
    reach = rng.uniform(1, 30, count)
    corners = np.stack([12 + reach * np.sin(angles), 15 + reach * np.cos(angles)], axis=1)
    if integers and count == 3:
        corners = np.rint(corners)
    expected = np.zeros((24, 30), dtype=bool)
    expected[draw.polygon(*corners.T, shape=(24, 30))] = True
    painted = only(Lasso(tuple(map(tuple, corners))), (24, 30))
    np.testing.assert_array_equal(painted, expected)


def test_polygon_holds_its_outline() -> None:
    square = only(Lasso(((2, 3), (2, 7), (5, 7), (5, 3))), (10, 10))
    expected = np.zeros((10, 10), dtype=bool)
    expected[2:6, 3:8] = True
    np.testing.assert_array_equal(square, expected)
    spike = only(Lasso(((1, 5), (8, 4.9), (8, 5.1))), (10, 10))
    assert np.argwhere(spike).tolist() == [[r, 5] for r in range(1, 9)]
    flat = only(Lasso(((4, 2), (4, 6), (4, 3))), (10, 10))
    assert np.argwhere(flat).tolist() == [[4, c] for c in range(2, 7)]


def test_lasso_that_overshoots_its_start_has_no_hole() -> None:
    angles = np.linspace(0, 2.6 * np.pi, 80)
    reach = np.linspace(30, 26, 80)
    corners = 40 + reach[:, None] * np.stack([np.sin(angles), np.cos(angles)], axis=1)
    painted = only(Lasso(tuple(map(tuple, corners))), (80, 80))
    disk = only(Click((40, 40)), (80, 80), 25)
    assert painted[disk].all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_lasso_in_a_volume_fills_its_slice(axis: int) -> None:
    flat = ((2.2, 3.1), (2.4, 9.7), (10.5, 8.0))
    points = np.insert(np.array(flat), axis, 4.3, axis=1)
    painted = only(Lasso(tuple(map(tuple, points))), SHAPES[3])
    expected = only(Lasso(flat), tuple(int(n) for n in np.delete(SHAPES[3], axis)))
    np.testing.assert_array_equal(np.take(painted, 4, axis), expected)
    assert painted.sum() == expected.sum() > 0
    beside = np.insert(np.array(flat), axis, 99.0, axis=1)
    assert not only(Lasso(tuple(map(tuple, beside))), SHAPES[3]).any()


def test_box_is_half_open_and_cut_off() -> None:
    expected = np.zeros((10, 12), dtype=bool)
    expected[2:5, 3:7] = True
    np.testing.assert_array_equal(only(Box((2, 3), (5, 7)), (10, 12)), expected)
    np.testing.assert_array_equal(only(Box((1.2, 2.5), (4.1, 6.7)), (10, 12)), expected)
    assert only(Box((-5, -5), (99, 99)), (10, 12)).all()
    assert not only(Box((-5, 0), (0, 5)), (10, 12)).any()
    assert only(Box((1, 2, 3), (2, 4, 6)), (5, 6, 7)).sum() == 6


def test_masks_must_fit() -> None:
    mask = np.eye(4, dtype=bool)
    np.testing.assert_array_equal(only(MaskPrompt(mask), (4, 4)), mask)
    with pytest.raises(PromptError, match="does not fit"):
        rasterize([MaskPrompt(mask)], (4, 5))


def test_painting_does_not_write_into_prompts() -> None:
    prompt = MaskPrompt(np.eye(4))
    maps = rasterize([prompt, MaskPrompt(np.ones((4, 4)))], (4, 4))
    assert maps.mask.all()
    assert prompt.mask.sum() == 4


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(PromptError, match="3 coordinates cannot be painted"):
        rasterize([Click((1, 2, 3))], (4, 4))
    with pytest.raises(ValueError, match="radius"):
        rasterize([Click((1, 2))], (4, 4), click_radius=-1)
    with pytest.raises(ValueError, match="2 or 3 axes"):
        rasterize([], (4,))


def test_prompts_far_beyond_the_image_cost_nothing() -> None:
    """A stroke of 10¹⁰ pixels and a polygon as large are cut before they are sampled."""
    far = 1e9
    maps = rasterize(
        [
            Scribble(((-far, -far), (far, far), (-far, 5.0)), radius=2),
            Scribble(((-far, -far), (far, -far)), False, radius=far / 2),
            Lasso(((-far, -far), (far, -far), (far, far), (-far, far))),
            Click((3, 3), positive=False),
        ],
        (50, 60),
        click_radius=far,
    )
    assert maps.positive[np.arange(50), np.arange(50)].all()
    assert maps.lasso.all()
    assert maps.negative.all()
    for edge in (1e300, -1e300):  # no number is so large that it overflows
        lasso = Lasso(((edge, 1.0), (5.0, edge), (-edge, -edge)))
        maps = rasterize([lasso, Scribble(((edge, 4.0), (-edge, 4.0)), radius=1e300)], (9, 9))
        assert maps.positive.all()


def test_long_strokes_and_outlines_are_painted_in_parts() -> None:
    angles = np.linspace(0, 2 * np.pi, 5000, endpoint=False)
    ring = 100 + 80 * np.stack([np.sin(angles), np.cos(angles)], axis=1)
    stroke = np.zeros((200, 200), dtype=bool)
    paint_stroke(stroke, np.vstack([ring, ring[:1]]), 3.0)
    away = np.abs(np.hypot(*(np.indices((200, 200)) - 100)) - 80)
    assert stroke[away <= 2.99].all()
    assert not stroke[away > 3.01].any()
    filled = np.zeros((200, 200), dtype=bool)
    paint_polygon(filled, ring)
    assert filled[np.hypot(*(np.indices((200, 200)) - 100)) < 79.9].all()
    assert not filled[np.hypot(*(np.indices((200, 200)) - 100)) > 80].any()
