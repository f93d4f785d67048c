"""DICOM Segmentation objects: BINARY, FRACTIONAL and LABELMAP, read by position and written on the
images they segment.

Frames are placed by their position in space, because writers leave out empty ones. A FRACTIONAL
segment holds a pixel where its value is at least half of the maximum. Read without highdicom, which
refuses many real files; written with it.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from limner.atomic import atomic_path
from limner.errors import FormatError, LimnerError
from limner.geometry import Geometry
from limner.io._errors import muted
from limner.io.dicom import _sources, _tiles
from limner.io.dicom._codes import name_of
from limner.io.dicom._files import SEG_CLASSES, Header, read_header, reading, sop_class_of
from limner.io.dicom._frames import Frame, frames_of
from limner.io.dicom._labels import SliceMasks, as_volume, move_labels, one_pixel
from limner.io.dicom._pixels import FrameReader
from limner.io.dicom._placement import FramePlacement, place_frame
from limner.io.dicom._series import positions_along_normal
from limner.io.dicom._sources import (
    check_frame_of_reference,
    check_same_grid,
    source_datasets,
)
from limner.io.dicom.images import find_series
from limner.io.image import Image
from limner.io.labels import Labels
from limner.io.limits import check_allocation

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

logger = logging.getLogger(__name__)
Array = NDArray[Any]

NAME = "dicom-seg"
TRACKING_PREFIX = "limner object "  # of segments we wrote; followed by the object id

WRITE_TYPES = ("seg", "seg-labelmap")
_FRACTION = 0.5  # of the maximum, from which a fractional pixel counts as inside
_OFF_GRID = 0.1  # of a step: a plane further off than this is not on an even grid


def sniff(path: Path, head: bytes) -> bool:
    """Whether `path` is a DICOM Segmentation file, by its SOP class."""
    return sop_class_of(path, head) in SEG_CLASSES


def read(path: Path, *, channel: int | None = None, **_: Any) -> Image:
    """A segmentation is no image.

    Raises:
        FormatError: always.
    """
    raise FormatError(f"{path} is a DICOM Segmentation, not an image: read it with read_labels.")


def read_labels(path: Path | str, *, like: Image | None = None, any_frame: bool = False) -> Labels:
    """Read all segments.

    Args:
        path: the file.
        like: the image that was segmented; its grid is the result's. Default: the series that the
            file refers to, looked for in the same folder. Without one the result covers the planes
            that the file has, and the empty ones between them, and a warning is logged.
        any_frame: take a file of another frame of reference than `like` as if it were the same.

    Returns:
        Labels with the segment numbers as ids (for a file that limner wrote: the ids it was given)
        and the segment labels as names. Overlaps are kept.

    Raises:
        FormatError: no segmentation, a damaged one, one that says too little about its place, or
            one in another frame of reference than `like`.
    """
    path = Path(path)
    with reading(path):
        header = read_header(path)
        if header.sop_class not in SEG_CLASSES:
            raise FormatError(f"{path} is no DICOM Segmentation but: {header.object_name}.")
        names, ids = _segments(header)
        if _tiles.is_tiled(header):
            labels = _read_tiled(header, names, ids)
            if like is not None and like.geometry.shape == labels.geometry.shape:
                # One total pixel matrix, though writers place its corner half a pixel apart.
                masks = {i: labels.mask(i) for i in labels.ids}
                return Labels(like.geometry, masks=masks, names=labels.names)
            return labels if like is None else _fit(labels, like, path)
        frames = frames_of(header)
        if like is not None:
            stated = {header.text("FrameOfReferenceUID")}
            named = _referenced_uids(header, frames)
            check_frame_of_reference(path, stated, named, like, any_frame=any_frame)
        image = _image_beside(header, frames) if like is None else like
        if image is not None:
            on_image = _read_onto(header, frames, image, names, ids)
            if on_image is not None:
                return on_image
        own = _read_alone(header, frames, names, ids)
        if like is not None:
            return _fit(own, like, path)
        logger.warning(
            "%s: only the slices that it holds are there; like= (--like) with the image it belongs "
            "to puts it on the image's grid.",
            path,
        )
        return own


def write(
    path: Path | str, labels: Labels, *, like: Image | None = None, dicom_type: str = "seg"
) -> None:
    """Write labels as a Segmentation of the DICOM image `like`, atomically.

    Names become SNOMED CT codes where they are known (`limner.io.dicom._codes`) and stay as labels.

    Args:
        path: the file.
        labels: on the grid of `like`.
        like: the image, read from DICOM files that are still in place.
        dicom_type: ``"seg"`` (BINARY, overlaps kept, which every viewer reads) or
            ``"seg-labelmap"`` (LABELMAP, smaller, no overlaps, for newer viewers).

    Raises:
        FormatError: `like` is not DICOM or does not fit, or there is nothing to write.
    """
    path = Path(path)
    if dicom_type not in WRITE_TYPES:
        raise FormatError(f"DICOM type {dicom_type!r} is unknown; use {' or '.join(WRITE_TYPES)}.")
    with reading(path, "cannot be written as a DICOM Segmentation"):
        dataset = _build(path, labels, like, dicom_type)
        with atomic_path(path) as temporary:
            dataset.save_as(temporary)


def check_writable(path: Path, like: Image, *, dicom_type: str = "seg") -> None:
    """Build the Segmentation of one pixel and throw it away.

    Raises:
        FormatError: as for `write`.
    """
    with reading(path, "cannot be written as a DICOM Segmentation"), muted(_sources.__name__):
        dataset = _build(path, one_pixel(like), like, dicom_type)
        dataset.save_as(io.BytesIO())


def _build(path: Path, labels: Labels, like: Image | None, dicom_type: str) -> Dataset:
    from limner.io.dicom._seg_writer import build

    sources = source_datasets(like, purpose="a DICOM Segmentation")
    assert like is not None
    check_same_grid(labels.geometry.shape, like, path)
    labelmap = dicom_type == "seg-labelmap"
    with muted("highdicom.image"), muted("highdicom.base"):
        return build(path, labels, like, sources, tracking=TRACKING_PREFIX, labelmap=labelmap)


def _segments(header: Header) -> tuple[dict[int, str], dict[int, int]]:
    """Names by object id, and the object id of each segment number."""
    names: dict[int, str] = {}
    ids: dict[int, int] = {}
    for item in header.dataset.get("SegmentSequence") or ():
        number = int(item.SegmentNumber)
        tracked = re.fullmatch(rf"{TRACKING_PREFIX}(\d+)", str(item.get("TrackingID") or ""))
        ids[number] = int(tracked.group(1)) if tracked else number
        label = str(item.get("SegmentLabel") or "").strip()
        description = str(item.get("SegmentDescription") or "")
        names[ids[number]] = (
            name_of(label, description) or description.strip() or f"segment {number}"
        )
    if len(set(ids.values())) < len(ids):
        ids = {number: number for number in ids}
    names.pop(0, None)
    return names, ids


def _masks(
    header: Header,
    frames: list[Frame],
    ids: dict[int, int],
    implied: list[int] | None = None,
) -> Iterator[tuple[int, int, Array]]:
    """(frame number, object id, boolean mask) of every segment on every frame; `implied` are the
    frames' segment numbers where their order says them.
    """
    reader = FrameReader(header, frames[0].format)
    kind = header.text("SegmentationType").upper() or "BINARY"
    limit = float(header.dataset.get("MaximumFractionalValue") or 255) * _FRACTION
    for k, frame in enumerate(frames):
        values = reader.frame(frame.index)[0][..., 0]
        if kind == "LABELMAP":
            for number in np.unique(values[values > 0]):
                yield k, ids.get(int(number), int(number)), values == number
            continue
        number = _segment_number(frame, len(ids)) if implied is None else implied[k]
        mask = values >= limit if kind == "FRACTIONAL" else values != 0
        yield k, ids.get(number, number), mask


def _segment_number(frame: Frame, num_segments: int) -> int:
    for source in frame.sources:
        sequence = source.get("SegmentIdentificationSequence")
        if sequence and sequence[0].get("ReferencedSegmentNumber"):
            number = sequence[0].ReferencedSegmentNumber
            return int(number[0] if hasattr(number, "__len__") else number)
    if num_segments > 1:
        raise FormatError(
            f"{frame.header.path}: frame {frame.index + 1} does not say which of the "
            f"{num_segments} segments it shows."
        )
    return 1


def _image_beside(header: Header, frames: list[Frame]) -> Image | None:
    """The series of the same folder that the segmentation refers to, None if it cannot be had."""
    try:
        return find_series(header.path.parent, _referenced_uids(header, frames))
    except LimnerError as error:  # it was not asked for, and the segmentation can do without
        logger.warning("%s: the image it refers to was not used: %s", header.path, error)
        return None


def _referenced_uids(header: Header, frames: list[Frame]) -> set[str]:
    """UIDs of the series and instances that a segmentation says it was made on."""
    uids = {_source_of(frame)[0] for frame in frames}
    for series in header.dataset.get("ReferencedSeriesSequence") or ():
        uids.add(str(series.get("SeriesInstanceUID") or ""))
        for item in series.get("ReferencedInstanceSequence") or ():
            uids.add(str(item.get("ReferencedSOPInstanceUID") or ""))
    return uids - {""}


def _read_onto(
    header: Header,
    frames: list[Frame],
    like: Image,
    names: dict[int, str],
    ids: dict[int, int],
) -> Labels | None:
    """Labels on like's grid if the pixels of every frame are pixels of one of its slices or lie
    beside them, else None.
    """
    grid = as_volume(like.geometry)
    places = [_place_on(frame, like, grid) for frame in frames]
    if any(place is None or place.index is None for place in places):
        return None
    return _put_frames(header, frames, places, like.geometry, names, ids)


def _put_frames(
    header: Header,
    frames: list[Frame],
    places: Sequence[FramePlacement | None],
    geometry: Geometry,
    names: dict[int, str],
    ids: dict[int, int],
) -> Labels:
    """Labels of frames that are all in place."""
    grid = as_volume(geometry)
    shape = (grid.shape[1], grid.shape[2])
    slices = SliceMasks(grid.shape, header.path)
    lost = 0
    for k, object_id, mask in _masks(header, frames, ids):
        place = places[k]
        assert place is not None
        assert place.index is not None
        if 0 <= place.index < grid.shape[0]:
            put = place.put_on(mask, shape)
            slices.add(object_id, place.index, put)
            lost += int(mask.sum()) - int(put.sum())
        else:
            lost += int(mask.sum())
    if lost:
        logger.warning("%s: %d voxels lie outside the image and are lost.", header.path, lost)
    return slices.to_labels(geometry, names)


def _place_on(frame: Frame, like: Image, grid: Geometry) -> FramePlacement | None:
    """Where a frame lies on `like`: by its own position and orientation; by the instance it names
    only where it states no place, or where the slices are not where an even grid has them.
    """
    shape = (frame.format.rows, frame.format.columns)
    stated = frame.place() if like.kind != "video" else None
    found = None
    if stated is not None and like.metadata.get("patient_space", True):
        found = place_frame(grid, *stated, shape)
        uneven = not like.metadata.get("evenly_spaced", True)
        if found is None or (found.index is not None and not uneven):
            return found
    index = _named_slice(frame, like)
    if index is None and grid.shape[0] == 1 and frame.position is None:
        index = 0
    if index is None:
        return found
    if found is not None:
        return FramePlacement(float(index), found.turn, found.origin)
    fits = shape == tuple(grid.shape[1:])
    return FramePlacement(float(index), np.eye(2, dtype=np.int64), (0, 0)) if fits else None


def _named_slice(frame: Frame, like: Image) -> int | None:
    """The slice or frame of `like` that a segmentation frame says it was derived from."""
    uid, number = _source_of(frame)
    sources = like.metadata.get("sources", {"sop_instance_uids": (), "frames": ()})
    instances = zip(sources["sop_instance_uids"], sources["frames"], strict=True)
    for k, (known, frame_index) in enumerate(instances):
        if known == uid and (number is None or number - 1 == frame_index):
            return k
    return None


def _source_of(frame: Frame) -> tuple[str, int | None]:
    """SOPInstanceUID and frame number (from 1) of the image a frame was derived from."""
    for source in frame.sources:
        derivation = source.get("DerivationImageSequence")
        images = derivation[0].get("SourceImageSequence") if derivation else None
        if images:
            number = images[0].get("ReferencedFrameNumber")
            if number is not None and hasattr(number, "__len__"):
                number = number[0]
            uid = str(images[0].get("ReferencedSOPInstanceUID") or "")
            return uid, None if number is None else int(number)
    return "", None


def _read_alone(
    header: Header, frames: list[Frame], names: dict[int, str], ids: dict[int, int]
) -> Labels:
    """Labels on the grid that the frames themselves span."""
    geometry, indices = _own_grid(header, frames)
    volume = as_volume(geometry)
    check_allocation(volume.shape, 1, header.path)
    places = []
    for frame, index in zip(frames, indices, strict=True):
        place, shape = frame.place(), (frame.format.rows, frame.format.columns)
        found: FramePlacement | None = FramePlacement(float(index), np.eye(2, dtype=int), (0, 0))
        if place is not None:
            found = place_frame(volume, *place, shape)
        if found is None or found.index is None:
            raise FormatError(
                f"{header.path}: frame {frame.index + 1} lies on no slice of the grid of the first "
                "frame; pass the image it belongs to as like= (--like)."
            )
        places.append(found)
    return _put_frames(header, frames, places, geometry, names, ids)


def _own_grid(header: Header, frames: list[Frame]) -> tuple[Geometry, list[int]]:
    """The grid of the frames, empty planes between them filled in, and each frame's slice."""
    first = frames[0]
    size = (first.format.rows, first.format.columns)
    places = [p for f in frames if (p := f.place()) is not None]
    if len(places) < len(frames):
        if len({_source_of(f) for f in frames}) > 1:
            raise FormatError(
                f"{header.path}: its frames state no position; pass the image it belongs to "
                "as like= (--like)."
            )
        return Geometry.from_spacing(size, first.spacing), [0] * len(frames)
    where = positions_along_normal(frames)
    low, high = places[int(where.argmin())][0], places[int(where.argmax())][0]
    _, axes, spacing = places[0]
    affine = np.eye(4)
    affine[:3, 2], affine[:3, 1] = axes[0] * spacing[1], axes[1] * spacing[0]
    affine[:3, 0] = np.cross(axes[0], axes[1]) * (first.thickness or 1.0)
    affine[:3, 3] = low
    unique = np.unique(np.round(where, 4))
    if len(unique) == 1:
        return Geometry(size, affine), [0] * len(frames)
    step = _slice_step(header, unique, first.thickness)
    indices = [round(float(w - unique[0]) / step) for w in where]
    affine[:3, 0] = (high - low) / max(indices)
    return Geometry((max(indices) + 1, *size), affine), indices


def _slice_step(header: Header, unique: Array, stated: float | None) -> float:
    """Millimetres between planes of an even grid that holds all of `unique` (sorted)."""
    offsets = unique - unique[0]
    for step in (float(np.diff(unique).min()), stated):
        if step and step > 0:
            ratio = offsets / step
            if np.abs(ratio - np.rint(ratio)).max() < _OFF_GRID:
                return float(offsets[-1] / np.rint(ratio[-1]))
    raise FormatError(
        f"{header.path}: its {len(unique)} planes are not evenly spaced; pass the image it belongs "
        "to as like= (--like)."
    )


def _read_tiled(header: Header, names: dict[int, str], ids: dict[int, int]) -> Labels:
    """Labels of a whole slide image, tiles put together."""
    frames = frames_of(header)
    geometry = _tiles.slide_geometry(header)
    check_allocation(geometry.shape, 8, header.path)
    tile = (frames[0].format.rows, frames[0].format.columns)
    num_layers = 1
    if header.text("SegmentationType") != "LABELMAP" and "PerFrameFunctionalGroupsSequence" not in (
        header.dataset
    ):
        num_layers = max(len(ids), 1)
    corners = _tiles.tile_corners(header, tile, len(frames) // num_layers) * num_layers
    implied = None  # TILED_FULL (PS3.3 C.7.6.17.3): all tiles of a segment, then of the next
    if num_layers > 1:
        per_layer = len(frames) // num_layers
        implied = [number for number in ids for _ in range(per_layer)]
    masks: dict[int, Array] = {}
    for k, object_id, mask in _masks(header, frames, ids, implied):
        target = masks.setdefault(object_id, np.zeros(geometry.shape, dtype=bool))
        row, column = corners[k]
        held = target[row : row + tile[0], column : column + tile[1]]
        held |= mask[: held.shape[0], : held.shape[1]]
    return Labels(geometry, masks=masks, names=names)


def _fit(labels: Labels, like: Image, path: Path) -> Labels:
    """Labels moved onto the grid of `like`."""
    if labels.geometry.is_close(like.geometry):
        return labels
    if labels.geometry.shape == like.geometry.shape and not (
        labels.geometry.has_spacing and like.geometry.has_spacing
    ):
        masks = {i: labels.mask(i) for i in labels.ids}
        return Labels(like.geometry, masks=masks, names=labels.names)
    if like.kind == "video":
        raise FormatError(f"{path}: its frames are not those of the video {like.path}.")
    source, target = as_volume(labels.geometry), as_volume(like.geometry)
    lifted = Labels(
        source,
        masks={i: labels.mask(i).reshape(source.shape) for i in labels.ids},
        names=labels.names,
    )
    moved = move_labels(lifted, target)
    masks = {i: moved.mask(i).reshape(like.geometry.shape) for i in moved.ids}
    return Labels(like.geometry, masks=masks, names=labels.names)
