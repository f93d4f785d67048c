"""DICOM files made for tests: single slices, series and enhanced multi-frame files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import format_number_as_ds

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
PET = "1.2.840.10008.5.1.4.1.1.128"
DX = "1.2.840.10008.5.1.4.1.1.1.1"
US_MULTIFRAME = "1.2.840.10008.5.1.4.1.1.3.1"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def image_dataset(pixels: np.ndarray, *, sop_class: str = CT, modality: str = "CT") -> FileDataset:
    """A data set around one frame ``(row, column[, 3])`` or several ``(frame, row, column[, 3])``.

    Colour where the last axis is 3 and the type is 8 bit.
    """
    is_colour = pixels.shape[-1] == 3 and pixels.dtype == np.uint8 and pixels.ndim > 2
    frames = pixels.shape[: pixels.ndim - (3 if is_colour else 2)]
    rows, columns = pixels.shape[len(frames) : len(frames) + 2]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(sop_class)
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    ds.PatientID, ds.PatientName, ds.PatientBirthDate, ds.PatientSex = "test", "Test^Case", "", ""
    ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
    ds.FrameOfReferenceUID = generate_uid()
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20200101", "120000", "1", ""
    ds.ReferringPhysicianName = ""
    ds.Modality, ds.SeriesNumber, ds.InstanceNumber = modality, 1, 1
    ds.Rows, ds.Columns = rows, columns
    ds.SamplesPerPixel = 3 if is_colour else 1
    ds.PhotometricInterpretation = "RGB" if is_colour else "MONOCHROME2"
    if is_colour:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = ds.BitsStored = pixels.dtype.itemsize * 8
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    if frames:
        ds.NumberOfFrames = frames[0]
    ds.PixelData = np.ascontiguousarray(pixels).tobytes()
    ds["PixelData"].VR = "OW" if ds.BitsAllocated > 8 else "OB"
    return ds


def save(ds: FileDataset, path: Path, **elements: Any) -> Path:
    """Set elements and write the file."""
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def compress(ds: FileDataset, syntax: str, frames: list[bytes]) -> None:
    """Replace the pixels by encoded frames."""
    ds.file_meta.TransferSyntaxUID = UID(syntax)
    ds.PixelData = encapsulate(frames)
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True


def save_series(
    folder: Path,
    volume: np.ndarray,
    *,
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
    orientation: tuple[float, ...] = AXIAL,
    spacing: tuple[float, float] = (1.0, 1.0),
    step: np.ndarray | float = 1.0,
    rng: np.random.Generator | None = None,
    sop_class: str = CT,
    modality: str = "CT",
    per_slice: Mapping[int, Mapping[str, Any]] | None = None,
    **elements: Any,
) -> list[Path]:
    """Write one file per slice of ``(slice, row, column)``, in shuffled names if `rng` is given.

    Args:
        folder: where to.
        volume: integers.
        origin: LPS mm of the first pixel.
        orientation: ImageOrientationPatient.
        spacing: (row, column) mm.
        step: mm along the normal, or the LPS vector from slice to slice.
        rng: shuffles file names and instance numbers.
        sop_class: SOP class UID.
        modality: DICOM's term.
        per_slice: elements of single slices.
        elements: elements of all slices.
    """
    axes = np.reshape(orientation, (2, 3))
    vector = np.cross(axes[0], axes[1]) * step if np.ndim(step) == 0 else np.asarray(step)
    names = np.arange(len(volume)) if rng is None else rng.permutation(len(volume))
    shared = {
        "SeriesInstanceUID": generate_uid(),
        "StudyInstanceUID": generate_uid(),
        "FrameOfReferenceUID": generate_uid(),
        "ImageOrientationPatient": [format_number_as_ds(float(v)) for v in orientation],
        "PixelSpacing": list(spacing),
        **elements,
    }
    paths = []
    for k, plane in enumerate(volume):
        ds = image_dataset(plane, sop_class=sop_class, modality=modality)
        position = np.asarray(origin) + k * vector
        own = {
            "ImagePositionPatient": [format_number_as_ds(float(v)) for v in position],
            "InstanceNumber": int(names[k]) + 1,
            **(per_slice or {}).get(k, {}),
        }
        path = folder / f"{names[k]:04d}.dcm"
        paths.append(save(ds, path, **shared | own))
    return paths


def enhanced_dataset(
    frames: np.ndarray,
    positions: list[tuple[float, float, float]],
    *,
    spacing: tuple[float, float] = (1.0, 1.0),
    thickness: float = 1.0,
    temporal: list[int] | None = None,
) -> FileDataset:
    """An enhanced CT with one functional group per frame, in the order given."""
    ds = image_dataset(frames, sop_class=ENHANCED_CT)
    measures = Dataset()
    measures.PixelSpacing, measures.SliceThickness = list(spacing), thickness
    plane = Dataset()
    plane.ImageOrientationPatient = list(AXIAL)
    transform = Dataset()
    transform.RescaleSlope, transform.RescaleIntercept, transform.RescaleType = 1, -1000, "HU"
    shared = Dataset()
    shared.PixelMeasuresSequence = [measures]
    shared.PlaneOrientationSequence = [plane]
    shared.PixelValueTransformationSequence = [transform]
    ds.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for k, position in enumerate(positions):
        place = Dataset()
        place.ImagePositionPatient = list(position)
        content = Dataset()
        if temporal is not None:
            content.TemporalPositionIndex = temporal[k]
        group = Dataset()
        group.PlanePositionSequence = [place]
        group.FrameContentSequence = [content]
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence = groups
    return ds
