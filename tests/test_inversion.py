"""Images whose larger values are darker: values as stored, inverted where they are seen."""

from __future__ import annotations

import logging
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import tifffile

import limner
from dicom_makers import DX, image_dataset, save
from limner.datasets.record import Case
from limner.io import write_image
from limner.io.inversion import REFLECTION, invert_for_display, invert_window
from limner.pipeline.model_view import ModelView
from limner.render.overlay import render_overlay


def radiograph(path: Path, *, modality: str = "DX", **elements: object) -> tuple[Path, np.ndarray]:
    """A MONOCHROME1 file, its object (12 bits) at small stored values, and real values."""
    stored = np.full((24, 32), 3000, np.uint16)
    stored[6:14, 8:20] = 200
    ds = image_dataset(stored, sop_class=DX, modality=modality)
    ds.PhotometricInterpretation = "MONOCHROME1"
    ds.RescaleSlope, ds.RescaleIntercept = 2, -1024
    save(ds, path, BitsStored=12, HighBit=11, **elements)
    return path, stored.astype(int) * 2 - 1024


@pytest.mark.parametrize("modality", ["DX", "CR", "MG", "PX", "XA", "MR", "CT", "PT", "NM"])
def test_values_are_as_pydicom_rescales_them(tmp_path, modality):
    path, values = radiograph(tmp_path / "a.dcm", modality=modality)
    image = limner.read(path)
    ds = pydicom.dcmread(path)
    np.testing.assert_array_equal(pydicom.pixels.apply_rescale(ds.pixel_array, ds), values)
    np.testing.assert_array_equal(image.array, values)
    write_image(tmp_path / "a.nii.gz", image)
    kept = np.asarray(nibabel.load(tmp_path / "a.nii.gz").dataobj).squeeze().T
    np.testing.assert_array_equal(kept, values)
    is_measured = modality in ("CT", "PT", "NM")
    assert image.metadata["inverted"] != is_measured
    shown = invert_for_display(image)
    if is_measured:
        assert shown is image
    else:  # over the range of 12 bits: -1024 … 7166
        np.testing.assert_array_equal(shown.array, 7166 - 1024 - values)
        assert shown.dtype == image.dtype
        assert invert_for_display(shown) is shown


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8"])
def test_inversion_is_exact_for_every_type(dtype):
    if np.dtype(dtype).kind == "f":
        values, top = np.array([[-2.5, 0.0], [3.0, 1e3]], dtype), 10.0
    else:
        ends = np.iinfo(dtype)
        values = np.array([[ends.min, ends.max], [ends.min + 1, 7]], dtype)
        top = ends.min + ends.max
    image = limner.Image(values, limner.Geometry.from_spacing((2, 2)), metadata={REFLECTION: top})
    expected = [[float(top) - float(v) for v in row] for row in values.tolist()]
    np.testing.assert_array_equal(invert_for_display(image).array, expected)


def test_window_is_given_in_stored_values(tmp_path):
    image = limner.read(radiograph(tmp_path / "a.dcm")[0])
    low, high = invert_window(image, (0.0, 100.0))
    values = np.array([0.0, 100.0])
    np.testing.assert_array_equal((6142 - values)[::-1], [low, high])
    assert invert_window(image, None) is None


def test_models_and_pictures_see_bright_what_is_bright(tmp_path):
    path, values = radiograph(tmp_path / "a.dcm")
    image = limner.read(path)
    inside = values == values.min()
    with limner.open_session(image, "baseline/box", window=(-1024, 6000)) as session:
        assert session.image is image
        view = session.views.view(None).crop(((0, 0), image.shape), image.shape)
        assert view.array[inside].min() > view.array[~inside].max()
        low, high = view.intensity
        assert (low, high) == (6142 - 6000, 6142 + 1024)
        assert low < view.array[inside].min() < high
    picture = render_overlay(image, np.zeros(image.shape, int), window=(-1024, 6000))
    middle = picture[picture.shape[0] * 10 // 24, picture.shape[1] * 14 // 32]
    corner = picture[2, 2]
    assert middle.mean() > corner.mean()
    card = limner.list_models()[0]
    part = next(ModelView(image, card, None).parts())
    assert part.array[inside].min() > part.array[~inside].max()
    trained = Case("a", "set", "image", (path,)).read_image()
    assert trained.array[inside].min() > trained.array[~inside].max()


def test_a_copy_says_that_it_cannot_say_so(tmp_path, caplog):
    image = limner.read(radiograph(tmp_path / "a.dcm")[0])
    with caplog.at_level(logging.WARNING):
        write_image(tmp_path / "a.mha", image)
    assert "larger values are darker" in caplog.text


def test_tiff_with_white_as_zero_is_shown_inverted(tmp_path):
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite")
    image = limner.read(tmp_path / "a.tif")
    np.testing.assert_array_equal(image.array, values)
    np.testing.assert_array_equal(invert_for_display(image).array, 255 - values)
