"""An RT Structure Set built from labels (PS3.3 A.19)."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from limner.io.dicom import _contours
from limner.io.dicom._codes import description_of, display_colour, label_of
from limner.io.dicom._files import EXPLICIT_LITTLE, RTSTRUCT_CLASS
from limner.io.dicom._labels import as_volume
from limner.io.dicom._sources import MANUFACTURER, model_name, software_version
from limner.io.image import Image
from limner.io.labels import Labels

if TYPE_CHECKING:
    from pydicom.dataset import Dataset, FileDataset

Array = NDArray[Any]

_SERIES_NUMBER = 301
_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"  # detached study management, as RT objects refer to it
_PATIENT_AND_STUDY = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)


def build(labels: Labels, like: Image, sources: list[Dataset]) -> FileDataset:
    """The structure set as a data set.

    Args:
        labels: on the grid of `like`.
        like: the image.
        sources: data sets of its files.
    """
    dataset = _new_dataset(sources[0])
    frame_uid = str(sources[0].FrameOfReferenceUID)
    dataset.StructureSetLabel = "limner"
    dataset.StructureSetName = "limner segmentation"
    dataset.StructureSetDescription = "Made with limner; research use only"
    dataset.StructureSetDate, dataset.StructureSetTime = dataset.SeriesDate, dataset.SeriesTime
    classes = {str(s.SOPInstanceUID): str(s.SOPClassUID) for s in sources}
    dataset.ReferencedFrameOfReferenceSequence = [_reference(sources, frame_uid)]
    ids = tuple(sorted(labels.ids + labels.empty_ids))
    model = model_name(labels.manifest)
    dataset.StructureSetROISequence = [_roi(labels, i, frame_uid, model) for i in ids]
    dataset.ROIContourSequence = [_roi_contours(labels, i, like, classes) for i in ids]
    dataset.RTROIObservationsSequence = [_observation(k, i) for k, i in enumerate(ids, start=1)]
    dataset.ApprovalStatus = "UNAPPROVED"
    return dataset


def _new_dataset(source: Dataset) -> FileDataset:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(RTSTRUCT_CLASS)
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = UID(EXPLICIT_LITTLE)
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    now = datetime.now()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.InstanceCreationDate = now.strftime("%Y%m%d")
    dataset.InstanceCreationTime = now.strftime("%H%M%S")
    dataset.SOPClassUID = RTSTRUCT_CLASS
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.Modality = "RTSTRUCT"
    for keyword in _PATIENT_AND_STUDY:
        setattr(dataset, keyword, source.get(keyword) or "")
    dataset.SeriesInstanceUID = generate_uid()
    dataset.SeriesNumber = _SERIES_NUMBER
    dataset.SeriesDescription = "limner structures"
    dataset.SeriesDate = dataset.InstanceCreationDate
    dataset.SeriesTime = dataset.InstanceCreationTime
    dataset.OperatorsName = ""
    dataset.InstanceNumber = 1
    dataset.Manufacturer = MANUFACTURER
    dataset.ManufacturerModelName = MANUFACTURER
    dataset.SoftwareVersions = software_version()
    dataset.FrameOfReferenceUID = source.FrameOfReferenceUID
    dataset.PositionReferenceIndicator = ""
    return dataset


def _reference(sources: list[Dataset], frame_uid: str) -> Dataset:
    """Which frame of reference, study, series and instances the contours were drawn on."""
    from pydicom.dataset import Dataset

    series = Dataset()
    series.SeriesInstanceUID = sources[0].SeriesInstanceUID
    series.ContourImageSequence = [
        _instance(str(s.SOPInstanceUID), str(s.SOPClassUID)) for s in sources
    ]
    study = Dataset()
    study.ReferencedSOPClassUID = _STUDY_CLASS
    study.ReferencedSOPInstanceUID = sources[0].StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame = Dataset()
    frame.FrameOfReferenceUID = frame_uid
    frame.RTReferencedStudySequence = [study]
    return frame


def _instance(uid: str, sop_class: str, frame: int | None = None) -> Dataset:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID = sop_class
    item.ReferencedSOPInstanceUID = uid
    if frame is not None:
        item.ReferencedFrameNumber = frame
    return item


def _roi(labels: Labels, object_id: int, frame_uid: str, model: str) -> Dataset:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ROINumber = object_id
    item.ReferencedFrameOfReferenceUID = frame_uid
    item.ROIName = label_of(labels.name(object_id)) or f"object {object_id}"
    description = description_of(labels.name(object_id))
    if description is not None:
        item.ROIDescription = description
    item.ROIGenerationAlgorithm = "SEMIAUTOMATIC"
    item.ROIGenerationDescription = label_of(f"limner {software_version()} {model}")
    return item


def _observation(number: int, object_id: int) -> Dataset:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ObservationNumber = number
    item.ReferencedROINumber = object_id
    item.RTROIInterpretedType = ""
    item.ROIInterpreter = ""
    return item


def _roi_contours(labels: Labels, object_id: int, like: Image, classes: dict[str, str]) -> Dataset:
    """All contours of one object, slice by slice."""
    from pydicom.dataset import Dataset

    grid = as_volume(like.geometry)
    mask = labels.mask(object_id).reshape(grid.shape)
    sources = like.metadata["sources"]
    uids, frames = sources["sop_instance_uids"], sources["frames"]
    is_multiframe = len(set(uids)) < len(uids) or max(frames) > 0
    contours: list[Dataset] = []
    for k in np.flatnonzero(mask.any(axis=(1, 2))):
        image = _instance(uids[k], classes[uids[k]], frames[k] + 1 if is_multiframe else None)
        for corners in _contours.outline(mask[k]):
            index = np.column_stack([np.full(len(corners), float(k)), corners])
            item = Dataset()
            item.ContourImageSequence = [image]
            item.ContourGeometricType = "CLOSED_PLANAR"
            item.NumberOfContourPoints = len(corners)
            item.ContourNumber = len(contours) + 1
            # Ten digits fit the 16 characters of a DS and are far below any pixel.
            world = grid.index_to_world(index).ravel()
            item.ContourData = [f"{value:.10g}" for value in world]
            contours.append(item)
    roi = Dataset()
    roi.ROIDisplayColor = list(display_colour(object_id))
    roi.ReferencedROINumber = object_id
    roi.ContourSequence = contours
    return roi
