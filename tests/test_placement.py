"""Masks on the grid of their image: the same voxels in another order of axes, single slices."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

import limner
from limner import Geometry
from limner.errors import GeometryError
from limner.io import Labels, write_image
from limner.io.placement import Turn, turn_towards

SHAPE = (4, 6, 9)
RAS = np.diag((-1.0, -1.0, 1.0, 1.0))
TURNS = [
    Turn(order, tuple(k for k in range(3) if flips[k]))
    for order in permutations(range(3))
    for flips in product((False, True), repeat=3)
]


def oblique(shape: tuple[int, ...] = SHAPE) -> Geometry:
    """A grid that is tilted by some 20 degrees."""
    a, b = 0.35, 0.2
    tilt = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    turn = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    direction = (tilt @ turn)[:, ::-1]
    return Geometry.from_spacing(shape, (3, 0.8, 0.7), origin=(-30, 12, 55), direction=direction)


def numbered(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return (np.arange(np.prod(shape)).reshape(shape) % 7).astype(np.uint8)


def save_nifti(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """An array in index order, as nibabel writes it."""
    affine = RAS @ geometry.affine[:, [2, 1, 0, 3]]
    nibabel.save(nibabel.Nifti1Image(array.T, affine), path)


@pytest.mark.parametrize("turn", TURNS, ids=lambda t: f"{t.order}-{t.reversed_axes}")
@pytest.mark.parametrize("grid", [Geometry.from_spacing(SHAPE, (3, 0.8, 0.7)), oblique()])
def test_every_order_of_the_same_voxels_is_put_back_exactly(
    tmp_path: Path, turn: Turn, grid: Geometry
) -> None:
    stored = turn.geometry(grid)
    save_nifti(tmp_path / "mask.nii.gz", turn.array(numbered()), stored)
    image = limner.Image(np.zeros(SHAPE, np.uint8), grid)
    found = limner.read_labels(tmp_path / "mask.nii.gz", like=image)
    assert found.geometry == grid
    np.testing.assert_array_equal(found.to_array(), numbered())
    back = turn_towards(stored, grid)
    assert back is not None
    np.testing.assert_array_equal(back.array(turn.array(numbered())), numbered())


def test_labels_in_another_order_are_written_as_the_image(tmp_path: Path) -> None:
    turn = Turn((2, 0, 1), (1,))
    masks = {1: numbered() > 2, 5: numbered() % 2 == 0, 9: numbered() > 99}
    turned = {i: turn.array(mask) for i, mask in masks.items()}
    labels = Labels(turn.geometry(oblique()), masks=turned, names={5: "fat"}, manifest={"a": 1})
    path = tmp_path / "a.seg.nrrd"
    limner.write(path, labels, like=oblique())
    found = limner.read_labels(path)
    assert found.geometry.is_close(oblique())
    for i, mask in masks.items():
        np.testing.assert_array_equal(found.mask(i), mask)
    assert found.names[5] == "fat"
    assert (tmp_path / "a.seg.nrrd.limner.json").exists()


def test_a_mask_of_itk_in_slicers_order(tmp_path: Path) -> None:
    """`sitk.DICOMOrient` turns a mask; the image stays."""
    grid = oblique()
    write_image(tmp_path / "image.nii.gz", limner.Image(numbered(), grid))
    for order in ("RAS", "LPI", "PIR", "SAL"):
        turned = sitk.DICOMOrient(sitk.ReadImage(tmp_path / "image.nii.gz"), order)
        for suffix in (".nrrd", ".mha", ".nii.gz"):
            path = tmp_path / f"mask{suffix}"
            sitk.WriteImage(turned, path)
            found = limner.read_labels(path, like=tmp_path / "image.nii.gz")
            np.testing.assert_array_equal(found.to_array(), numbered())


def test_what_is_only_nearly_the_same_grid_is_refused(tmp_path: Path) -> None:
    turn = Turn((0, 2, 1), (0,))
    image = limner.Image(np.zeros(SHAPE, np.uint8), oblique())
    stored = turn.geometry(oblique())
    moved = np.array(stored.affine)
    moved[:3, 3] += 0.4
    save_nifti(tmp_path / "moved.nii.gz", turn.array(numbered()), Geometry(stored.shape, moved))
    part = stored.crop((0, 1, 0), stored.shape)
    save_nifti(tmp_path / "part.nii.gz", turn.array(numbered())[:, 1:], part)
    for name in ("moved.nii.gz", "part.nii.gz"):
        with pytest.raises(GeometryError, match="Resample it first"):
            limner.read_labels(tmp_path / name, like=image)


def test_a_cut_segmentation_of_slicer_in_another_order_is_put_back(tmp_path: Path) -> None:
    array = np.zeros(SHAPE, np.uint8)
    array[1:3, 2:5, 3:8] = numbered()[1:3, 2:5, 3:8]
    cut = oblique().crop((1, 2, 3), (3, 5, 8))
    turn = Turn((1, 2, 0), (2,))
    labels = Labels(turn.geometry(cut), array=turn.array(array[1:3, 2:5, 3:8]))
    limner.write(tmp_path / "a.seg.nrrd", labels)
    image = limner.Image(np.zeros(SHAPE, np.uint8), oblique())
    found = limner.read_labels(tmp_path / "a.seg.nrrd", like=image)
    np.testing.assert_array_equal(found.to_array(), array)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_a_mask_of_one_slice_belongs_to_a_single_image(tmp_path: Path, suffix: str) -> None:
    """A slice of a volume is a 2D image to DICOM and a volume of one slice to ITK."""
    flat = Geometry((6, 9), oblique((1, 6, 9)).affine)
    thick = Geometry((1, 6, 9), oblique((1, 6, 9)).affine * (1.7, 1, 1, 1))
    array = numbered((6, 9))
    limner.write(tmp_path / f"mask{suffix}", Labels(thick, array=array[None]))
    image = limner.Image(np.zeros((6, 9), np.uint8), flat)
    found = limner.read_labels(tmp_path / f"mask{suffix}", like=image)
    assert found.geometry == flat
    np.testing.assert_array_equal(found.to_array(), array)
    turned = Turn((2, 0, 1), (0,))
    stored = turned.geometry(Geometry((1, 6, 9), flat.affine))
    limner.write(tmp_path / f"turned{suffix}", Labels(stored, array=turned.array(array[None])))
    found = limner.read_labels(tmp_path / f"turned{suffix}", like=image)
    np.testing.assert_array_equal(found.to_array(), array)


def test_placeless_formats_go_by_shape_and_spacing(tmp_path: Path) -> None:
    for suffix in (".tif", ".npz"):
        path = tmp_path / f"a{suffix}"
        limner.write(path, numbered(), like=Geometry.from_spacing(SHAPE, (3, 0.8, 0.7)))
        found = limner.read_labels(path, like=oblique())
        np.testing.assert_array_equal(found.to_array(), numbered())
