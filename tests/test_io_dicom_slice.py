"""A single DICOM slice: what is written of it opens in ITK in the place where the slice lies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK

import limner
from dicom_makers import AXIAL, image_dataset, save
from limner.io import write_image
from limner.io.labels import Labels

ORIENTATIONS = {
    "axial": AXIAL,
    "sagittal": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0),
    "coronal": (1.0, 0.0, 0.0, 0.0, 0.0, -1.0),
    "from below": (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    "oblique": (0.8, 0.6, 0.0, -0.36, 0.48, 0.8),
}
SUFFIXES = (".nii.gz", ".nrrd", ".seg.nrrd", ".mha")


@pytest.fixture(params=ORIENTATIONS, ids=lambda name: name.replace(" ", "-"))
def slice_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    pixels = np.arange(7 * 9, dtype=np.int16).reshape(7, 9)
    return save(
        image_dataset(pixels),
        tmp_path / "slice.dcm",
        ImagePositionPatient=[-13.5, 22.25, -107.0],
        ImageOrientationPatient=list(ORIENTATIONS[request.param]),
        PixelSpacing=[0.5, 0.75],
        SliceThickness=3.0,
    )


def corner_points(image: SimpleITK.Image) -> np.ndarray:
    sizes = image.GetSize()
    corners = [(0, 0), (sizes[0] - 1, 0), (0, sizes[1] - 1), (3, 2)]
    return np.array([image.TransformIndexToPhysicalPoint((i, j, 0)) for i, j in corners])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_mask_and_image_lie_where_itk_sees_the_slice(tmp_path, slice_path, suffix):
    reference = SimpleITK.ReadImage(str(slice_path))
    image = limner.read(slice_path)
    mask = np.zeros(image.shape, np.uint8)
    mask[1:3, 2:8], mask[4:6, 0:2] = 1, 2
    target = tmp_path / f"mask{suffix}"
    limner.write(target, mask, like=image, names={1: "liver"})
    found = SimpleITK.ReadImage(str(target))
    assert found.GetSize() == reference.GetSize() == (9, 7, 1)
    np.testing.assert_allclose(corner_points(found), corner_points(reference), atol=1e-4)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(found)[0], mask)
    again = limner.read_labels(target, like=image)
    assert again.geometry == image.geometry
    np.testing.assert_array_equal(again.to_array(), mask)
    if suffix != ".seg.nrrd":
        copy = tmp_path / f"image{suffix}"
        write_image(copy, image)
        opened = SimpleITK.ReadImage(str(copy))
        np.testing.assert_allclose(corner_points(opened), corner_points(reference), atol=1e-4)
        np.testing.assert_array_equal(
            SimpleITK.GetArrayFromImage(opened), SimpleITK.GetArrayFromImage(reference)
        )


def test_overlapping_objects_of_a_sagittal_slice(tmp_path):
    path = save(
        image_dataset(np.zeros((6, 5), np.int16)),
        tmp_path / "slice.dcm",
        ImagePositionPatient=[1.0, 2.0, 3.0],
        ImageOrientationPatient=list(ORIENTATIONS["sagittal"]),
        PixelSpacing=[1.0, 1.0],
    )
    image = limner.read(path)
    masks = {k: np.zeros((6, 5), bool) for k in (1, 2)}
    masks[1][1:4, 1:4] = masks[2][2:5, 2:5] = True
    limner.write(tmp_path / "m.seg.nrrd", Labels(image.geometry, masks=masks), like=image)
    found = limner.read_labels(tmp_path / "m.seg.nrrd", like=path)
    assert found.geometry == image.geometry
    for k, mask in masks.items():
        np.testing.assert_array_equal(found.mask(k), mask)


def test_a_mask_without_slice_axis_fits_a_volume_of_one_slice(tmp_path):
    mask = np.zeros((6, 5), np.uint8)
    mask[2:4, 1:3] = 1
    flat = limner.Geometry.from_spacing((6, 5), (1.0, 1.0))
    limner.write(tmp_path / "m.nii.gz", mask, like=flat)
    volume = limner.Geometry.from_spacing((1, 6, 5), (1.0, 1.0, 1.0))
    found = limner.read_labels(tmp_path / "m.nii.gz", like=volume)
    np.testing.assert_array_equal(found.to_array(), mask[None])
