"""Segmentations in every turn and form that files have, judged by highdicom and by the positions
that the frames themselves state.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.pixels.utils import pack_bits
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless, generate_uid

import limner
from dicom_makers import enhanced_dataset, save, save_series
from limner.io.image import Image
from limner.io.labels import Labels

SHAPE = (5, 12, 10)
PLANES = {
    "axial": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    "sagittal": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0),
    "feet first": (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    "oblique": (0.8, 0.6, 0.0, -0.36, 0.48, 0.8),
}
TURNS = list(itertools.product((False, True), repeat=3))  # transposed, rows, columns mirrored


def masks_of(geometry: limner.Geometry, *, overlap: bool) -> dict[int, np.ndarray]:
    """Two objects without any symmetry, which share slices."""
    masks = {k: np.zeros(geometry.shape, bool) for k in (1, 2)}
    masks[1][1:4, 2:7, 1:4] = True
    masks[1][2, 2, 5] = True
    masks[2][2:4, 6:11, 3 if overlap else 5 : 9] = True
    masks[2][3, 11, 0] = True
    if not overlap:
        masks[2] &= ~masks[1]
    return masks


@pytest.fixture(params=PLANES, ids=lambda name: name.replace(" ", "-"))
def series(request: pytest.FixtureRequest, tmp_path: Path) -> Image:
    rng = np.random.default_rng(5)
    save_series(
        tmp_path / "image",
        rng.integers(0, 99, SHAPE, dtype=np.int16),
        origin=(-20.0, 15.0, -107.5),
        orientation=PLANES[request.param],
        spacing=(0.8, 0.6) if request.param == "oblique" else (0.7, 0.7),
        step=2.5,
        rng=rng,
        SliceThickness=2.5,
    )
    return limner.read(tmp_path / "image")


def points(image_affine: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """LPS millimetres of all voxels of a mask, sorted."""
    index = np.argwhere(mask)
    world = index @ image_affine[:3, :3].T + image_affine[:3, 3]
    return np.asarray(sorted(np.round(world, 2).tolist()))


def points_of_frames(path: Path, number: int) -> np.ndarray:
    """The same of a segment, from what each frame says of its own place."""
    ds = pydicom.dcmread(path)
    pixels = np.atleast_3d(ds.pixel_array)
    if int(ds.get("NumberOfFrames") or 1) == 1:
        pixels = ds.pixel_array[None]
    found = []
    shared = ds.SharedFunctionalGroupsSequence[0]
    is_map = ds.SegmentationType == "LABELMAP"
    for plane, group in zip(pixels, ds.PerFrameFunctionalGroupsSequence, strict=True):

        def item(keyword: str, group: Dataset = group) -> Dataset:
            return (group.get(keyword) or shared.get(keyword))[0]

        if is_map:
            inside = plane == number
        else:
            of = int(item("SegmentIdentificationSequence").ReferencedSegmentNumber)
            inside = (plane != 0) & (of == number)
        position = np.array(item("PlanePositionSequence").ImagePositionPatient, float)
        cosines = item("PlaneOrientationSequence").ImageOrientationPatient
        axes = np.array(cosines, float).reshape(2, 3)
        row, column = (float(v) for v in item("PixelMeasuresSequence").PixelSpacing)
        at = np.argwhere(inside)
        found.append(position + at[:, :1] * axes[1] * row + at[:, 1:] * axes[0] * column)
    return np.asarray(sorted(np.round(np.concatenate(found), 2).tolist()))


def assert_points(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=0.02)


def turn_frames(
    path: Path, turn: tuple[bool, bool, bool], *, shuffle: bool, per_frame: bool
) -> None:
    """Store the frames of a BINARY segmentation turned, with the position that says so."""
    ds = pydicom.dcmread(path)
    pixels = ds.pixel_array.reshape(-1, ds.Rows, ds.Columns)
    shared = ds.SharedFunctionalGroupsSequence[0]
    axes = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    along_row, along_column = axes[:3], axes[3:]  # of increasing column, of increasing row
    measures = shared.PixelMeasuresSequence[0]
    row, column = (float(v) for v in measures.PixelSpacing)
    transposed, flip_rows, flip_columns = turn
    shift = np.zeros(3)
    if flip_rows:
        pixels, shift = pixels[:, ::-1], shift + along_column * row * (ds.Rows - 1)
        along_column = -along_column
    if flip_columns:
        pixels, shift = pixels[:, :, ::-1], shift + along_row * column * (ds.Columns - 1)
        along_row = -along_row
    if transposed:
        pixels = pixels.transpose(0, 2, 1)
        along_row, along_column = along_column, along_row
        measures.PixelSpacing = [column, row]
        ds.Rows, ds.Columns = ds.Columns, ds.Rows
    plane = Dataset()
    plane.ImageOrientationPatient = [float(v) for v in (*along_row, *along_column)]
    order = np.arange(len(pixels))
    if shuffle:
        order = np.random.default_rng(1).permutation(len(pixels))
    groups = ds.PerFrameFunctionalGroupsSequence
    for group in groups:
        position = group.PlanePositionSequence[0]
        moved = np.array(position.ImagePositionPatient, float) + shift
        position.ImagePositionPatient = [f"{v:.8g}" for v in moved]
        if per_frame:
            group.PlaneOrientationSequence = [plane]
            group.PixelMeasuresSequence = [measures]
    if per_frame:
        del shared.PlaneOrientationSequence, shared.PixelMeasuresSequence
    else:
        shared.PlaneOrientationSequence = [plane]
    ds.PerFrameFunctionalGroupsSequence = [groups[k] for k in order]
    ds.PixelData = pack_bits(np.ascontiguousarray(pixels[order]).astype(np.uint8))
    ds.save_as(path)


@pytest.mark.parametrize("turn", TURNS)
def test_turned_frames_are_where_they_say(tmp_path, series, turn):
    masks = masks_of(series.geometry, overlap=True)
    path = tmp_path / "seg.dcm"
    limner.write(path, Labels(series.geometry, masks=masks), like=series)
    number = TURNS.index(turn)
    turn_frames(path, turn, shuffle=number % 2 == 1, per_frame=number % 4 < 2)
    found = limner.read_labels(path, like=series)
    for k, mask in masks.items():
        assert_points(points_of_frames(path, k), points(series.affine, mask))
        np.testing.assert_array_equal(found.mask(k), mask)
    path.rename(tmp_path / "alone.dcm")
    for file in (tmp_path / "image").iterdir():
        file.unlink()
    alone = limner.read_labels(tmp_path / "alone.dcm")
    for k, mask in masks.items():
        assert_points(points(alone.geometry.affine, alone.mask(k)), points(series.affine, mask))


@pytest.mark.parametrize("form", ["BINARY", "LABELMAP", "FRACTIONAL", "RLE", "deflated", "no refs"])
def test_forms_of_segmentations(tmp_path, series, form):
    """Written by highdicom, read by limner."""
    masks = masks_of(series.geometry, overlap=form not in ("LABELMAP", "RLE"))
    sources = [pydicom.dcmread(f) for f in series.metadata["sources"]["files"]]
    code = highdicom.sr.CodedConcept("85756007", "SCT", "Tissue")
    described = [
        highdicom.seg.SegmentDescription(k, f"object {k}", code, code, "MANUAL") for k in masks
    ]
    kind = form if form in ("LABELMAP", "FRACTIONAL") else "BINARY"
    stacked = np.stack(list(masks.values()), axis=-1).astype(np.uint8)
    pixels = masks[1] + masks[2] * np.uint8(2) if kind == "LABELMAP" else stacked
    seg = highdicom.seg.Segmentation(
        source_images=sources[::-1],
        pixel_array=pixels[::-1].astype(float) if kind == "FRACTIONAL" else pixels[::-1],
        segmentation_type=kind,
        segment_descriptions=described,
        series_instance_uid=generate_uid(),
        series_number=2,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="m",
        manufacturer_model_name="m",
        software_versions="1",
        device_serial_number="1",
        fractional_type="PROBABILITY",
    )
    if form == "no refs":
        for group in seg.PerFrameFunctionalGroupsSequence:
            del group.DerivationImageSequence
        del seg.ReferencedSeriesSequence
    if form == "RLE":
        frames = pydicom.pixels.utils.unpack_bits(seg.PixelData)
        size = seg.Rows * seg.Columns
        count = int(seg.NumberOfFrames)
        frames = frames[: size * count].reshape(count, seg.Rows, seg.Columns)
        assert RLELosslessEncoder.is_available
        seg.SegmentationType, seg.BitsAllocated, seg.BitsStored, seg.HighBit = "BINARY", 8, 8, 7
        seg.PixelData = frames.tobytes()
        seg.compress(RLELossless, encoding_plugin="pydicom")
    if form == "deflated":
        seg.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    path = tmp_path / "seg.dcm"
    seg.save_as(path)
    found = limner.read_labels(path, like=series)
    for k, mask in masks.items():
        np.testing.assert_array_equal(found.mask(k), mask)


@pytest.mark.parametrize("dicom_type", ["seg", "seg-labelmap"])
def test_series_is_written_as_highdicom_reads_it(tmp_path, series, dicom_type):
    masks = masks_of(series.geometry, overlap=dicom_type == "seg")
    path = tmp_path / "seg.dcm"
    limner.write(path, Labels(series.geometry, masks=masks), like=series, dicom_type=dicom_type)
    volume = highdicom.seg.segread(path).get_volume()
    for k, mask in masks.items():
        expected = points(series.affine, mask)
        assert_points(points_of_frames(path, k), expected)
        assert_points(points(volume.affine, volume.array[..., k - 1] != 0), expected)
    check_references(path, series)


@pytest.mark.parametrize("layout", ["shared", "per frame", "split"])
@pytest.mark.parametrize("order", ["up", "down", "shuffled"])
@pytest.mark.parametrize("time_points", [1, 3])
def test_multiframe_sources_are_named_by_frame(tmp_path, layout, order, time_points):
    rng = np.random.default_rng(8)
    heights = np.arange(SHAPE[0]) * 2.0 - 31
    places = [(4.0, 5.0, float(z)) for _ in range(time_points) for z in heights]
    times = [t + 1 for t in range(time_points) for _ in heights]
    sequence = np.arange(len(places))
    if order == "down":
        sequence = sequence[::-1]
    elif order == "shuffled":
        sequence = rng.permutation(len(places))
    ds = enhanced_dataset(
        rng.integers(0, 99, (len(places), *SHAPE[1:]), dtype=np.uint16),
        [places[k] for k in sequence],
        spacing=(0.5, 0.7),
        thickness=2.0,
        temporal=[times[k] for k in sequence] if time_points > 1 else None,
    )
    shared = ds.SharedFunctionalGroupsSequence[0]
    moved = {
        "shared": [],
        "per frame": ["PixelMeasuresSequence", "PlaneOrientationSequence"],
        "split": ["PlaneOrientationSequence"],
    }[layout]
    for keyword in moved:
        for group in ds.PerFrameFunctionalGroupsSequence:
            setattr(group, keyword, shared[keyword].value)
        delattr(shared, keyword)
    if layout == "per frame":
        del ds.SharedFunctionalGroupsSequence
        for group in ds.PerFrameFunctionalGroupsSequence:
            group.PixelValueTransformationSequence = shared.PixelValueTransformationSequence
    source = save(ds, tmp_path / "image.dcm")
    for choice in range(time_points):
        image = limner.read(source, series=choice + 1 if time_points > 1 else None)
        masks = masks_of(image.geometry, overlap=True)
        path = tmp_path / f"seg{choice}.dcm"
        limner.write(path, Labels(image.geometry, masks=masks), like=image)
        check_references(path, image)
        found = limner.read_labels(path, like=image)
        for k, mask in masks.items():
            assert_points(points_of_frames(path, k), points(image.affine, mask))
            np.testing.assert_array_equal(found.mask(k), mask)


def check_references(path: Path, image: Image) -> None:
    """Every frame names one source frame, of the time point, at its own position."""
    sources = image.metadata["sources"]
    files = {pydicom.dcmread(f).SOPInstanceUID: pydicom.dcmread(f) for f in sources["files"]}
    pairs = set(zip(sources["sop_instance_uids"], sources["frames"], strict=True))
    ds = pydicom.dcmread(path)
    for group in ds.PerFrameFunctionalGroupsSequence:
        place = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        named = group.DerivationImageSequence[0].SourceImageSequence
        assert len(named) == 1
        of = files[named[0].ReferencedSOPInstanceUID]
        number = int(named[0].get("ReferencedFrameNumber") or 1)
        assert (of.SOPInstanceUID, number - 1) in pairs
        frame = of
        if "PerFrameFunctionalGroupsSequence" in of:
            frame = of.PerFrameFunctionalGroupsSequence[number - 1].PlanePositionSequence[0]
        np.testing.assert_allclose(np.array(frame.ImagePositionPatient, float), place, atol=1e-4)
