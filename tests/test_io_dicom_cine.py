"""Segmentations of frames that share a place or have none, as highdicom reads them."""

from __future__ import annotations

from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

import limner
from dicom_makers import DX, MR, US_MULTIFRAME, image_dataset, save
from limner.errors import FormatError
from limner.io import check_writable

XA = "1.2.840.10008.5.1.4.1.1.12.1"
OCT = "1.2.840.10008.5.1.4.1.1.77.1.5.4"
SIZE = (6, 14, 18)
KINDS = ["us", "us colour", "us with regions", "xa", "mr folder", "oct", "dx", "photo", "one frame"]


def make(kind: str, folder: Path) -> Path:
    rng = np.random.default_rng(2)
    grey = rng.integers(0, 99, SIZE, dtype=np.uint8)
    colour = rng.integers(0, 99, (*SIZE, 3), dtype=np.uint8)
    path = folder / "a.dcm"
    if kind == "mr folder":
        shared = {k: generate_uid() for k in ("SeriesInstanceUID", "StudyInstanceUID")}
        shared["FrameOfReferenceUID"] = generate_uid()
        for k, frame in enumerate(grey):
            save(
                image_dataset(frame, sop_class=MR, modality="MR"),
                folder / f"{5 - k}.dcm",
                **shared,
                ImagePositionPatient=[1, 2, 3],
                ImageOrientationPatient=[0, 1, 0, 0, 0, -1],
                PixelSpacing=[0.5, 0.75],
                SliceThickness=6,
                TriggerTime=k * 30.0,
            )
        return folder
    if kind in ("dx", "photo"):
        pixels = grey[0] if kind == "dx" else colour[0]
        sop_class = DX if kind == "dx" else "1.2.840.10008.5.1.4.1.1.77.1.4"
        ds = image_dataset(pixels, sop_class=sop_class, modality="DX" if kind == "dx" else "XC")
        del ds.FrameOfReferenceUID
        return save(ds, path, ImagerPixelSpacing=[0.2, 0.2])
    if kind == "oct":
        return save(image_dataset(grey, sop_class=OCT, modality="OPT"), path)
    if kind == "xa":
        ds = image_dataset(grey, sop_class=XA, modality="XA")
        return save(ds, path, FrameTime=33.0, ImagerPixelSpacing=[0.2, 0.2])
    pixels = {"us colour": colour, "one frame": grey[:1]}.get(kind, grey)
    ds = image_dataset(pixels, sop_class=US_MULTIFRAME, modality="US")
    if kind != "us":
        del ds.FrameOfReferenceUID
    if kind == "us with regions":
        region = pydicom.Dataset()
        region.RegionSpatialFormat = 1
        region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
        region.PhysicalDeltaX, region.PhysicalDeltaY = 0.02, 0.03
        ds.SequenceOfUltrasoundRegions = [region]
    return save(ds, path, FrameTime=33.0)


@pytest.mark.parametrize("dicom_type", ["seg", "seg-labelmap"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_names_the_source_frame_it_belongs_to(tmp_path, kind, dicom_type):
    image = limner.read(make(kind, tmp_path / "image"))
    labels = np.zeros(image.geometry.shape, np.uint8)
    labels[..., 3:9, 4:8] = 1
    labels[..., 12, 12] = 2
    if labels.ndim == 3:
        labels[0], labels[2, 5], labels[4] = 0, 2, labels[4] * (labels[4] == 2)
    path = tmp_path / "seg.dcm"
    check_writable(path, image, dicom_type=dicom_type)
    limner.write(path, labels, like=image, dicom_type=dicom_type)
    for like in (image, None):
        if like is None and kind != "one frame":
            path = path.rename(tmp_path / "image" / "seg.dcm")
        found = limner.read_labels(path, like=like)
        np.testing.assert_array_equal(found.to_array(), labels)
    seg = highdicom.seg.segread(path)
    assert list(seg.segment_numbers) == [1, 2]
    sources = image.metadata["sources"]
    names = list(zip(sources["sop_instance_uids"], sources["frames"], strict=True))
    stack = labels.reshape(-1, *labels.shape[-2:])
    for plane, group in zip(
        seg.pixel_array.reshape(-1, *labels.shape[-2:]),
        seg.PerFrameFunctionalGroupsSequence,
        strict=True,
    ):
        (named,) = group.DerivationImageSequence[0].SourceImageSequence
        number = int(named.get("ReferencedFrameNumber") or 1) - 1
        expected = stack[names.index((named.ReferencedSOPInstanceUID, number))]
        if dicom_type == "seg":
            of = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
            expected = expected == of
        np.testing.assert_array_equal(plane, expected)


@pytest.mark.parametrize("kind", ["us", "mr folder", "dx", "oct"])
def test_contours_need_a_place_for_each_frame(tmp_path, kind):
    image = limner.read(make(kind, tmp_path / "image"))
    with pytest.raises(FormatError, match="DICOM Segmentation"):
        check_writable(tmp_path / "rt.dcm", image, dicom_type="rtstruct")
