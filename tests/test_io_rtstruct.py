"""RT Structure Sets: the filling rule against published masks, and exact round trips."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom.dataset import Dataset

from dicom_makers import DX, enhanced_dataset, image_dataset, save, save_series
from limner.errors import FormatError
from limner.io import Image
from limner.io.dicom import _contours, images, rtstruct
from limner.io.labels import Labels
from rounds import times


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.fixture
def series(tmp_path: Path, rng: np.random.Generator) -> Image:
    """An oblique series in shuffled files."""
    axes, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    axes *= np.sign(np.linalg.det(axes))
    save_series(
        tmp_path / "series",
        rng.integers(0, 2000, (5, 30, 26), dtype=np.int16),
        origin=(-120.0, 30.5, 812.25),
        orientation=tuple(axes[:, :2].T.ravel()),
        spacing=(0.9765625, 0.7),
        step=2.5,
        rng=rng,
    )
    return images.read(tmp_path / "series")


def blobs(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Random shapes with holes, islands in holes and parts that touch at a corner."""
    from scipy import ndimage

    return ndimage.gaussian_filter(rng.random(shape), (0, 1.2, 1.2)) > 0.5


def assert_same(found: Labels, expected: Labels) -> None:
    assert found.ids == expected.ids
    for object_id in expected.ids:
        np.testing.assert_array_equal(found.mask(object_id), expected.mask(object_id))


# Contours


@pytest.mark.slow
@settings(max_examples=times(150), deadline=None)
@given(mask=arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_outline_filled_is_the_mask(mask):
    contours = _contours.outline(mask)
    np.testing.assert_array_equal(_contours.fill(contours, mask.shape), mask)


def test_outline_has_one_contour_per_part_even_with_holes():
    mask = np.ones((9, 9), dtype=bool)
    mask[1:8, 1:8] = False
    mask[3:6, 3:6] = True
    mask[4, 4] = False
    contours = _contours.outline(mask)
    assert len(contours) == 2
    united = np.logical_or.reduce([_contours.fill([c], mask.shape) for c in contours])
    np.testing.assert_array_equal(united, mask)  # also for readers that unite contours


def test_fill_by_pixel_centres():
    square = np.array([(0.5, 0.5), (0.5, 3.5), (2.5, 3.5), (2.5, 0.5)])
    mask = _contours.fill([square], (4, 5))
    assert mask.sum() == 6
    assert mask[1:3, 1:4].all()
    hole = _contours.fill(
        [square, np.array([(0.6, 0.6), (0.6, 1.6), (1.6, 1.6), (1.6, 0.6)])], (4, 5)
    )
    assert hole.sum() == 5
    outside = _contours.fill([square - 100, square + 100], (4, 5))
    assert not outside.any()
    everything = np.array([(-9.0, -9.0), (-9.0, 99.0), (99.0, 99.0), (99.0, -9.0)])
    assert _contours.fill([everything], (4, 5)).all()


# Round trips


def test_round_trip_on_an_oblique_series(tmp_path, series, rng):
    masks = {1: blobs(rng, series.shape), 4: blobs(rng, series.shape)}
    labels = Labels(series.geometry, masks=masks, names={1: "GTV", 4: "Rückenmark"})
    path = tmp_path / "rs.dcm"
    rtstruct.write(path, labels, like=series)
    assert rtstruct.sniff(path, path.read_bytes()[:1024])
    assert not images.sniff(path, path.read_bytes()[:1024])
    found = rtstruct.read_labels(path, like=series)
    assert_same(found, labels)
    assert found.names == labels.names
    assert found.geometry == series.geometry


def test_the_image_is_found_beside_the_contours(tmp_path, series, rng):
    labels = Labels(series.geometry, masks={1: blobs(rng, series.shape)})
    folder = Path(series.metadata["sources"]["files"][0]).parent
    save_series(folder / "other", np.zeros((3, 8, 8), np.int16))
    rtstruct.write(folder / "rs.dcm", labels, like=series)
    assert_same(rtstruct.read_labels(folder / "rs.dcm"), labels)
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(folder / "rs.dcm", alone)
    with pytest.raises(FormatError, match="pass the image as like= "):
        rtstruct.read_labels(alone / "rs.dcm")


def test_single_slice_and_multiframe_sources(tmp_path, series, rng):
    single = images.read(series.metadata["sources"]["files"][2])
    stack = rng.integers(0, 2000, (5, 12, 14), dtype=np.uint16)
    places = [(1.0, 2.0, 3.0 * k) for k in rng.permutation(5)]
    multi = images.read(save(enhanced_dataset(stack, places), tmp_path / "enhanced.dcm"))
    for image in (single, multi):
        mask = blobs(rng, (1, *image.shape)[-3:]).reshape(image.shape)
        labels = Labels(image.geometry, masks={3: mask})
        rtstruct.write(tmp_path / "rs.dcm", labels, like=image)
        assert_same(rtstruct.read_labels(tmp_path / "rs.dcm", like=image), labels)
    contour = pydicom.dcmread(tmp_path / "rs.dcm").ROIContourSequence[0].ContourSequence[0]
    frame = contour.ContourImageSequence[0].ReferencedFrameNumber
    z = float(contour.ContourData[2])
    assert places[frame - 1][2] == pytest.approx(z)


def test_the_object_is_complete(tmp_path, series, rng):
    labels = Labels(series.geometry, masks={2: blobs(rng, series.shape)}, names={2: "x" * 80})
    rtstruct.write(tmp_path / "rs.dcm", labels, like=series)
    ds = pydicom.dcmread(tmp_path / "rs.dcm")
    source = pydicom.dcmread(series.metadata["sources"]["files"][0], stop_before_pixels=True)
    assert ds.SOPClassUID == "1.2.840.10008.5.1.4.1.1.481.3"
    assert ds.StudyInstanceUID == source.StudyInstanceUID
    assert ds.PatientName == source.PatientName
    reference = ds.ReferencedFrameOfReferenceSequence[0]
    assert reference.FrameOfReferenceUID == source.FrameOfReferenceUID
    listed = reference.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    assert listed.SeriesInstanceUID == source.SeriesInstanceUID
    assert len(listed.ContourImageSequence) == 5
    assert ds.StructureSetROISequence[0].ROIName == "x" * 40 + "..." + "x" * 20
    assert ds.StructureSetROISequence[0].ROIDescription == "x" * 80
    assert ds.RTROIObservationsSequence[0].ReferencedROINumber == 2
    roi = ds.ROIContourSequence[0]
    assert len(roi.ROIDisplayColor) == 3
    by_uid = dict(zip(series.metadata["sources"]["sop_instance_uids"], range(5), strict=True))
    for contour in roi.ContourSequence:
        assert contour.ContourGeometricType == "CLOSED_PLANAR"
        points = np.reshape([float(v) for v in contour.ContourData], (-1, 3))
        assert len(points) == contour.NumberOfContourPoints
        slices = series.geometry.world_to_index(points)[:, 0]
        uid = contour.ContourImageSequence[0].ReferencedSOPInstanceUID
        np.testing.assert_allclose(slices, by_uid[uid], atol=1e-6)


# Contours of others


def structure_set(tmp_path: Path, series: Image, contours: list[tuple[str, np.ndarray]]) -> Path:
    """A structure set with one structure, whose contours are given in index coordinates."""
    labels = Labels(series.geometry, masks={1: np.ones(series.shape, dtype=bool)})
    path = tmp_path / "rs.dcm"
    rtstruct.write(path, labels, like=series)
    ds = pydicom.dcmread(path)
    items = []
    for kind, index in contours:
        item = Dataset()
        item.ContourGeometricType = kind
        world = series.geometry.index_to_world(index).ravel()
        item.ContourData = [f"{v:.8g}" for v in world]
        item.NumberOfContourPoints = len(index)
        items.append(item)
    ds.ROIContourSequence[0].ContourSequence = items
    ds.save_as(path)
    return path


def square(depth: float, low: float = 1.5, high: float = 5.5) -> np.ndarray:
    corners = [(low, low), (low, high), (high, high), (high, low)]
    return np.array([(depth, row, column) for row, column in corners])


def test_inner_contours_are_holes_and_others_are_passed_over(tmp_path, series, caplog):
    oblique = square(2.0)
    oblique[:2, 0] = 0.0
    contours = [
        ("CLOSED_PLANAR", square(1.0)),
        ("CLOSED_PLANAR", square(1.0, 2.5, 3.5)),
        ("CLOSEDPLANAR_XOR", square(3.04)),
        ("CLOSED_PLANAR", square(2.7, 1.5, 9.5)),
        ("POINT", square(0.0)[:1]),
        ("OPEN_PLANAR", square(0.0)),
        ("CLOSED_PLANAR", oblique),
        ("CLOSED_PLANAR", square(40.0)),
    ]
    with caplog.at_level(logging.WARNING):
        labels = rtstruct.read_labels(structure_set(tmp_path, series, contours), like=series)
    counts = labels.mask(1).sum(axis=(1, 2)).tolist()
    assert counts == [0, 15, 0, 16, 0]
    assert "1 POINT, 1 OPEN_PLANAR" in caplog.text
    assert "1 contours not parallel" in caplog.text
    assert "1 contours outside the image" in caplog.text


def test_contours_of_another_place_are_refused(tmp_path, series):
    path = structure_set(tmp_path, series, [("CLOSED_PLANAR", square(90.0))])
    with pytest.raises(FormatError, match="belongs to another one"):
        rtstruct.read_labels(path, like=series)


def test_what_cannot_be_written_or_read_says_why(tmp_path, series, rng):
    labels = Labels(series.geometry, masks={1: blobs(rng, series.shape)})
    path = tmp_path / "rs.dcm"
    with pytest.raises(FormatError, match="needs the DICOM files"):
        rtstruct.write(path, labels, like=Image(np.zeros(series.shape), series.geometry))
    ds = image_dataset(np.zeros((8, 9), np.uint8), sop_class=DX, modality="DX")
    flat = images.read(save(ds, tmp_path / "dx.dcm"))
    with pytest.raises(FormatError, match="has no place in it"):
        rtstruct.write(path, Labels(flat.geometry, array=np.ones((8, 9), np.uint8)), like=flat)
    with pytest.raises(FormatError, match="no object"):
        rtstruct.write(
            path, Labels(series.geometry, array=np.zeros(series.shape, int)), like=series
        )
    assert not path.exists()
    with pytest.raises(FormatError, match="is no RT Structure Set"):
        rtstruct.read_labels(tmp_path / "dx.dcm")
    with pytest.raises(FormatError, match="read it with read_labels"):
        rtstruct.read(path)


# Real files


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("sarcoma_ct_rtstruct", "sarcoma_ct"),
        ("sarcoma_mr_rtstruct", "sarcoma_mr_t1"),
        ("sarcoma_pet_rtstruct", "sarcoma_pet"),
    ],
)
def test_real_structures_equal_their_published_masks(tmp_path, shared_data, name, twin):
    import nibabel

    folder = shared_data / "dicom" / name
    labels = rtstruct.read_labels(folder / "RS.dcm")
    published = nibabel.load(shared_data / "3d" / twin / "labels" / "STS_002.nii.gz")
    np.testing.assert_array_equal(labels.mask(1), np.asarray(published.dataobj).T > 0)
    assert labels.name(1).startswith("GTV_Mass")
    image = images.read(folder)
    rtstruct.write(tmp_path / "rs.dcm", labels, like=image)
    assert_same(rtstruct.read_labels(tmp_path / "rs.dcm", like=image), labels)
