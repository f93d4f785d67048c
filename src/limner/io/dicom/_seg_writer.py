"""A DICOM Segmentation built with highdicom from labels and the DICOM files they lie on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from limner.errors import FormatError
from limner.io.dicom import _frame_references, _tiles
from limner.io.dicom._codes import coded_name, description_of, display_colour, label_of
from limner.io.dicom._labels import as_volume
from limner.io.dicom._sources import MANUFACTURER, model_name, software_version
from limner.io.image import Image
from limner.io.labels import Labels
from limner.io.limits import check_allocation

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Array = NDArray[Any]

_SERIES_NUMBER = 300


def build(
    path: Path,
    labels: Labels,
    like: Image,
    sources: list[Dataset],
    *,
    tracking: str,
    labelmap: bool,
) -> Dataset:
    """The segmentation as a data set.

    Args:
        path: where it will be written, for messages.
        labels: on the grid of `like`.
        like: the image.
        sources: data sets of its files, in slice order.
        tracking: prefix of the tracking ids, which carry the object ids.
        labelmap: one label map instead of one bit plane per object.
    """
    import highdicom as hd

    if not labels.ids:
        raise FormatError(f"{path}: there is no object to write.")
    ids = tuple(sorted(labels.ids + labels.empty_ids))
    # A label map may have gaps in its numbers, bit planes may not (PS3.3 C.8.20.2).
    numbers = {i: i if labelmap else k for k, i in enumerate(ids, start=1)}
    pixels = _segment_pixels(path, labels, numbers, labelmap)
    if like.geometry.ndim == 2:
        pixels = pixels[None]
    is_tiled = _tiles.TOTAL_COLUMNS in sources[0]
    by_reference = not is_tiled and _frame_references.need_references(like, sources)
    if by_reference:
        sources = _frame_references.give_places(sources, like)
    frames = list(like.metadata["sources"]["frames"])
    is_multiframe = len(sources) == 1 and not is_tiled and "NumberOfFrames" in sources[0]
    if is_multiframe and not by_reference:
        _state_positions(sources[0], like)
    if is_multiframe:
        _only_frames(sources[0], frames)
        _share_measures(sources[0])
    kind = hd.seg.SegmentationTypeValues
    dataset = hd.seg.Segmentation(
        source_images=sources,
        pixel_array=pixels,
        segmentation_type=kind.LABELMAP if labelmap else kind.BINARY,
        segment_descriptions=[_description(labels, i, numbers[i], tracking) for i in ids],
        omit_empty_frames=True,
        tile_pixel_array=is_tiled,
        **_identity(),
    )
    if is_multiframe:
        _restore_frame_numbers(dataset, frames)
    if by_reference:
        _frame_references.take_places(dataset, like)
    _drop_partial_measures(dataset)
    return dataset


def _drop_partial_measures(dataset: Dataset) -> None:
    """Take out measures without a thickness: readers (highdicom's own) refuse the whole file."""
    groups = [*dataset.SharedFunctionalGroupsSequence, *dataset.PerFrameFunctionalGroupsSequence]
    for group in groups:
        measures = group.get("PixelMeasuresSequence")
        if measures and "SliceThickness" not in measures[0]:
            del group.PixelMeasuresSequence


def _identity() -> dict[str, Any]:
    """What the new object says of itself."""
    from pydicom.uid import generate_uid

    return {
        "series_instance_uid": generate_uid(),
        "series_number": _SERIES_NUMBER,
        "sop_instance_uid": generate_uid(),
        "instance_number": 1,
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": MANUFACTURER,
        "software_versions": software_version(),
        "device_serial_number": "0",
        "content_label": "SEGMENTATION",
        "content_description": "Made with limner; research use only",
        "series_description": "limner segmentation",
        "specific_character_set": "ISO_IR 192",  # UTF-8: names may be in any script
    }


def _description(labels: Labels, object_id: int, number: int, tracking: str) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    name = labels.name(object_id)
    coded = coded_name(name)
    model = model_name(labels.manifest)
    algorithm = hd.AlgorithmIdentificationSequence(
        name=MANUFACTURER,
        family=codes.DCM.ArtificialIntelligence,
        version=software_version(),
        source=MANUFACTURER,
        parameters={"model": model} if model else None,
    )
    item = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=label_of(name) or f"object {object_id}",
        segmented_property_category=coded.category,
        segmented_property_type=coded.type,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.SEMIAUTOMATIC,
        algorithm_identification=algorithm,
        tracking_uid=generate_uid(),
        tracking_id=f"{tracking}{object_id}",
        display_color=hd.color.CIELabColor.from_rgb(*display_colour(object_id)),
    )
    description = description_of(name)
    if description is not None:
        item.SegmentDescription = description
    if coded.side is not None:
        side = hd.sr.CodedConcept(
            coded.side.value, coded.side.scheme_designator, coded.side.meaning
        )
        kind = item.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [side]
    return item


def _segment_pixels(path: Path, labels: Labels, numbers: dict[int, int], labelmap: bool) -> Array:
    """Label map of segment numbers, or where objects overlap one plane stack per object, last."""
    shape = labels.geometry.shape
    overlapping = labels.num_overlapping()
    if overlapping and labelmap:
        raise FormatError(
            f"{path}: {overlapping} pixels belong to several objects, which a LABELMAP cannot "
            "hold; write the default type (BINARY)."
        )
    if overlapping:
        check_allocation((*shape, len(numbers)), 1, path)
        return np.stack([labels.mask(i).astype(np.uint8) for i in numbers], axis=-1)
    top = max(numbers.values())
    if top > np.iinfo(np.uint16).max:
        raise FormatError(f"{path}: a DICOM Segmentation numbers up to 65535 objects, not {top}.")
    array = labels.to_array()
    table = np.zeros(max(numbers) + 1, dtype=np.uint8 if top < 256 else np.uint16)
    for object_id, number in numbers.items():
        table[object_id] = number
    return np.asarray(table[np.asarray(array)])


def _state_positions(source: Dataset, like: Image) -> None:
    """Groups of a multi-frame file whose positions are implied: doses, nuclear medicine, old CT."""
    if source.get("PerFrameFunctionalGroupsSequence"):
        return
    affine, frames = as_volume(like.geometry).affine, like.metadata["sources"]["frames"]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    axes = affine[:3, :3] / spacing
    positions = {frame: affine[:3, 3] + k * affine[:3, 0] for k, frame in enumerate(frames)}
    orientation = [*axes[:, 2], *axes[:, 1]]
    _frame_references.give_groups(source, positions, orientation, spacing[1:].tolist(), spacing[0])


def _only_frames(source: Dataset, frames: list[int]) -> None:
    """Cut a multi-frame source down to the frames of the image, in slice order.

    highdicom wants one position per frame, and the other time points or echoes of the file would
    double them; `_restore_frame_numbers` undoes the renumbering in what it wrote.
    """
    groups = source.get("PerFrameFunctionalGroupsSequence")
    if groups:
        source.PerFrameFunctionalGroupsSequence = [groups[k] for k in frames]
        source.NumberOfFrames = len(frames)


def _share_measures(source: Dataset) -> None:
    """Put functional groups that are the same for all frames where highdicom looks for them."""
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    if not source.get("PerFrameFunctionalGroupsSequence"):
        return
    if not source.get("SharedFunctionalGroupsSequence"):
        source.SharedFunctionalGroupsSequence = Sequence([Dataset()])
    shared = source.SharedFunctionalGroupsSequence[0]
    first = source.PerFrameFunctionalGroupsSequence[0]
    for keyword in ("PixelMeasuresSequence", "PlaneOrientationSequence"):
        if not shared.get(keyword) and first.get(keyword):
            setattr(shared, keyword, first[keyword].value)


def _restore_frame_numbers(dataset: Dataset, frames: list[int]) -> None:
    """Number the source frames as in the file. highdicom lets the frames of several segments share
    one item, which must be renumbered once.
    """
    images = {
        id(image): image
        for group in dataset.PerFrameFunctionalGroupsSequence
        for derivation in group.get("DerivationImageSequence") or ()
        for image in derivation.get("SourceImageSequence") or ()
        if "ReferencedFrameNumber" in image
    }
    for image in images.values():
        image.ReferencedFrameNumber = frames[int(image.ReferencedFrameNumber) - 1] + 1
