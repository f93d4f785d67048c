"""DICOM Segmentations: written, read back, read by highdicom, and real ones from other writers."""

from __future__ import annotations

import warnings
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest

import limner
from dicom_makers import (
    DX,
    enhanced_dataset,
    image_dataset,
    save,
    save_series,
)
from limner.errors import FormatError
from limner.geometry import Geometry
from limner.io import Image
from limner.io.dicom import images, seg
from limner.io.dicom._codes import coded_name, label_of, name_of
from limner.io.dicom._labels import move_labels
from limner.io.labels import Labels


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


@pytest.fixture
def series(tmp_path: Path, rng: np.random.Generator) -> Image:
    """An oblique series in shuffled files."""
    axes, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    axes *= np.sign(np.linalg.det(axes))
    save_series(
        tmp_path / "series",
        rng.integers(0, 2000, (8, 20, 24), dtype=np.int16),
        origin=(-20.0, 30.5, 12.25),
        orientation=tuple(axes[:, :2].T.ravel()),
        spacing=(0.75, 0.5),
        step=2.0,
        rng=rng,
        SliceThickness=2.0,
    )
    return images.read(tmp_path / "series")


def two_objects(geometry: Geometry, *, overlap: bool) -> Labels:
    """A block and a diagonal block with gaps along the slices; ids 2 and 7."""
    first = np.zeros(geometry.shape, dtype=bool)
    second = np.zeros(geometry.shape, dtype=bool)
    first[..., 3:9, 4:12] = True
    second[..., 7 if overlap else 9 : 15, 10:16] = True
    if geometry.ndim == 3:
        first[:2] = first[5:] = False
        second[3:6] = False
    return Labels(geometry, masks={2: first, 7: second}, names={2: "left kidney", 7: "Läsion ß"})


def assert_same(found: Labels, expected: Labels) -> None:
    assert found.ids == expected.ids
    assert found.geometry.shape == expected.geometry.shape
    for object_id in expected.ids:
        np.testing.assert_array_equal(found.mask(object_id), expected.mask(object_id))


@pytest.mark.parametrize("overlap", [False, True])
def test_series_round_trip_with_names_ids_and_overlaps(tmp_path, series, overlap):
    labels = two_objects(series.geometry, overlap=overlap)
    path = tmp_path / "seg.dcm"
    seg.write(path, labels, like=series)
    assert seg.sniff(path, path.read_bytes()[:1024])
    assert not images.sniff(path, path.read_bytes()[:1024])
    found = seg.read_labels(path, like=series)
    assert_same(found, labels)
    assert found.names == labels.names
    assert found.geometry == series.geometry
    assert (found.num_overlapping() > 0) == overlap


def test_a_file_of_the_series_is_never_written_over(tmp_path, series):
    own = Path(series.metadata["sources"]["files"][1])
    content = own.read_bytes()
    with pytest.raises(FormatError, match="the image itself"):
        limner.write(own, two_objects(series.geometry, overlap=False), like=series)
    assert own.read_bytes() == content


def test_without_image_the_planes_are_at_their_places(tmp_path, series, caplog):
    labels = two_objects(series.geometry, overlap=False)
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "elsewhere" / "seg.dcm"
    seg.write(path, labels, like=series)
    alone = seg.read_labels(path)
    assert "only the slices that it holds" in caplog.text
    assert "like= (--like)" in caplog.text
    moved = move_labels(alone, series.geometry)
    assert_same(moved, labels)
    where = np.argwhere(alone.mask(2)).mean(axis=0)
    expected = np.argwhere(labels.mask(2)).mean(axis=0)
    np.testing.assert_allclose(
        alone.geometry.index_to_world(where), series.geometry.index_to_world(expected), atol=1e-4
    )


def test_the_image_is_found_beside_the_segmentation(tmp_path, series, caplog):
    masks = {1: np.zeros(series.shape, dtype=bool)}
    masks[1][2:4, 3:6, 4:8] = True
    folder = Path(series.metadata["sources"]["files"][0]).parent
    save_series(folder / "other", np.zeros((3, 8, 8), np.int16))
    seg.write(folder / "seg.dcm", Labels(series.geometry, masks=masks), like=series)
    found = seg.read_labels(folder / "seg.dcm")
    assert found.geometry == series.geometry
    np.testing.assert_array_equal(found.mask(1), masks[1])
    assert not caplog.records


def test_an_incomplete_image_beside_the_segmentation_is_not_used(tmp_path, series, caplog):
    labels = two_objects(series.geometry, overlap=False)
    files = [Path(f) for f in series.metadata["sources"]["files"]]
    seg.write(files[0].parent / "seg.dcm", labels, like=series)
    files[3].unlink()
    found = seg.read_labels(files[0].parent / "seg.dcm")
    assert {i: int(found.mask(i).sum()) for i in found.ids} == {
        i: int(labels.mask(i).sum()) for i in labels.ids
    }
    assert "was not used" in caplog.text
    assert "only the slices that it holds" in caplog.text


LONG_NAMES = (
    "metastasis in the eighth segment of the liver, seen on the arterial phase only, left",
    "first line\nsecond\\third",
    "é" * 65,
)


@pytest.mark.parametrize("dicom_type", ["seg", "seg-labelmap", "rtstruct"])
@pytest.mark.parametrize("name", LONG_NAMES)
def test_names_that_do_not_fit_a_label_are_described(tmp_path, series, dicom_type, name):
    masks = {3: np.zeros(series.shape, dtype=bool)}
    masks[3][2:4, 3:6, 4:8] = True
    path = tmp_path / "out.dcm"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        limner.write(
            path,
            Labels(series.geometry, masks=masks, names={3: name}),
            like=series,
            dicom_type=dicom_type,
        )
        ds = pydicom.dcmread(path)
    if dicom_type == "rtstruct":
        item = ds.StructureSetROISequence[0]
        label, description = item.ROIName, item.ROIDescription
    else:
        item = ds.SegmentSequence[-1]  # a label map lists its background first
        label, description = item.SegmentLabel, item.SegmentDescription
    assert isinstance(label, str)
    assert len(label) <= 64
    assert label.isprintable()
    assert (label[:5], label[-4:]) == (label_of(name)[:5], name[-4:].replace("\\", "/"))
    assert description == name
    assert limner.read_labels(path, like=series).names == {3: name}


@pytest.mark.parametrize(
    ("label", "description", "expected"),
    [
        ("Liver", "", "Liver"),
        ("Liver", "the whole organ", "Liver"),
        ("Liver", "Liver", "Liver"),
        (label_of("x" * 2000), "x" * 1024, "x" * 1024),
        (label_of("x" * 2000 + "y"), "x" * 1024, label_of("x" * 2000 + "y")),
    ],
)
def test_the_name_behind_a_label(label, description, expected):
    assert name_of(label, description) == expected


def test_highdicom_finds_the_same_voxels_at_the_same_places(tmp_path, series):
    labels = two_objects(series.geometry, overlap=True)
    seg.write(tmp_path / "seg.dcm", labels, like=series)
    theirs = highdicom.seg.segread(tmp_path / "seg.dcm")
    for number, object_id in ((1, 2), (2, 7)):
        volume = theirs.get_volume(segment_numbers=[number], combine_segments=False)
        inside = np.argwhere(np.asarray(volume.array)[..., 0] > 0)
        world = volume.map_indices_to_reference(inside)
        index = series.geometry.world_to_index(world)
        np.testing.assert_allclose(index, np.rint(index), atol=1e-3)
        found = np.zeros(series.shape, dtype=bool)
        found[tuple(np.rint(index).astype(int).T)] = True
        np.testing.assert_array_equal(found, labels.mask(object_id))


def test_segments_are_coded_coloured_and_attributed(tmp_path, series):
    labels = two_objects(series.geometry, overlap=False)
    labels.manifest = {"model": {"name": "classical/region"}}
    seg.write(tmp_path / "seg.dcm", labels, like=series)
    ds = pydicom.dcmread(tmp_path / "seg.dcm")
    source = pydicom.dcmread(series.metadata["sources"]["files"][0], stop_before_pixels=True)
    assert ds.StudyInstanceUID == source.StudyInstanceUID
    assert ds.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert ds.PatientID == source.PatientID
    assert ds.preamble == bytes(128)
    kidney, lesion = ds.SegmentSequence
    kind = kidney.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("64033007", "SCT")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert kidney.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Anatomical Structure"
    assert lesion.SegmentLabel == "Läsion ß"
    assert lesion.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"
    assert len(kidney.RecommendedDisplayCIELabValue) == 3
    assert kidney.RecommendedDisplayCIELabValue != lesion.RecommendedDisplayCIELabValue
    algorithm = kidney.SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmName == "limner"
    assert "classical/region" in algorithm.AlgorithmParameters
    referenced = {
        item.ReferencedSOPInstanceUID
        for item in ds.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    }
    assert referenced == set(series.metadata["sources"]["sop_instance_uids"])


def test_labelmap_round_trip_and_its_limit(tmp_path, series):
    labels = two_objects(series.geometry, overlap=False)
    path = tmp_path / "seg.dcm"
    seg.write(path, labels, like=series, dicom_type="seg-labelmap")
    assert pydicom.dcmread(path).SegmentationType == "LABELMAP"
    assert_same(seg.read_labels(path, like=series), labels)
    before = path.read_bytes()
    with pytest.raises(FormatError, match="a LABELMAP cannot hold"):
        seg.write(
            path, two_objects(series.geometry, overlap=True), like=series, dicom_type="seg-labelmap"
        )
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["seg.dcm"]


def test_single_slice_projection_and_multiframe(tmp_path, series, rng):
    sources = [images.read(series.metadata["sources"]["files"][3])]
    ds = image_dataset(rng.integers(0, 255, (20, 24), dtype=np.uint8), sop_class=DX, modality="DX")
    sources.append(images.read(save(ds, tmp_path / "dx.dcm")))
    stack = rng.integers(0, 2000, (8, 20, 24), dtype=np.uint16)
    places = [(0.0, 0.0, 3.0 * k) for k in rng.permutation(8)]
    sources.append(images.read(save(enhanced_dataset(stack, places), tmp_path / "enhanced.dcm")))
    assert [s.kind for s in sources] == ["image", "image", "volume"]
    for image in sources:
        labels = two_objects(image.geometry, overlap=True)
        seg.write(tmp_path / "seg.dcm", labels, like=image)
        assert_same(seg.read_labels(tmp_path / "seg.dcm", like=image), labels)


def test_series_with_a_gap_keeps_every_slice(tmp_path, series, rng):
    Path(series.metadata["sources"]["files"][2]).unlink()
    uneven = images.read(series.path, strict=False)
    labels = Labels(uneven.geometry, masks={1: rng.random(uneven.shape) > 0.8})
    seg.write(tmp_path / "seg.dcm", labels, like=uneven)
    assert_same(seg.read_labels(tmp_path / "seg.dcm", like=uneven), labels)


def test_one_time_point_of_a_multiframe_file(tmp_path, rng):
    stack = rng.integers(0, 2000, (8, 20, 24), dtype=np.uint16)
    places = [(0.0, 0.0, 3.0 * (k // 2)) for k in range(8)]
    ds = enhanced_dataset(stack, places, temporal=[1, 2] * 4)
    image = images.read(save(ds, tmp_path / "enhanced.dcm"), series=2)
    labels = Labels(image.geometry, masks={1: image.array > 0})
    seg.write(tmp_path / "seg.dcm", labels, like=image)
    assert_same(seg.read_labels(tmp_path / "seg.dcm", like=image), labels)
    for group in pydicom.dcmread(tmp_path / "seg.dcm").PerFrameFunctionalGroupsSequence:
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        number = int(source.ReferencedFrameNumber)
        assert number % 2 == 0
        position = group.PlanePositionSequence[0].ImagePositionPatient
        assert position[2] == places[number - 1][2]


def test_fractional_is_cut_at_half(tmp_path, series):
    datasets = [pydicom.dcmread(f) for f in series.metadata["sources"]["files"]]
    fractions = np.zeros(series.shape, dtype=np.float32)
    fractions[2:5, 4:8, 4:8] = 0.4
    fractions[3, 5:7, 5:7] = 0.6
    coded = coded_name("liver")
    segment = highdicom.seg.SegmentDescription(
        1, "liver", coded.category, coded.type, highdicom.seg.SegmentAlgorithmTypeValues.MANUAL
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = highdicom.seg.Segmentation(
            datasets, fractions, "FRACTIONAL", [segment], "1.2.3", 5, "1.2.4", 1, "m", "m", "1", "1"
        )
        made.save_as(tmp_path / "seg.dcm")
    found = seg.read_labels(tmp_path / "seg.dcm", like=series)
    np.testing.assert_array_equal(found.mask(1), fractions > 0.5)
    assert found.names == {1: "liver"}


def test_image_that_covers_part_or_is_another_grid(tmp_path, series):
    labels = two_objects(series.geometry, overlap=False)
    seg.write(tmp_path / "seg.dcm", labels, like=series)
    part = Image(series.array[1:7], series.geometry.crop((1, 0, 0), (7, 20, 24)))
    found = seg.read_labels(tmp_path / "seg.dcm", like=part)
    for object_id in labels.ids:
        np.testing.assert_array_equal(found.mask(object_id), labels.mask(object_id)[1:7])
    flipped = series.geometry.affine.copy()
    flipped[:3, 3] = series.geometry.index_to_world((7, 0, 0))
    flipped[:3, 0] *= -1
    found = seg.read_labels(
        tmp_path / "seg.dcm", like=Image(series.array[::-1], Geometry(series.shape, flipped))
    )
    np.testing.assert_array_equal(found.mask(7), labels.mask(7)[::-1])
    finer = series.geometry.resampled((8, 40, 48))
    found = seg.read_labels(
        tmp_path / "seg.dcm", like=Image(np.zeros((8, 40, 48), np.int16), finer)
    )
    assert found.mask(2).sum() == 4 * labels.mask(2).sum()


def test_what_cannot_be_written_says_why(tmp_path, series):
    labels = two_objects(series.geometry, overlap=False)
    plain = Image(np.zeros(series.shape), series.geometry)
    for like in (None, plain):
        with pytest.raises(FormatError, match=r"needs the DICOM files.*write \.nii\.gz"):
            seg.write(tmp_path / "seg.dcm", labels, like=like)
    with pytest.raises(FormatError, match="no object"):
        empty = Labels(series.geometry, array=np.zeros(series.shape, np.uint8))
        seg.write(tmp_path / "seg.dcm", empty, like=series)
    small = Labels(Geometry((2, 2)), array=np.ones((2, 2), np.uint8))
    with pytest.raises(FormatError, match="do not fit the image"):
        seg.write(tmp_path / "seg.dcm", small, like=series)
    with pytest.raises(FormatError, match="unknown; use seg or seg-labelmap"):
        seg.write(tmp_path / "seg.dcm", labels, like=series, dicom_type="nifti")
    assert not (tmp_path / "seg.dcm").exists()
    with pytest.raises(FormatError, match="is no DICOM Segmentation"):
        seg.read_labels(series.metadata["sources"]["files"][0])
    with pytest.raises(FormatError, match="read it with read_labels"):
        seg.read(tmp_path / "seg.dcm")


def test_anonymised_source_without_identifiers(tmp_path, rng):
    volume = rng.integers(0, 2000, (4, 16, 16), dtype=np.int16)
    for path in save_series(tmp_path / "series", volume):
        ds = pydicom.dcmread(path)
        for keyword in ("PatientID", "PatientName", "PatientSex", "StudyInstanceUID", "StudyDate",
                        "SeriesInstanceUID", "FrameOfReferenceUID", "StudyID"):  # fmt: skip
            delattr(ds, keyword)
        ds.SpecificCharacterSet = ""
        ds.save_as(path)
    image = images.read(tmp_path / "series")
    labels = two_objects(image.geometry, overlap=False)
    labels = Labels(image.geometry, masks={i: labels.mask(i) for i in (2,)})
    seg.write(tmp_path / "seg.dcm", labels, like=image)
    assert_same(seg.read_labels(tmp_path / "seg.dcm", like=image), labels)


def test_damaged_segmentation_is_refused_in_one_line(tmp_path, series, rng):
    path = tmp_path / "seg.dcm"
    seg.write(path, two_objects(series.geometry, overlap=False), like=series)
    content = path.read_bytes()
    refused = 0
    for _ in range(60):
        damaged = bytearray(content[: rng.integers(200, len(content))])
        damaged[rng.integers(150, len(damaged))] = rng.integers(256)
        path.write_bytes(bytes(damaged))
        try:
            seg.read_labels(path)
        except FormatError as error:
            refused += "\n" not in str(error)
    assert refused > 40


@pytest.mark.parametrize(
    ("name", "category", "kind", "side"),
    [
        ("liver", "Anatomical Structure", "Liver", None),
        ("kidney_left", "Anatomical Structure", "Kidney", "Left"),
        ("Right Kidney", "Anatomical Structure", "Kidney", "Right"),
        ("leftLung", "Anatomical Structure", "Lung", "Left"),
        ("left ventricle", "Anatomical Structure", "Left ventricle", None),
        ("oesophagus", "Anatomical Structure", "Esophagus", None),
        ("GTV_Mass_CT", None, None, None),
        ("tumour", "Morphologically Abnormal Structure", "Neoplasm", None),
        ("vertebra L1", None, None, None),
        ("spinal cord", "Anatomical Structure", "Spinal cord", None),
        ("thing no 3", "Tissue", "Tissue", None),
        ("", "Tissue", "Tissue", None),
    ],
)
def test_names_to_codes(name, category, kind, side):
    coded = coded_name(name)
    assert coded.type.scheme_designator == "SCT"
    if category is not None:
        assert coded.category.meaning == category
        assert coded.type.meaning == kind
        assert (coded.side.meaning if coded.side else None) == side


@pytest.mark.shared
def test_dcmqi_segmentation_equals_its_nrrd_twin(shared_data):
    import nrrd

    folder = shared_data / "dicom" / "ct_liver_seg"
    mask, _ = nrrd.read(str(folder / "liver_seg.nrrd"))
    image = images.read(folder)
    for like in (None, image):
        labels = seg.read_labels(folder / "liver.dcm", like=like)
        assert labels.names == {1: "Liver"}
        np.testing.assert_array_equal(labels.mask(1), mask.T > 0)
    overlapping = seg.read_labels(folder / "partial_overlaps.dcm", like=image)
    assert len(overlapping.ids) == 5
    assert overlapping.num_overlapping() > 0


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("seg_image_cr_binary", [151]),
        ("seg_image_ct_binary", [638]),
        ("seg_image_ct_binary_fractional", [638]),
        ("seg_image_ct_binary_overlap", [64, 16]),
        ("seg_image_ct_binary_single_frame", [1832]),
    ],
)
def test_highdicom_variants(shared_data, name, counts):
    labels = seg.read_labels(shared_data / "dicom" / "highdicom_seg" / f"{name}.dcm")
    assert [int(labels.mask(i).sum()) for i in labels.ids] == counts


@pytest.mark.shared
def test_slide_segmentations_agree_and_round_trip(tmp_path, shared_data):
    folder = shared_data / "dicom" / "highdicom_seg"
    slide = images.read(folder / "sm_image.dcm")
    planes = seg.read_labels(folder / "seg_image_sm_control.dcm", like=slide)
    labelmap = seg.read_labels(folder / "seg_image_sm_control_labelmap.dcm", like=slide)
    np.testing.assert_array_equal(planes.to_array(), labelmap.to_array())
    seg.write(tmp_path / "seg.dcm", planes, like=slide)
    assert_same(seg.read_labels(tmp_path / "seg.dcm", like=slide), planes)


def test_measures_without_a_thickness_do_not_keep_highdicom_from_reading(tmp_path: Path) -> None:
    """A secondary capture with a spacing: highdicom would write what it refuses to read."""
    source = tmp_path / "capture.dcm"
    ds = image_dataset(np.zeros((20, 30), np.uint8), sop_class="1.2.840.10008.5.1.4.1.1.7")
    del ds.FrameOfReferenceUID
    save(ds, source, PixelSpacing=[0.5, 0.5], Modality="OT")
    mask = np.zeros((20, 30), np.uint8)
    mask[3:9, 4:11] = 1
    limner.write(tmp_path / "seg.dcm", mask, like=source)
    found = highdicom.seg.segread(tmp_path / "seg.dcm")
    assert np.array_equal(np.squeeze(found.pixel_array), mask)
