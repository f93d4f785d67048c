"""NIfTI files whose qform and sform differ: which one is used, and what other programs use."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

import limner
from limner.io import write_image

SHAPE = (4, 5, 6)  # x, y, z
RAS = np.diag((-1.0, -1.0, 1.0, 1.0))
MASK = np.zeros(SHAPE[::-1], np.uint8)
MASK[2:4, 1:3, 2:] = 1


def forms(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Affines of qform and sform, RAS."""
    qform = np.diag([2.0, 2.0, 2.0, 1.0])
    qform[:3, 3] = (10, 20, 30)
    sform = qform.copy()
    if kind == "shift":
        sform[:3, 3] += (-41, 54, 40)
    elif kind == "turn":
        a = 0.4
        turn = [[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]
        sform[:3, :3] = np.array(turn) @ sform[:3, :3]
    elif kind in ("mirror x", "mirror y", "mirror z"):
        sform["mirror xyz".index(kind[-1]) - 7, :3] *= -1
    elif kind == "flip":
        sform[0] *= -1
    elif kind == "rounded":
        sform[:3, 3] += 0.01
    return qform, sform


def save(path: Path, kind: str, codes: tuple[int, int]) -> Path:
    qform, sform = forms(kind)
    image = nibabel.Nifti1Image(np.arange(120, dtype=np.int16).reshape(SHAPE), None)
    image.set_qform(qform, codes[0])
    image.set_sform(sform, codes[1])
    nibabel.save(image, path)
    return path


def place_by_itk(path: Path) -> np.ndarray:
    """LPS millimetres of the last voxel."""
    image = sitk.ReadImage(path)
    return np.array(image.TransformIndexToPhysicalPoint([n - 1 for n in SHAPE]))


@pytest.mark.parametrize("kind", ["shift", "turn", "flip", "mirror x", "mirror y", "mirror z"])
@pytest.mark.parametrize("codes", list(product((1, 2, 4), (1, 2, 3, 4))))
def test_what_differs_is_told_with_what_itk_uses(
    tmp_path: Path, kind: str, codes: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    path = save(tmp_path / "a.nii.gz", kind, codes)
    image = limner.read(path)
    np.testing.assert_allclose(image.affine, RAS @ forms(kind)[1][:, [2, 1, 0, 3]], atol=1e-5)
    last = np.array(image.geometry.shape) - 1
    by_sform = np.allclose(place_by_itk(path), image.geometry.index_to_world(last), atol=1e-3)
    used = "sform" if by_sform else "qform"
    assert image.metadata["used_by_itk"] == used
    assert "qform and sform differ, by up to" in caplog.text
    assert f"ITK-SNAP use the {used}" in caplog.text


@pytest.mark.parametrize("codes", [(0, 1), (1, 0), (0, 0), (1, 1), (4, 2)])
def test_what_agrees_or_is_not_there_is_not_told(
    tmp_path: Path, codes: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    image = limner.read(save(tmp_path / "a.nii", "rounded", codes))
    assert "differ" not in caplog.text
    assert "qform_affine" not in image.metadata


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".seg.nrrd", ".mha"])
@pytest.mark.parametrize("codes", [(1, 2), (2, 1), (1, 4)])
def test_a_mask_lies_where_itk_shows_the_image_or_says_so(
    tmp_path: Path, suffix: str, codes: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    path = save(tmp_path / "a.nii.gz", "shift", codes)
    image = limner.read(path)
    caplog.clear()
    target = tmp_path / f"mask{suffix}"
    limner.write(target, MASK, like=image)
    agrees = np.allclose(place_by_itk(target), place_by_itk(path), atol=1e-3)
    assert agrees is not ("show that image elsewhere, by its qform" in caplog.text)
    assert agrees or suffix in (".nrrd", ".seg.nrrd", ".mha")
    np.testing.assert_array_equal(limner.read_labels(target, like=image).to_array(), MASK)
    if suffix in (".nrrd", ".mha"):
        caplog.clear()
        write_image(tmp_path / f"image{suffix}", image)
        assert agrees is not ("elsewhere, by its qform" in caplog.text)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".nii.gz"])
def test_a_mask_of_itk_on_the_qform_is_taken_voxel_by_voxel(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = save(tmp_path / "a.nii.gz", "shift", (1, 2))
    mask = sitk.GetImageFromArray(MASK)
    mask.CopyInformation(sitk.ReadImage(path))
    sitk.WriteImage(mask, tmp_path / f"mask{suffix}")
    found = limner.read_labels(tmp_path / f"mask{suffix}", like=path)
    np.testing.assert_array_equal(found.to_array(), MASK)
    assert found.geometry == limner.read(path).geometry
    assert "where the qform of the image puts it" in caplog.text
