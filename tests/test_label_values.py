"""What is taken for a mask or a label map, and what is refused, in files and arrays."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image as Picture
from scipy import ndimage

import limner
from limner import Geometry
from limner.errors import FormatError, GeometryError, PromptError
from limner.label_values import channels_of_values, labels_of_values, mask_of_values

Array = NDArray[Any]

SHAPE = (60, 80)
DISC = np.hypot(*np.mgrid[-30:30, -35:45]) < 14
BALL = np.linalg.norm(np.mgrid[-8:8, -20:20, -22:26], axis=0) < 7


def drawn(full: float, blur: float = 0.8, mask: Array = DISC) -> Array:
    """A mask with soft edges, as painting programs and linear resampling make it."""
    return np.asarray(ndimage.gaussian_filter(mask * float(full), blur, truncate=2.0))


def resampled(mask: Array = BALL) -> Array:
    """A mask after linear resampling: fractions on the edge, exactly 0 and 1 elsewhere."""
    return np.asarray(ndimage.shift(mask.astype(np.float32), 0.4, order=1))


def picture(seed: int = 0) -> Array:
    """Grey levels with noise, as of an ultrasound."""
    rng = np.random.default_rng(seed)
    return np.clip(drawn(120, 4) + rng.normal(60, 12, SHAPE), 1, 255).astype(np.uint8)


def save_nifti(path: Path, index_order: Array) -> Path:
    """As nibabel writes it; a last axis of channels stays the last."""
    axes = (2, 1, 0, *range(3, index_order.ndim))
    nibabel.save(nibabel.Nifti1Image(index_order.transpose(axes), np.eye(4)), path)
    return path


# ---------------------------------------------------------------- arrays


@pytest.mark.parametrize("dtype", ["bool", "u1", "i2", "u4", "f2", "f4", "f8"])
def test_whole_numbers_are_labels_in_every_type(dtype: str) -> None:
    values = DISC.astype(dtype)
    np.testing.assert_array_equal(labels_of_values(values, name="a"), DISC)
    np.testing.assert_array_equal(mask_of_values(values), DISC)


def test_floats_near_whole_numbers_are_rounded_not_cut_off() -> None:
    values = DISC * 3.0 - 0.0009 * DISC + 0.0009 * ~DISC
    assert np.unique(labels_of_values(values, name="a")).tolist() == [0, 3]
    with pytest.raises(ValueError, match="fractions"):
        labels_of_values(DISC * 3.0 - 0.0011, name="a")


@pytest.mark.parametrize("full", [255, 200.0, 4095])
@pytest.mark.parametrize("blur", [0.5, 0.8, 1.2])
def test_an_object_with_soft_edges_is_cut_at_half(
    full: float, blur: float, caplog: pytest.LogCaptureFixture
) -> None:
    values = drawn(full, blur).round().astype(np.uint16)
    with caplog.at_level(logging.WARNING):
        labels = labels_of_values(values, name="mask.png")
    assert np.unique(labels).tolist() == [0, full]
    np.testing.assert_array_equal(labels > 0, values >= full / 2)
    assert "mask.png" in caplog.text
    assert "half" in caplog.text
    np.testing.assert_array_equal(mask_of_values(values), values >= full / 2)


def test_a_mask_after_linear_resampling_is_cut_at_half() -> None:
    values = resampled()
    np.testing.assert_array_equal(labels_of_values(values, name="a"), values >= 0.5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (1 / (1 + np.exp(-np.linspace(-9, 9, 4800).reshape(SHAPE))), "probabilities"),
        (drawn(1.0, 6.0), "probabilities"),
        (drawn(1.0) + 1e-7, "probabilities"),
        (drawn(77.7, 6.0), "fractions"),
        (np.where(DISC, np.nan, 0.0), "NaN"),
        (np.where(DISC, np.inf, 0.0), "infinite"),
        (DISC * -1, "negative"),
        (DISC * -1.0, "negative"),
        (picture(), "grey levels"),
        (picture().astype(np.float32), "grey levels"),
        (drawn(255, 5.0).round().astype(np.uint8), "grey levels"),
        (np.maximum(drawn(255), drawn(100, mask=np.roll(DISC, 30, 1))).astype(np.uint8), "grey"),
        (DISC * (1 + 1j), "complex"),
        (DISC * 1e300, "too large"),
    ],
)
def test_what_is_no_mask_is_refused(tmp_path: Path, values: Array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        labels_of_values(values, name="a")
    with pytest.raises(ValueError, match=message):
        mask_of_values(values)
    with pytest.raises(PromptError, match=message):
        limner.MaskPrompt(values)
    with pytest.raises(PromptError, match=message):
        limner.Example(np.zeros(SHAPE), values)
    with pytest.raises(GeometryError, match=message):
        limner.write(tmp_path / "a.png", values)
    with pytest.raises(GeometryError, match=message):
        limner.write(tmp_path / "a.png", {1: values})


def test_a_mask_prompt_is_about_one_object() -> None:
    labels = DISC + np.roll(DISC, 20, 1) * 2
    with pytest.raises(PromptError, match=r"several objects, and a mask is one; give labels == 1"):
        limner.MaskPrompt(labels)
    np.testing.assert_array_equal(limner.MaskPrompt(labels == 1).mask, labels == 1)
    np.testing.assert_array_equal(limner.MaskPrompt(DISC * np.uint8(255)).mask, DISC)
    assert not limner.MaskPrompt(np.zeros(SHAPE)).mask.any()


@pytest.mark.parametrize("kind", ["cells", "specks", "layers", "touching", "classes", "ignored"])
def test_label_maps_with_many_values_stay_label_maps(kind: str) -> None:
    rows, columns = np.mgrid[:96, :96]
    rng = np.random.default_rng(3)
    labels = {
        "cells": 1 + rows // 4 * 24 + columns // 4,  # dense, small, each with its own id
        "specks": np.where(rng.random((96, 96)) < 0.02, rng.integers(1, 900, (96, 96)), 0),
        "layers": np.clip(rows // 2 - 10, 0, 8),  # thin ones on top of one another
        "touching": np.where((rows % 3 > 0) & (columns % 3 > 0), rows // 3 * 32 + columns // 3, 0),
        "classes": np.clip(rows // 12 * 30, 0, 255),
        "ignored": np.where(columns % 24 < 2, 255, columns // 24 + 1),
    }[kind]
    assert labels_of_values(labels, name="a") is labels
    assert labels_of_values(labels.astype(np.float32), name="a").tolist() == labels.tolist()


def test_a_threshold_makes_a_mask_of_anything_finite() -> None:
    soft = drawn(1.0, 5.0)
    assert (labels_of_values(soft, threshold=0.4, name="a") == (soft >= 0.4)).all()
    assert (labels_of_values(picture(), threshold=90, name="a") == (picture() >= 90)).all()
    with pytest.raises(ValueError, match="NaN"):
        labels_of_values(np.where(DISC, np.nan, 0.0), threshold=0.5, name="a")


# ---------------------------------------------------------------- one channel per object


def channels(*masks: Array, dtype: str = "u1") -> Array:
    return np.stack(masks, axis=-1).astype(dtype)


def test_channels_are_objects_and_may_overlap(caplog: pytest.LogCaptureFixture) -> None:
    inner, other = ndimage.binary_erosion(DISC, iterations=4), np.roll(DISC, 25, 1)
    found = channels_of_values(channels(DISC, inner, other), name="a.nii")
    assert list(found) == [1, 2, 3]
    for mask, expected in zip(found.values(), (DISC, inner, other), strict=True):
        np.testing.assert_array_equal(mask, expected)
    assert "a.nii: each of its 3 channels is taken as one mask" in caplog.text


def test_the_first_of_complete_channels_is_background() -> None:
    other = np.roll(DISC, 30, 1) & ~DISC
    found = channels_of_values(channels(~(DISC | other), DISC, other, dtype="f4"), name="a")
    assert list(found) == [1, 2]
    np.testing.assert_array_equal(found[1], DISC)
    np.testing.assert_array_equal(found[2], other)


def test_channels_that_are_no_masks_are_refused() -> None:
    with pytest.raises(ValueError, match="2 channels hold fractions"):
        channels_of_values(channels(drawn(1.0), drawn(0.5), dtype="f4"), name="a")
    with pytest.raises(ValueError, match=r"--channel K"):
        channels_of_values(channels(DISC * 3, DISC * 2 + 1), name="a")
    with pytest.raises(ValueError, match="NaN"):
        channels_of_values(np.full((4, 4, 2), np.nan), name="a")
    soft = channels_of_values(channels(drawn(1.0), drawn(0.9), dtype="f4"), threshold=0.5, name="a")
    np.testing.assert_array_equal(soft[2], drawn(0.9).astype("f4") >= 0.5)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha", ".tif", ".npz"])
def test_probabilities_in_files_need_a_threshold(tmp_path: Path, suffix: str) -> None:
    values = np.stack([drawn(0.9, 3.0)] * 4).astype(np.float32)
    path = tmp_path / f"p{suffix}"
    if suffix == ".npz":
        np.savez(path, segs=values)
    else:
        limner.io.write_image(path, limner.Image(values, Geometry(values.shape)))
    with pytest.raises(FormatError, match=r"probabilities.*--threshold 0\.5"):
        limner.read_labels(path)
    labels = limner.read_labels(path, threshold=0.5)
    np.testing.assert_array_equal(labels.to_array(), values >= 0.5)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".nii", ".mha", ".nrrd"])
def test_a_picture_is_no_mask(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture{suffix}"
    limner.io.write_image(path, limner.Image(picture(), Geometry(SHAPE)))
    with pytest.raises(FormatError, match="grey levels that change from pixel to pixel"):
        limner.read_labels(path)
    assert limner.read_labels(path, threshold=100).ids == (1,)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_a_drawn_mask_is_one_object(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mask{suffix}"
    Picture.fromarray(drawn(255).round().astype(np.uint8)).save(path)
    labels = limner.read_labels(path)
    assert labels.ids == (255,)  # as the same mask with hard edges
    np.testing.assert_array_equal(labels.mask(255), DISC)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha", ".tif", ".png", ".npz"])
def test_what_limner_wrote_is_believed(tmp_path: Path, suffix: str) -> None:
    """Noise of many labels is no picture where the file says that it holds labels."""
    array = np.random.default_rng(1).integers(0, 200, SHAPE).astype(np.uint8)
    if suffix in (".nrrd", ".mha"):
        pytest.skip("has no place to say so")
    path = tmp_path / f"a{suffix}"
    limner.write(path, limner.io.Labels(Geometry(SHAPE), array=array))
    np.testing.assert_array_equal(limner.read_labels(path).to_array(), array)


def test_volumes_per_class_in_nifti(tmp_path: Path) -> None:
    first = BALL.astype(np.uint8)
    second = np.roll(first, 8, axis=1)
    path = save_nifti(tmp_path / "onehot.nii.gz", np.stack([first, second], axis=-1))
    labels = limner.read_labels(path)
    assert labels.ids == (1, 2)
    np.testing.assert_array_equal(labels.mask(1), BALL)
    np.testing.assert_array_equal(labels.mask(2), second > 0)
    limner.write(tmp_path / "a.seg.nrrd", labels)
    again = limner.read_labels(tmp_path / "a.seg.nrrd")
    np.testing.assert_array_equal(again.mask(1), BALL)
    only = limner.read_labels(path, channel=1)
    assert only.ids == (1,)
    np.testing.assert_array_equal(only.mask(1), second > 0)


def test_masks_over_time_are_no_objects(tmp_path: Path) -> None:
    times = np.stack([BALL, np.roll(BALL, 1, axis=2)], axis=-1).astype(np.uint8)
    mask = save_nifti(tmp_path / "mask.nii.gz", times)
    image = limner.read(save_nifti(tmp_path / "image.nii.gz", times * np.int16(900)))
    with pytest.raises(FormatError, match="2 volumes, as many as the image has"):
        limner.read_labels(mask, like=image)
    assert limner.read_labels(mask, like=image, channel=0).ids == (1,)


def test_colours_are_not_split(tmp_path: Path) -> None:
    colours = np.stack([DISC, np.roll(DISC, 30, 1), DISC & False], axis=-1) * np.uint8(255)
    Picture.fromarray(colours).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", colours, photometric="rgb")
    for name in ("a.png", "a.tif"):
        with pytest.raises(FormatError, match="colour picture is not a label map"):
            limner.read_labels(tmp_path / name)


def test_options_that_a_format_has_not(tmp_path: Path) -> None:
    limner.write(tmp_path / "a.json", DISC.astype(np.uint8))
    with pytest.raises(FormatError, match="no threshold is to be taken"):
        limner.read_labels(tmp_path / "a.json", threshold=0.5)


# ---------------------------------------------------------------- writing without a place


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".seg.nrrd", ".mha", ".dcm"])
def test_an_array_needs_its_image_where_the_file_says_where_it_lies(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"seg{suffix}"
    for given in (BALL, BALL.astype(np.uint8), {1: BALL}, {"liver": BALL}):
        with pytest.raises(GeometryError, match=rf"\{suffix} does; give its image"):
            limner.write(path, given)
    session = limner.open_session(BALL.astype(np.float32), "toy")
    session.add(limner.Box((3, 14, 16), (13, 26, 28)))
    prediction = session.predict()
    with pytest.raises(GeometryError, match="like="):
        limner.write(path, prediction.mask)
    with pytest.raises(GeometryError, match="like="):
        limner.write(path, session.labels > 0)
    assert not path.exists()


@pytest.mark.parametrize("suffix", [".png", ".tif", ".json", ".npz"])
def test_other_formats_take_an_array_alone(tmp_path: Path, suffix: str) -> None:
    limner.write(tmp_path / f"a{suffix}", DISC)
    np.testing.assert_array_equal(limner.read_labels(tmp_path / f"a{suffix}").mask(1), DISC)


def test_masks_by_name(tmp_path: Path) -> None:
    masks = {"liver": DISC, "spleen": np.roll(DISC, 30, 1)}
    limner.write(tmp_path / "a.nii.gz", masks, like=Geometry(SHAPE))
    limner.write(tmp_path / "a.png", masks)
    labels = limner.read_labels(tmp_path / "a.png")
    assert labels.names == {1: "liver", 2: "spleen"}
    np.testing.assert_array_equal(labels.mask(2), masks["spleen"])
    with pytest.raises(TypeError, match="by object id"):
        limner.write(tmp_path / "a.png", {"liver": DISC, 2: DISC})


def test_a_prediction_is_told_how_it_is_written(tmp_path: Path) -> None:
    session = limner.open_session(DISC.astype(np.float32), "toy")
    session.add(limner.Box((10, 10), (50, 60)))
    with pytest.raises(TypeError, match=r"not Prediction; of a prediction write prediction\.mask"):
        limner.write(tmp_path / "a.png", session.predict())
