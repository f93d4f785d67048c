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
    from_world,
    from_xyz,
    lasso_from_world,
    plane_axis,
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
    assert Click((3, 4)).on_slice(7) == Click((7, 3, 4))
    assert Box((1, 2), (3, 4)).on_slice(7) == Box((7, 1, 2), (8, 3, 4))
    assert Lasso(((1, 2), (3, 4), (5, 0))).on_slice(7) == Lasso(((7, 1, 2), (7, 3, 4), (7, 5, 0)))
    assert Click((3, 4, 5)).on_slice(7) == Click((3, 4, 5))
    assert TextPrompt("liver").on_slice(7) == TextPrompt("liver")
    with pytest.raises(PromptError, match="frame=K"):
        MaskPrompt(np.ones((2, 2))).on_slice(7)


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
        low, high = prompt.extent()
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
        TextPrompt("liver").extent()


@pytest.mark.parametrize("shape", [(15, 17), (6, 8, 9)])
@pytest.mark.parametrize("density", [0.1, 0.4, 0.9])
def test_scribbles_from_mask_cover_it_exactly(shape: tuple[int, ...], density: float) -> None:
    mask = np.random.default_rng(1).random(shape) < density
    strokes = scribbles_from_mask(mask, positive=False)
    painted = rasterize(strokes, shape).negative
    np.testing.assert_array_equal(painted, mask)
    assert scribbles_from_mask(np.zeros(shape, dtype=bool), positive=True) == []


def _oblique(shape: tuple[int, ...] = (20, 30, 40)) -> Geometry:
    angle = np.deg2rad(25)
    turn = np.array(
        [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]
    )
    flat = Geometry.from_spacing(shape, (3.0, 0.8, 0.7))
    return Geometry.from_spacing(
        shape, (3.0, 0.8, 0.7), origin=(-9.0, 40.0, 7.5), direction=turn @ flat.direction
    )


@pytest.mark.parametrize("system", ["lps", "ras"])
def test_a_world_box_holds_every_pixel_it_meets_however_oblique(system: str) -> None:
    geometry = _oblique()
    flip = np.array((1.0, 1.0, 1.0) if system == "lps" else (-1.0, -1.0, 1.0))
    middle = geometry.index_to_world((10, 15, 20))
    low, high = np.sort(
        np.stack((np.subtract(middle, (4, 5, 9)), np.add(middle, (6, 3, 8)))) * flip, axis=0
    )
    box = from_world(Box(low, high), geometry, system=system)
    assert isinstance(box, Box)
    rng = np.random.default_rng(0)
    inside = geometry.world_to_index((low + rng.random((4000, 3)) * (high - low)) * flip)
    nearest = np.floor(inside + 0.5)
    assert (nearest >= box.low).all()
    assert (nearest < box.high).all()
    corners = np.stack(np.meshgrid(*zip(low, high, strict=True)), axis=-1).reshape(-1, 3) * flip
    touched = np.floor(geometry.world_to_index(corners) + 0.5)
    assert tuple(touched.min(axis=0)) == box.low  # and no more than those
    assert tuple(touched.max(axis=0) + 1) == box.high


@pytest.mark.parametrize("system", ["lps", "ras"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_strokes_and_outlines_in_millimetres_keep_to_their_slice(system: str, axis: int) -> None:
    geometry = _oblique()
    flip = np.array((1.0, 1.0, 1.0) if system == "lps" else (-1.0, -1.0, 1.0))
    index = np.array([(5, 5, 5), (9, 9, 6), (6, 12, 12)], dtype=float)
    index[:, axis] = 7
    world = geometry.index_to_world(index) * flip
    stroke = from_world(Scribble(world, radius=1.0), geometry, system=system)
    assert isinstance(stroke, Scribble)
    assert np.array_equal(stroke.points, index)  # exactly: a viewer's brush stays in its slice
    assert stroke.radius == 1.0
    outline = lasso_from_world(world, geometry, system=system)
    assert outline.plane_axis == axis
    assert np.allclose(outline.points, index)
    with pytest.raises(PromptError, match="no slice"):
        lasso_from_world(np.add(world, np.eye(3) * 9), geometry, system=system)
    with pytest.raises(PromptError, match="x, y, z"):
        lasso_from_world(index[:, :2], geometry, system=system)


def test_a_lasso_in_millimetres_on_an_upright_volume_is_a_lasso_there() -> None:
    geometry = Geometry.from_spacing((20, 30, 40), (2.5, 0.7, 0.7), origin=(-100.3, 44.1, 12.7))
    index = np.array([(7, 5, 5), (7, 9, 6), (7, 12, 12)], dtype=float)
    world = geometry.index_to_world(index)
    world[:, 2] = world[0, 2]
    found = from_world(Lasso(world), geometry, system="lps")
    assert isinstance(found, Lasso)
    assert found.plane_axis == 0
    assert np.allclose(found.points, index)


def test_planes_have_names_where_the_patient_lies_known_and_straight() -> None:
    geometry = Geometry.from_spacing((4, 5, 6), (3, 1, 1))
    assert [plane_axis(geometry, n) for n in ("axial", "coronal", "sagittal")] == [0, 1, 2]
    sagittal = Geometry.from_spacing(
        (4, 5, 6), (3, 1, 1), direction=np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], float)
    )
    assert [plane_axis(sagittal, n) for n in ("axial", "coronal", "sagittal")] == [1, 2, 0]
    assert plane_axis(_oblique(), "axial") == 0  # 25 degrees are called so
    angle = np.deg2rad(44)
    turn = [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]
    tilted = Geometry.from_spacing(
        (4, 5, 6), (3, 1, 1), direction=np.array(turn) @ geometry.direction
    )
    assert plane_axis(tilted, "sagittal") == 2
    for name in ("axial", "coronal"):
        with pytest.raises(PromptError, match=r"44 degrees.*by its number"):
            plane_axis(tilted, name)
    with pytest.raises(PromptError, match="by its number"):
        plane_axis(Geometry((4, 5, 6), has_spacing=False), "axial")
    with pytest.raises(PromptError, match="axial"):
        plane_axis(geometry, "frontal")


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_prompts_are_lifted_onto_slices_of_any_axis(axis: int) -> None:
    shape = (6, 7, 8)
    mask = np.zeros(shape, dtype=bool)
    flat = np.moveaxis(mask, axis, 0)[3]
    flat[2:4, 1:5] = True
    rest = [n for k, n in enumerate(shape) if k != axis]
    assert np.array_equal(rasterize([Box((2, 1), (4, 5))], rest).box, flat)
    lifted = Box((2, 1), (4, 5)).on_slice(3, axis)
    assert np.array_equal(rasterize([lifted], shape).box, mask)
    point = Click((2, 1)).on_slice(3, axis)
    assert isinstance(point, Click)
    assert mask[tuple(int(x) for x in point.at)]
    geometry = _oblique(shape)
    plane = geometry.slice_at(3, axis)
    assert plane.shape == tuple(rest)
    assert np.allclose(plane.index_to_world((2, 1)), geometry.index_to_world(point.at))
