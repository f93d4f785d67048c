"""Prompts between coordinate frames."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limner.errors import PromptError
from limner.geometry import Geometry
from limner.prompts.convert import (
    check_inside,
    extent,
    from_world,
    from_xyz,
    on_slice,
    scribbles_from_mask,
)
from limner.prompts.raster import rasterize
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


def oblique(seed: int = 0) -> Geometry:
    rng = np.random.default_rng(seed)
    direction, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return Geometry.from_spacing(
        (20, 30, 40), (2.5, 0.8, 0.6), origin=(-40, 12, 100), direction=direction
    )


def test_xyz_is_turned_round() -> None:
    assert from_xyz(Click((5, 7, 2), positive=False)) == Click((2, 7, 5), positive=False)
    assert from_xyz(Box((1, 2), (3, 5))) == Box((2, 1), (5, 3))
    assert from_xyz(Scribble(((1, 2), (3, 4)), False, 1.5)) == Scribble(
        ((2, 1), (4, 3)), False, 1.5
    )
    assert from_xyz(Lasso(((0, 1), (2, 3), (4, 0)))) == Lasso(((1, 0), (3, 2), (0, 4)))
    mask = np.zeros((4, 6), dtype=bool)  # x, y
    mask[3, 1] = True
    assert from_xyz(MaskPrompt(mask)) == MaskPrompt(mask.T)
    assert from_xyz(TextPrompt("liver")) == TextPrompt("liver")


@pytest.mark.parametrize("system", ["lps", "ras"])
@given(seed=st.integers(0, 500))
def test_world_positions_land_on_their_index(system: str, seed: int) -> None:
    geometry = oblique(seed)
    index = np.random.default_rng(seed).uniform(0, 19, (4, 3))
    world = geometry.index_to_world(index) * ((1, 1, 1) if system == "lps" else (-1, -1, 1))
    click = from_world(Click(tuple(world[0]), False), geometry, system=system)
    assert isinstance(click, Click)
    assert click.at == pytest.approx(tuple(index[0]))
    assert not click.positive
    stroke = from_world(Scribble(tuple(map(tuple, world)), radius=3), geometry, system=system)
    assert isinstance(stroke, Scribble)
    np.testing.assert_allclose(stroke.points, index, atol=1e-8)
    assert stroke.radius == 3


@given(seed=st.integers(0, 500))
def test_world_box_holds_its_corners(seed: int) -> None:
    geometry = oblique(seed)
    rng = np.random.default_rng(seed)
    low = geometry.index_to_world(rng.uniform(2, 15, 3))
    high = low + rng.uniform(1, 20, 3)
    box = from_world(Box(tuple(low), tuple(high)), geometry, system="lps")
    assert isinstance(box, Box)
    corners = np.stack(np.meshgrid(*zip(low, high, strict=True)), axis=-1).reshape(-1, 3)
    pixels = np.floor(geometry.world_to_index(corners) + 0.5)
    assert (pixels >= np.array(box.low)).all()
    assert (pixels <= np.array(box.high)).all()
    assert all(float(x).is_integer() for x in (*box.low, *box.high))


def test_world_box_smaller_than_a_pixel_is_one_pixel() -> None:
    geometry = Geometry.from_spacing((10, 10, 10), (10, 10, 10))
    box = from_world(Box((41, 41, 41), (42, 42, 42)), geometry, system="lps")
    assert box == Box((4, 4, 4), (5, 5, 5))


def test_world_refusals() -> None:
    with pytest.raises(PromptError, match="use 'lps' or 'ras'"):
        from_world(Click((1, 2, 3)), oblique(), system="scanner")
    with pytest.raises(PromptError, match="three coordinates"):
        from_world(Click((1, 2)), oblique(), system="lps")
    assert from_world(TextPrompt("a"), oblique(), system="lps") == TextPrompt("a")


def test_on_slice() -> None:
    assert on_slice(Click((3, 4)), 7) == Click((7, 3, 4))
    assert on_slice(Box((1, 2), (3, 4)), 7) == Box((7, 1, 2), (8, 3, 4))
    assert on_slice(Lasso(((1, 2), (3, 4), (5, 0))), 7) == Lasso(((7, 1, 2), (7, 3, 4), (7, 5, 0)))
    assert on_slice(Click((3, 4, 5)), 7) == Click((3, 4, 5))
    assert on_slice(TextPrompt("liver"), 7) == TextPrompt("liver")
    with pytest.raises(PromptError, match="frame=K"):
        on_slice(MaskPrompt(np.ones((2, 2))), 7)


@pytest.mark.parametrize(
    "prompt",
    [
        Click((0, 0)),
        Click((-0.5, 9.5)),
        Click((19.5, 29.5)),
        Box((-5, -5), (1, 1)),
        Box((19, 29), (90, 90)),
        Box((-9, -9), (99, 99)),
        Scribble(((-0.4, 3),), radius=0),
        Scribble(((-3, 3),), radius=3),
        Scribble(((-3, 3), (40, 9)), radius=0),
        Lasso(((-3, 3), (5, 9), (40, 9))),
        MaskPrompt(np.zeros((20, 30))),
        TextPrompt("liver"),
        Example(np.zeros((3, 3)), np.ones((3, 3))),
    ],
)
def test_prompts_that_touch_the_image_pass(prompt: Prompt) -> None:
    check_inside(prompt, (20, 30))
    assert rasterize([prompt], (20, 30), click_radius=0) is not None


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Click((20, 5)), r"at \(20, 5\) lies outside the image of 20×30"),
        (Click((5, -0.6)), "lies outside"),
        (Click((5, 5, 5)), "3 coordinates does not fit the 2D image"),
        (Box((-5, 0), (0, 10)), r"from \(-5, 0\) to \(0, 10\)"),
        (Box((20, 0), (25, 10)), "lies outside"),
        (Scribble(((-3, 3),), radius=2), "lies outside"),
        (Scribble(((-0.7, 3), (-0.7, 9)), radius=0), "lies outside"),
        (Lasso(((20, 3), (25, 9), (40, 9))), "lies outside"),
        (MaskPrompt(np.zeros((30, 20))), r"shape \(30, 20\) does not fit"),
    ],
)
def test_prompts_beside_the_image_are_refused(prompt: Prompt, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        check_inside(prompt, (20, 30))


def test_extent() -> None:
    def bounds(prompt: Prompt) -> tuple[list[float], list[float]]:
        low, high = extent(prompt)
        return low.tolist(), high.tolist()

    mask = np.zeros((6, 7), dtype=bool)
    assert bounds(MaskPrompt(mask)) == ([0, 0], [0, 0])
    mask[2:4, 5] = True
    assert bounds(MaskPrompt(mask)) == ([2, 5], [4, 6])
    assert bounds(Click((3, 4))) == ([3, 4], [4, 5])
    assert bounds(Box((1, 2), (3, 5))) == ([1, 2], [3, 5])
    assert bounds(Scribble(((1, 2), (5, 0)), radius=2)) == ([-1, -2], [8, 5])
    assert bounds(Lasso(((1, 2), (5, 0), (3, 9)))) == ([1, 0], [6, 10])
    with pytest.raises(PromptError, match="no place"):
        extent(TextPrompt("liver"))


@pytest.mark.parametrize("shape", [(15, 17), (6, 8, 9)])
@pytest.mark.parametrize("density", [0.1, 0.4, 0.9])
def test_scribbles_from_mask_cover_it_exactly(shape: tuple[int, ...], density: float) -> None:
    mask = np.random.default_rng(1).random(shape) < density
    strokes = scribbles_from_mask(mask, positive=False)
    painted = rasterize(strokes, shape).negative
    np.testing.assert_array_equal(painted, mask)
    assert scribbles_from_mask(np.zeros(shape, dtype=bool), positive=True) == []
