"""Grids in patient space: indices and millimetres, windows, padding, resampling."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limner.errors import GeometryError
from limner.geometry import Geometry, resample


@st.composite
def geometries(draw: st.DrawFn, ndim: int | None = None) -> Geometry:
    """Oblique, sometimes left-handed, sometimes sheared grids of 2 or 3 axes."""
    axes = draw(st.sampled_from((2, 3))) if ndim is None else ndim
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    shear = np.eye(3)
    if draw(st.booleans()):
        shear[0, 1] = rng.uniform(-0.3, 0.3)
    affine = np.eye(4)
    affine[:3, :3] = rotation @ shear * 10.0 ** rng.uniform(-2, 1.5, 3)
    affine[:3, 3] = rng.uniform(-500, 500, 3)
    shape = tuple(int(n) for n in rng.integers(1, 40, axes))
    return Geometry(shape, affine, has_spacing=draw(st.booleans()))


def points(geometry: Geometry, seed: int, n: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-50, 50, (n, geometry.ndim))


@given(geometries(), st.integers(0, 1000))
def test_index_to_world_and_back(geometry: Geometry, seed: int) -> None:
    index = points(geometry, seed)
    world = geometry.index_to_world(index)
    assert world.shape == (5, 3)
    np.testing.assert_allclose(geometry.world_to_index(world), index, atol=1e-6)
    np.testing.assert_allclose(geometry.index_to_world(np.zeros(geometry.ndim)), geometry.origin)


@given(geometries(), st.integers(0, 1000))
def test_crop_keeps_every_pixel_where_it_is(geometry: Geometry, seed: int) -> None:
    rng = np.random.default_rng(seed)
    low = rng.integers(-5, 6, geometry.ndim)
    window = geometry.crop(low, low + rng.integers(1, 20, geometry.ndim))
    index = points(geometry, seed)
    np.testing.assert_allclose(
        window.index_to_world(index), geometry.index_to_world(index + low), atol=1e-8
    )
    assert window.spacing == pytest.approx(geometry.spacing)
    assert window.has_spacing == geometry.has_spacing


@given(geometries(), st.integers(0, 1000))
def test_pad_is_undone_by_crop(geometry: Geometry, seed: int) -> None:
    rng = np.random.default_rng(seed)
    before, after = rng.integers(0, 9, (2, geometry.ndim))
    padded = geometry.pad(before, after)
    assert padded.shape == tuple(np.array(geometry.shape) + before + after)
    again = padded.crop(before, before + geometry.shape)
    assert again.is_close(geometry)


@given(geometries(), st.integers(0, 1000))
def test_resampled_keeps_the_outer_edges(geometry: Geometry, seed: int) -> None:
    shape = tuple(int(n) for n in np.random.default_rng(seed).integers(1, 60, geometry.ndim))
    other = geometry.resampled(shape)
    assert other.shape == shape
    for grid_corner in (0, 1):  # the outer edges lie half a pixel beyond the outer centres
        ours = other.index_to_world(np.array(shape) * grid_corner - 0.5)
        theirs = geometry.index_to_world(np.array(geometry.shape) * grid_corner - 0.5)
        np.testing.assert_allclose(ours, theirs, atol=1e-7)
    extent = np.array(geometry.spacing) * geometry.shape
    np.testing.assert_allclose(np.array(other.spacing) * shape, extent)
    assert other.resampled(geometry.shape).is_close(geometry)


@given(geometries(ndim=3), st.integers(0, 1000))
def test_plane_is_its_slice(geometry: Geometry, seed: int) -> None:
    index = int(np.random.default_rng(seed).integers(geometry.shape[0]))
    plane = geometry.slice_at(index)
    assert plane.shape == geometry.shape[1:]
    assert plane.spacing == pytest.approx(geometry.spacing[1:])
    places = points(plane, seed)
    lifted = np.insert(places, 0, index, axis=1)
    np.testing.assert_allclose(
        plane.index_to_world(places), geometry.index_to_world(lifted), atol=1e-8
    )


@given(geometries())
def test_json_round_trip(geometry: Geometry) -> None:
    again = Geometry.from_json(json.loads(json.dumps(geometry.to_json())))
    assert again == geometry
    assert hash(again) == hash(geometry)


@given(geometries())
def test_voxel_volume_is_that_of_the_parallelepiped(geometry: Geometry) -> None:
    columns = [geometry.affine[:3, k] for k in range(3 - geometry.ndim, 3)]
    gram = np.array([[a @ b for a in columns] for b in columns])
    assert geometry.voxel_volume == pytest.approx(np.sqrt(np.linalg.det(gram)))


def test_parts_come_back() -> None:
    direction = np.array([[0, 1, 0], [0, 0, -1], [1, 0, 0]], dtype=float)
    geometry = Geometry.from_spacing(
        (4, 5, 6), (3.0, 0.5, 0.7), origin=(10, -20, 30), direction=direction
    )
    assert geometry.spacing == (3.0, 0.5, 0.7)
    assert geometry.origin == (10.0, -20.0, 30.0)
    np.testing.assert_allclose(geometry.direction, direction)
    assert geometry.is_orthogonal
    assert geometry.orientation == "SLA"
    assert geometry.voxel_volume == pytest.approx(1.05)


def test_default_is_axial_and_knows_that_it_has_no_spacing() -> None:
    geometry = Geometry.from_spacing((5, 6))
    assert not geometry.has_spacing
    assert geometry.spacing == (1.0, 1.0)
    assert geometry.orientation == "PL"
    np.testing.assert_array_equal(geometry.index_to_world((2, 3)), (3, 2, 0))


def test_shear_is_seen() -> None:
    affine = np.eye(4)
    affine[0, 1] = 0.2
    assert not Geometry((3, 3, 3), affine).is_orthogonal


def test_is_close_allows_rounding_and_no_more() -> None:
    geometry = Geometry.from_spacing((10, 10, 10), (2, 1, 1))
    moved = Geometry.from_spacing((10, 10, 10), (2, 1, 1), origin=(5e-4, 0, 0))
    far = Geometry.from_spacing((10, 10, 10), (2, 1, 1), origin=(5e-2, 0, 0))
    assert geometry.is_close(moved)
    assert not geometry.is_close(far)
    assert not geometry.is_close(Geometry.from_spacing((10, 10, 9), (2, 1, 1)))
    assert geometry != moved


@pytest.mark.parametrize(
    ("shape", "affine", "message"),
    [
        ((3,), np.eye(4), "2 or 3 axes"),
        ((3, 0), np.eye(4), "at least one pixel"),
        ((3, 3), np.eye(3), "4×4"),
        ((3, 3), np.full((4, 4), np.nan), "finite"),
        ((3, 3), np.diag((1.0, 0, 1, 1)), "above 0"),
        ((3, 3, 3), np.array([[1.0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "same"),
    ],
)
def test_impossible_grids_are_refused(
    shape: tuple[int, ...], affine: np.ndarray, message: str
) -> None:
    with pytest.raises(GeometryError, match=message):
        Geometry(shape, affine)


@pytest.mark.parametrize("spacing", [(1.0,), (1.0, 0.0), (1.0, -2.0), (1.0, float("nan"))])
def test_impossible_spacing_is_refused(spacing: tuple[float, ...]) -> None:
    with pytest.raises(GeometryError, match="Spacing"):
        Geometry.from_spacing((3, 3), spacing)


def test_wrong_numbers_of_coordinates_are_refused() -> None:
    geometry = Geometry.from_spacing((3, 3))
    with pytest.raises(GeometryError, match="2 numbers"):
        geometry.index_to_world((1, 2, 3))
    with pytest.raises(GeometryError, match="3 numbers"):
        geometry.world_to_index((1, 2))
    with pytest.raises(GeometryError, match="3D"):
        geometry.slice_at(0)


def test_affine_cannot_be_changed() -> None:
    affine = np.eye(4)
    geometry = Geometry((3, 3, 3), affine)
    affine[0, 3] = 9
    assert geometry.origin == (0, 0, 0)
    with pytest.raises(ValueError, match="read-only"):
        geometry.affine[0, 3] = 9


@given(geometries(), st.integers(0, 1000))
def test_resample_onto_itself_changes_nothing(geometry: Geometry, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 1000, geometry.shape).astype(np.int16)
    for order in (0, 1):
        again = resample(values, geometry, geometry, order=order)
        assert again.dtype == values.dtype
        np.testing.assert_array_equal(again, values)


@pytest.mark.parametrize("factor", [2, 3])
def test_labels_refined_are_repeated_up_to_the_edge(factor: int) -> None:
    geometry = Geometry.from_spacing((3, 4, 5), (2.0, 1.0, 0.5))
    labels = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    fine = geometry.resampled([n * factor for n in geometry.shape])
    expected = labels
    for axis in range(3):
        expected = np.repeat(expected, factor, axis=axis)
    np.testing.assert_array_equal(resample(labels, geometry, fine, order=0, fill=99), expected)
    back = resample(expected, fine, geometry, order=0)
    if factor == 3:  # with 2, the middle lies between two pixels
        np.testing.assert_array_equal(back, labels)


def test_linear_resampling_follows_a_ramp_and_fills_outside() -> None:
    geometry = Geometry.from_spacing((8, 8), (1.0, 1.0))
    ramp = np.add.outer(3.0 * np.arange(8), 5.0 * np.arange(8))
    window = geometry.crop((-2, 1), (10, 6))
    sampled = resample(ramp, geometry, window, fill=-1.0)
    np.testing.assert_allclose(sampled[2:10], ramp[:, 1:6])
    assert (sampled[:2] == -1).all()
    assert (sampled[10:] == -1).all()
    fine = resample(ramp, geometry, geometry.resampled((16, 16)))
    centres = geometry.world_to_index(
        geometry.resampled((16, 16)).index_to_world(np.argwhere(np.ones((16, 16))))
    )
    expected = np.clip(centres, 0, 7) @ (3.0, 5.0)  # the outer half pixels repeat the edge
    np.testing.assert_allclose(fine.ravel(), expected)


def test_resample_across_an_oblique_grid() -> None:
    source = Geometry.from_spacing((20, 20, 20))
    angle = np.deg2rad(30)
    turn = np.array(
        [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]
    )
    target = Geometry.from_spacing((6, 6, 6), (1, 1, 1), origin=(8, 8, 8), direction=turn[::-1].T)
    world = source.index_to_world(np.argwhere(np.ones(source.shape))).reshape(20, 20, 20, 3)
    values = world @ (1.0, 2.0, -0.5)
    index = np.argwhere(np.ones(target.shape))
    expected = (target.index_to_world(index) @ (1.0, 2.0, -0.5)).reshape(target.shape)
    inside = source.world_to_index(target.index_to_world(index)).reshape(*target.shape, 3)
    safe = ((inside >= 0) & (inside <= 19)).all(axis=-1)
    assert safe.any()
    np.testing.assert_allclose(resample(values, source, target)[safe], expected[safe], atol=1e-8)


def test_resample_refuses_what_does_not_fit() -> None:
    geometry = Geometry.from_spacing((3, 3))
    with pytest.raises(GeometryError, match="does not fill"):
        resample(np.zeros((3, 4)), geometry, geometry)
    with pytest.raises(GeometryError, match="2D onto 3D"):
        resample(np.zeros((3, 3)), geometry, Geometry.from_spacing((3, 3, 3)))
