"""DICOM Segmentations lie where their frames say: turned, mirrored, shifted, by frame number."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest

import limner
from dicom_makers import (
    AXIAL,
    US_MULTIFRAME,
    enhanced_dataset,
    image_dataset,
    save,
    save_series,
)
from limner.errors import FormatError
from limner.io import Image
from limner.io.labels import Labels

SHAPE = (5, 12, 16)


@pytest.fixture
def series(tmp_path: Path) -> Image:
    volume = np.random.default_rng(3).integers(0, 999, SHAPE, dtype=np.int16)
    save_series(tmp_path / "ct", volume, origin=(-9.0, 4.0, 50.0), spacing=(2.0, 2.0), step=3.0)
    return limner.read(tmp_path / "ct")


def objects() -> np.ndarray:
    """Two objects that share a slice and have no symmetry."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[1, 2:5, 3:11] = 1
    labels[2, 2:7, 3:5] = 1
    labels[2, 8:11, 9:14] = 2
    labels[4, 0, 15] = 2
    return labels


def turned(path: Path, transpose: bool, flips: tuple[bool, bool], crop: int) -> None:
    """Store the frames of a segmentation another way; where they lie stays."""
    from pydicom.pixels import pack_bits

    ds = pydicom.dcmread(path)
    masks = np.asarray(ds.pixel_array).reshape(-1, ds.Rows, ds.Columns)
    plane = ds.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    axes = np.reshape([float(v) for v in plane.ImageOrientationPatient], (2, 3))
    steps = [axes[1] * 2.0, axes[0] * 2.0]  # along rows, along columns
    groups = ds.PerFrameFunctionalGroupsSequence
    places = {id(p): p for g in groups for p in g.PlanePositionSequence}.values()
    origins = [np.asarray([float(v) for v in p.ImagePositionPatient]) for p in places]
    masks = masks[:, crop:, :]
    origins = [o + crop * steps[0] for o in origins]
    if transpose:
        masks, steps = masks.swapaxes(1, 2), steps[::-1]
    for axis, flip in enumerate(flips):
        if flip:
            origins = [o + (masks.shape[axis + 1] - 1) * steps[axis] for o in origins]
            steps[axis] = -steps[axis]
            masks = np.flip(masks, axis + 1)
    for place, origin in zip(places, origins, strict=True):
        place.ImagePositionPatient = [f"{v:.6g}" for v in origin]
    plane.ImageOrientationPatient = [f"{v:.6g}" for v in np.concatenate([steps[1], steps[0]]) / 2]
    ds.Rows, ds.Columns = masks.shape[1:]
    ds.PixelData = pack_bits(np.ascontiguousarray(masks).ravel().astype(np.uint8))
    ds.save_as(path)


@pytest.mark.parametrize(
    ("transpose", "flips", "crop"),
    list(product((False, True), product((False, True), repeat=2), (0, 2))),
)
def test_frames_lie_where_their_own_position_says(
    series: Image, tmp_path: Path, transpose: bool, flips: tuple[bool, bool], crop: int
) -> None:
    wanted = objects()
    wanted[:, :crop] = 0
    limner.write(tmp_path / "seg.dcm", wanted, like=series)
    turned(tmp_path / "seg.dcm", transpose, flips, crop)
    found = limner.read_labels(tmp_path / "seg.dcm", like=series)
    assert np.array_equal(found, wanted)
    volume = highdicom.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True)
    matched = volume.match_geometry(
        highdicom.Volume.from_components(
            np.zeros(SHAPE, np.uint8),
            direction=np.stack([series.affine[:3, k] / s for k, s in enumerate(series.spacing)], 1),
            center_position=series.geometry.index_to_world(np.asarray([n - 1 for n in SHAPE]) / 2),
            spacing=series.spacing,
            coordinate_system="PATIENT",
        )
    )
    assert np.array_equal(matched.array, wanted)


def test_frames_beside_the_image_are_said_to_be_lost(
    series: Image, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limner.write(tmp_path / "seg.dcm", objects(), like=series)
    save_series(
        tmp_path / "part",
        np.zeros((2, 12, 16), np.int16),
        origin=(-9.0, 4.0, 53.0),
        spacing=(2.0, 2.0),
        step=3.0,
        FrameOfReferenceUID=pydicom.dcmread(tmp_path / "seg.dcm").FrameOfReferenceUID,
    )
    found = limner.read_labels(tmp_path / "seg.dcm", like=limner.read(tmp_path / "part"))
    assert np.array_equal(found, objects()[1:3])
    assert "1 voxels lie outside" in caplog.text


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("shared", [True, False])
def test_frame_numbers_name_the_source_at_the_same_place(
    tmp_path: Path, order: int, shared: bool
) -> None:
    """Also where the frames of several objects are one item for highdicom, and where each frame
    has its own groups, as Philips and Siemens XA write them.
    """
    pixels = np.random.default_rng(0).integers(0, 99, SHAPE, dtype=np.uint16)
    ds = enhanced_dataset(pixels, [(0.0, 0.0, 3.0 * k) for k in range(5)][::order], thickness=3.0)
    if not shared:
        common = ds.SharedFunctionalGroupsSequence[0]
        for group in ds.PerFrameFunctionalGroupsSequence:
            for keyword in ("PixelMeasuresSequence", "PlaneOrientationSequence"):
                setattr(group, keyword, [common[keyword].value[0]])
        del ds.SharedFunctionalGroupsSequence
    image = limner.read(save(ds, tmp_path / "mr.dcm"))
    limner.write(tmp_path / "seg.dcm", objects(), like=image)
    written = pydicom.dcmread(tmp_path / "seg.dcm")
    for group in written.PerFrameFunctionalGroupsSequence:
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        named = ds.PerFrameFunctionalGroupsSequence[int(source.ReferencedFrameNumber) - 1]
        places = [g.PlanePositionSequence[0].ImagePositionPatient for g in (group, named)]
        assert places[0] == places[1]
    assert np.array_equal(limner.read_labels(tmp_path / "seg.dcm", like=image), objects())


def test_frames_without_a_place_are_named_by_number(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, SHAPE, dtype=np.uint8)
    ds = image_dataset(pixels, sop_class=US_MULTIFRAME, modality="US")
    video = limner.read(save(ds, tmp_path / "us.dcm", FrameTime=40))
    assert video.kind == "video"
    limner.write(tmp_path / "seg.dcm", objects(), like=video)
    assert np.array_equal(limner.read_labels(tmp_path / "seg.dcm", like=video), objects())
    assert np.array_equal(limner.read_labels(tmp_path / "seg.dcm"), objects())  # finds the file
    official = highdicom.seg.segread(tmp_path / "seg.dcm")
    found = official.get_pixels_by_source_frame(
        ds.SOPInstanceUID,
        source_frame_numbers=range(1, 6),
        combine_segments=True,
        ignore_spatial_locations=True,
        assert_missing_frames_are_empty=True,
    )
    assert np.array_equal(found, objects())
    assert "FrameOfReferenceUID" not in official


def test_cine_of_single_frames_names_its_files(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, SHAPE, dtype=np.uint8)
    times = {k: {"TriggerTime": 30.0 * k} for k in range(5)}
    place = {"ImagePositionPatient": ["0", "0", "0"]}
    save_series(tmp_path / "cine", pixels, per_slice={k: {**place, **times[k]} for k in times})
    video = limner.read(tmp_path / "cine")
    assert video.kind == "video"
    limner.write(tmp_path / "seg.dcm", objects(), like=video)
    assert np.array_equal(limner.read_labels(tmp_path / "seg.dcm", like=video), objects())
    uids = video.metadata["sources"]["sop_instance_uids"]
    for group in pydicom.dcmread(tmp_path / "seg.dcm").PerFrameFunctionalGroupsSequence:
        named = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        assert uids[group.FrameContentSequence[0].TemporalPositionIndex - 1] == named


def test_tiled_full_runs_over_tiles_then_segments(tmp_path: Path) -> None:
    from pydicom.pixels import pack_bits

    labels = np.zeros((8, 10), np.uint8)
    labels[1:4, 2:5], labels[4:8, 6:10], labels[6:8, 0:3] = 1, 2, 3
    tiles = [(labels == n)[r : r + 4, c : c + 5] for n in (1, 2, 3) for r in (0, 4) for c in (0, 5)]
    whole = image_dataset(np.zeros((8, 10), np.uint8))
    image = limner.read(
        save(
            whole,
            tmp_path / "base.dcm",
            ImagePositionPatient=[0, 0, 0],
            ImageOrientationPatient=list(AXIAL),
            PixelSpacing=[1, 1],
            SliceThickness=1,
        )
    )
    limner.write(tmp_path / "seg.dcm", labels, like=image)
    ds = pydicom.dcmread(tmp_path / "seg.dcm")
    del ds.PerFrameFunctionalGroupsSequence
    ds.Rows, ds.Columns, ds.NumberOfFrames = 4, 5, len(tiles)
    ds.TotalPixelMatrixRows, ds.TotalPixelMatrixColumns = labels.shape
    ds.DimensionOrganizationType = "TILED_FULL"
    ds.PixelData = pack_bits(np.stack(tiles).ravel().astype(np.uint8))
    ds.save_as(tmp_path / "tiled.dcm")
    assert np.array_equal(limner.read_labels(tmp_path / "tiled.dcm"), labels)


def test_empty_objects_stay(
    series: Image, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = {1: "liver", 2: "tumour", 3: "spleen"}
    array = np.where(objects() == 2, 3, objects())
    labels = Labels(series.geometry, array=array, names=names)
    assert labels.ids == (1, 3)
    assert labels.empty_ids == (2,)
    for name in ("seg.dcm", "seg.seg.nrrd", "rt.dcm"):
        path = tmp_path / name
        limner.write(path, labels, like=series, dicom_type="rtstruct" if name == "rt.dcm" else None)
        again = limner.read_labels(path, like=series)
        assert again.ids == (1, 3)
        assert again.empty_ids == (2,)
        assert again.names == names
        assert not again.mask(2).any()
    assert [s.SegmentLabel for s in pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence] == [
        *names.values()
    ]
    caplog.clear()
    limner.write(tmp_path / "seg.nii.gz", labels, like=series)
    assert "left out, without a pixel: tumour" in caplog.text


@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
def test_another_frame_of_reference_is_refused(
    series: Image, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    save_series(
        tmp_path / "other",
        np.zeros(SHAPE, np.int16),
        origin=(-9.0, 4.0, 50.0),
        spacing=(2.0, 2.0),
        step=3.0,
    )
    other, path = limner.read(tmp_path / "other"), tmp_path / "s.dcm"
    limner.write(path, objects(), like=other, dicom_type=kind)
    with pytest.raises(FormatError, match="frame of reference"):
        limner.read_labels(path, like=series)
    found = limner.read_labels(path, like=series, any_frame=True)
    assert set(found.ids) == {1, 2}
    assert "frame of reference" in caplog.text


IMPLIED = {
    "1.2.840.10008.5.1.4.1.1.481.2": {
        "Modality": "RTDOSE",
        "GridFrameOffsetVector": [3.0 * k for k in range(5)],
        "DoseGridScaling": "0.001",
    },
    "1.2.840.10008.5.1.4.1.1.20": {
        "Modality": "NM",
        "ImageType": ["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"],
        "SpacingBetweenSlices": 3,
    },
    "1.2.840.10008.5.1.4.1.1.7.3": {"Modality": "CT", "SliceThickness": 3},
}


@pytest.mark.parametrize("sop_class", IMPLIED)
def test_multiframe_files_without_groups_are_segmented(tmp_path: Path, sop_class: str) -> None:
    """Their positions follow from the first one (PS3.3 C.8.8.3.2)."""
    ds = image_dataset(np.ones(SHAPE, np.uint16), sop_class=sop_class)
    place = {"ImagePositionPatient": [5, 6, 7], "ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}
    save(ds, tmp_path / "a.dcm", PixelSpacing=[2, 1], **place, **IMPLIED[sop_class])
    image = limner.read(tmp_path / "a.dcm")
    assert image.kind == "volume"
    limner.write(tmp_path / "seg.dcm", objects(), like=image)
    assert np.array_equal(limner.read_labels(tmp_path / "seg.dcm", like=image), objects())
    volume = highdicom.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True)
    index = np.argwhere(objects())
    world = volume.map_indices_to_reference(np.argwhere(volume.array))
    wanted = image.geometry.index_to_world(index)
    assert np.allclose(world[np.lexsort(world.T)], wanted[np.lexsort(wanted.T)], atol=1e-4)
