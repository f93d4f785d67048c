"""Segmentations of frames without a place of their own: cine, multi-frame ultrasound, OCT without
positions. Each frame of the segmentation names the source frame it belongs to.

highdicom tells frames apart by their positions. The sources are given made-up ones, one millimetre
apart, which are taken out of the finished object again (PS3.3 C.8.20.2: a segmentation without a
frame of reference refers to its source images frame by frame).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from limner.io.dicom._frames import as_number
from limner.io.image import Image

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_POSITION = 0x00200032
_AXIAL = (1, 0, 0, 0, 1, 0)
_FRAME_CONTENT = 0x00209111
_TEMPORAL_INDEX = 0x00209128
_IN_STACK_NUMBER = 0x00209057


def need_references(like: Image, sources: list[Dataset]) -> bool:
    """Whether the frames of an image share a place or have none."""
    if like.kind == "video":
        return True
    return like.geometry.ndim == 3 and not like.metadata.get("patient_space", True)


def give_places(sources: list[Dataset], like: Image) -> list[Dataset]:
    """Sources with made-up positions, to be handed to highdicom.

    Args:
        sources: of the image: one multi-frame data set or one per frame, in order; not changed.
        like: the image.
    """
    from pydicom.uid import generate_uid

    spacing = like.spacing[-2:] if like.geometry.has_spacing else (1.0, 1.0)
    frame_uid = generate_uid()
    placed = []
    for number, source in enumerate(sources):
        copy = _without_groups(source)
        copy.FrameOfReferenceUID = frame_uid
        thickness = as_number(str(source.get("SliceThickness") or "")) or 1.0
        if len(sources) == 1:
            frames = like.metadata["sources"]["frames"]
            made_up = {frame: (0, 0, -index) for index, frame in enumerate(frames)}
            give_groups(copy, made_up, _AXIAL, spacing, thickness)
        else:
            copy.ImagePositionPatient = [0, 0, -number]
            copy.ImageOrientationPatient = list(_AXIAL)
            copy.PixelSpacing = [f"{s:.10g}" for s in spacing]
            copy.SliceThickness = thickness
        placed.append(copy)
    return placed


def take_places(dataset: Dataset, like: Image) -> None:
    """Take the made-up positions out of a segmentation and index its frames by what they name."""
    for keyword in ("FrameOfReferenceUID", "PositionReferenceIndicator"):
        if keyword in dataset:
            delattr(dataset, keyword)
    if dataset.get("DimensionOrganizationType") == "3D":
        del dataset.DimensionOrganizationType
    shared = dataset.SharedFunctionalGroupsSequence[0]
    positions = [
        1 - round(float(g.PlanePositionSequence[0].ImagePositionPatient[2]))
        for g in dataset.PerFrameFunctionalGroupsSequence
    ]
    groups = [shared, *dataset.PerFrameFunctionalGroupsSequence]
    unwanted = ["PlanePositionSequence", "PlaneOrientationSequence"]
    if not like.geometry.has_spacing:
        unwanted.append("PixelMeasuresSequence")
    for group in groups:
        for keyword in unwanted:
            if keyword in group:
                delattr(group, keyword)
        for measures in group.get("PixelMeasuresSequence") or ():
            if "SpacingBetweenSlices" in measures:  # highdicom wants a thickness
                del measures.SpacingBetweenSlices
    _index_by_frame(dataset, is_video=like.kind == "video", positions=positions)


def _index_by_frame(dataset: Dataset, *, is_video: bool, positions: list[int]) -> None:
    """Frames in order of time, or of their number in a stack, where no position orders them."""
    for index in dataset.get("DimensionIndexSequence") or ():
        if index.DimensionIndexPointer == _POSITION:
            index.DimensionIndexPointer = _TEMPORAL_INDEX if is_video else _IN_STACK_NUMBER
            index.FunctionalGroupPointer = _FRAME_CONTENT
            index.DimensionDescriptionLabel = "Frame"
    for group, position in zip(dataset.PerFrameFunctionalGroupsSequence, positions, strict=True):
        content = group.FrameContentSequence[0]
        if is_video:
            content.TemporalPositionIndex = position
        else:
            content.StackID, content.InStackPositionNumber = "1", position


def _without_groups(source: Dataset) -> Dataset:
    from pydicom.dataset import Dataset

    copy = Dataset()
    copy.update(
        {
            element.tag: element
            for element in source
            if not element.keyword.endswith("FunctionalGroupsSequence")
            and element.keyword not in ("PixelData", "FrameOfReferenceUID")
        }
    )
    return copy


def give_groups(
    dataset: Dataset,
    positions: Mapping[int, ArrayLike],
    axes: Sequence[float],
    spacing: Sequence[float],
    thickness: float,
) -> None:
    """Functional groups for a multi-frame data set that has none, as highdicom needs them.

    Args:
        dataset: is given `SharedFunctionalGroupsSequence` and `PerFrameFunctionalGroupsSequence`.
        positions: LPS millimetres of the first pixel, by frame from 0; the others are put beyond.
        axes: ImageOrientationPatient.
        spacing: (row, column) in mm.
        thickness: of the slices in mm.
    """
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence as Items
    from pydicom.valuerep import format_number_as_ds

    def item(**values: Any) -> Dataset:
        made = Dataset()
        for keyword, value in values.items():
            setattr(made, keyword, value)
        return made

    def numbers(values: ArrayLike) -> list[str]:
        return [format_number_as_ds(float(v)) for v in np.asarray(values).ravel()]

    measures = item(PixelSpacing=numbers(spacing), SliceThickness=numbers(thickness)[0])
    orientation = item(ImageOrientationPatient=numbers(axes))
    dataset.SharedFunctionalGroupsSequence = Items(
        [
            item(
                PixelMeasuresSequence=Items([measures]),
                PlaneOrientationSequence=Items([orientation]),
            )
        ]
    )
    count = max(int(dataset.get("NumberOfFrames") or 1), max(positions) + 1)
    normal = np.cross(axes[:3], axes[3:])
    beyond = np.max([np.abs(p) for p in positions.values()]) + thickness
    places = [positions.get(k, -normal * (beyond + k * thickness)) for k in range(count)]
    dataset.PerFrameFunctionalGroupsSequence = Items(
        [
            item(PlanePositionSequence=Items([item(ImagePositionPatient=numbers(place))]))
            for place in places
        ]
    )
