"""DICOM RT Structure Sets: contours read onto the grid of their image and written from labels.

A pixel belongs to a structure if its centre lies inside its contours on that slice (even-odd, see
`limner.io.dicom._contours`). Only closed, flat contours parallel to the slices have an inside;
points, open lines and oblique contours are passed over and logged. Written contours run halfway
between pixel centres, holes joined by keyholes, and read back to exactly the same masks.
"""

from __future__ import annotations

import io
import logging
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from limner.atomic import atomic_path
from limner.errors import FormatError
from limner.geometry import Geometry
from limner.io._errors import muted
from limner.io.dicom import _contours, _sources
from limner.io.dicom._codes import name_of
from limner.io.dicom._files import RTSTRUCT_CLASS, Header, read_header, reading, sop_class_of
from limner.io.dicom._labels import SliceMasks, as_volume, one_pixel
from limner.io.dicom._sources import (
    check_frame_of_reference,
    check_same_grid,
    source_datasets,
)
from limner.io.dicom.images import find_series
from limner.io.image import Image
from limner.io.labels import Labels

if TYPE_CHECKING:
    from pydicom.dataset import Dataset, FileDataset

logger = logging.getLogger(__name__)
Array = NDArray[Any]

NAME = "dicom-rtstruct"

_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_TILTED = 0.5  # of a slice: how far a contour may leave its plane
_BETWEEN = 0.5 + 1e-6  # of a slice: how far from a slice's plane a contour still belongs to it
_SAME_DEPTH = 0.01  # of a slice
_MAX_POINTS = 50_000_000  # over all contours of a file


def sniff(path: Path, head: bytes) -> bool:
    """Whether `path` is an RT Structure Set, by its SOP class."""
    return sop_class_of(path, head) == RTSTRUCT_CLASS


def read(path: Path, *, channel: int | None = None, **_: Any) -> Image:
    """A structure set is no image.

    Raises:
        FormatError: always.
    """
    raise FormatError(f"{path} is an RT Structure Set, not an image: read it with read_labels.")


def read_labels(path: Path | str, *, like: Image | None = None, any_frame: bool = False) -> Labels:
    """Read all structures as masks.

    Args:
        path: the file.
        like: the image the contours were drawn on; default: the series that the file refers to,
            looked for in the same folder.
        any_frame: take a file of another frame of reference than `like` as if it were the same.

    Returns:
        Labels on the image's grid with the ROI numbers as ids and the ROI names as names. Overlaps
        are kept.

    Raises:
        FormatError: no structure set, a damaged one, its image is not found, or no contour lies on
            the image, or it lies in another frame of reference.
    """
    path = Path(path)
    with reading(path):
        header = read_header(path)
        if header.sop_class != RTSTRUCT_CLASS:
            raise FormatError(f"{path} is no RT Structure Set but: {header.object_name}.")
        image = like if like is not None else _referenced_image(header)
        if image.kind == "video":
            raise FormatError(f"{path}: contours need an image in patient space, not a video.")
        if like is not None:
            stated, named = _frames_of_reference(header.dataset), _referenced_uids(header.dataset)
            check_frame_of_reference(path, stated, named, image, any_frame=any_frame)
        names, ids = _structures(header)
        labels = _rasterise(header, image.geometry, names, ids)
        if labels.empty_ids:
            empty = ", ".join(labels.name(i) for i in labels.empty_ids)
            logger.warning("%s: without a pixel on this image: %s", path, empty)
        return labels


def _referenced_image(header: Header) -> Image:
    image = find_series(header.path.parent, _referenced_uids(header.dataset))
    if image is None:
        raise FormatError(
            f"{header.path}: the image series it was drawn on is not in {header.path.parent}; pass "
            "the image as like= (--like)."
        )
    return image


def _frames_of_reference(dataset: Dataset) -> set[str]:
    """UIDs of the coordinate systems that the contours are in."""
    structures = dataset.get("StructureSetROISequence") or ()
    uids = {str(s.get("ReferencedFrameOfReferenceUID") or "") for s in structures} - {""}
    if not uids:
        frames = dataset.get("ReferencedFrameOfReferenceSequence") or ()
        uids = {str(f.get("FrameOfReferenceUID") or "") for f in frames} - {""}
    return uids or {str(dataset.get("FrameOfReferenceUID") or "")}


def _referenced_uids(dataset: Dataset) -> set[str]:
    """UIDs of the series and instances that a structure set says it was drawn on."""
    uids: set[str] = set()
    for frame in dataset.get("ReferencedFrameOfReferenceSequence") or ():
        for study in frame.get("RTReferencedStudySequence") or ():
            for series in study.get("RTReferencedSeriesSequence") or ():
                uids.add(str(series.get("SeriesInstanceUID") or ""))
                uids |= _instance_uids(series)
    for roi in dataset.get("ROIContourSequence") or ():
        for contour in roi.get("ContourSequence") or ():
            uids |= _instance_uids(contour)
    return uids - {""}


def _instance_uids(item: Dataset) -> set[str]:
    images = item.get("ContourImageSequence") or ()
    return {str(image.get("ReferencedSOPInstanceUID") or "") for image in images}


def _structures(header: Header) -> tuple[dict[int, str], dict[int, int]]:
    """Names by object id, and the object id of each ROI number (ids start at 1)."""
    names: dict[int, str] = {}
    numbers = [int(r.ROINumber) for r in header.dataset.get("StructureSetROISequence") or ()]
    shift = 1 - min(numbers) if numbers and min(numbers) < 1 else 0
    ids = {number: number + shift for number in numbers}
    for item in header.dataset.get("StructureSetROISequence") or ():
        number = int(item.ROINumber)
        label = str(item.get("ROIName") or "").strip()
        name = name_of(label, str(item.get("ROIDescription") or ""))
        names[ids[number]] = name or f"structure {number}"
    return names, ids


def _rasterise(
    header: Header, geometry: Geometry, names: dict[int, str], ids: dict[int, int]
) -> Labels:
    grid = as_volume(geometry)
    rows, columns = grid.shape[1:]
    slices = SliceMasks(grid.shape, header.path)
    num_contours = num_points = 0
    for roi in header.dataset.get("ROIContourSequence") or ():
        number = int(roi.get("ReferencedROINumber") or 0)
        closed = list(_closed_contours(header, roi))
        num_contours += len(closed)
        num_points += sum(len(c) for c in closed)
        if num_points > _MAX_POINTS:
            raise FormatError(f"{header.path}: more than {_MAX_POINTS} contour points; refused.")
        name = names.get(ids.get(number, number), str(number))
        for index, contours in _by_slice(closed, grid, f"{header.path}: {name}").items():
            slices.add(ids.get(number, number), index, _contours.fill(contours, (rows, columns)))
    if num_contours and not slices.num_slices:
        raise FormatError(
            f"{header.path}: none of its {num_contours} contours encloses a pixel of this image; "
            "it belongs to another one."
        )
    return slices.to_labels(geometry, names)


def _closed_contours(header: Header, roi: Dataset) -> Iterator[Array]:
    """Corners ``(n, 3)`` in LPS millimetres of the closed contours of a structure."""
    skipped: dict[str, int] = defaultdict(int)
    for item in roi.get("ContourSequence") or ():
        kind = str(item.get("ContourGeometricType") or "CLOSED_PLANAR")
        points = _points(item)
        if kind in _CLOSED and len(points) >= 3:
            yield points
        else:
            skipped[kind] += 1
    if skipped:
        found = ", ".join(f"{count} {kind}" for kind, count in skipped.items())
        logger.warning("%s: passed over what has no inside: %s", header.path, found)


def _points(item: Dataset) -> Array:
    if "ContourData" not in item:
        return np.zeros((0, 3))
    raw = item.get_item("ContourData").value
    # Straight from the bytes: pydicom would make an object of each of up to millions of numbers.
    parts = raw.split(b"\\") if isinstance(raw, bytes) else list(raw or ())
    values = np.asarray([float(v) for v in parts if v not in (b"", "")])
    if values.size % 3 or not np.isfinite(values).all():
        raise ValueError("a contour whose numbers are not points in space")
    return values.reshape(-1, 3)


def _by_slice(contours: list[Array], grid: Geometry, name: str) -> dict[int, list[Array]]:
    """Contours as (row, column) by the slice they lie on.

    Where contours of several planes are nearest to one slice, those of the nearest plane count:
    even-odd filling is for contours of one plane.
    """
    slices: dict[int, dict[float, list[Array]]] = defaultdict(lambda: defaultdict(list))
    oblique = outside = 0
    for contour in contours:
        index = grid.world_to_index(contour)
        depth = float(np.median(index[:, 0]))
        nearest = round(depth)
        if np.ptp(index[:, 0]) > _TILTED:
            oblique += 1
        elif not 0 <= nearest < grid.shape[0] or abs(depth - nearest) > _BETWEEN:
            outside += 1
        else:
            distance = round(abs(depth - nearest) / _SAME_DEPTH) * _SAME_DEPTH
            signed = distance if depth >= nearest else -distance
            slices[nearest][signed].append(index[:, 1:])
    for count, what in ((oblique, "not parallel to the slices"), (outside, "outside the image")):
        if count:
            logger.warning("%s: passed over %d contours %s", name, count, what)
    chosen = {k: min(depths, key=abs) for k, depths in slices.items()}
    if any(abs(depth) > 0.1 for depth in chosen.values()):
        logger.warning("%s: contours between the slices were put on the nearest slice", name)
    return {k: slices[k][depth] for k, depth in chosen.items()}


def write(path: Path | str, labels: Labels, *, like: Image | None = None) -> None:
    """Write labels as a structure set of the DICOM image `like`, atomically.

    Args:
        path: the file.
        labels: on the grid of `like`.
        like: the image in patient space, read from DICOM files that are still in place.

    Raises:
        FormatError: `like` is not DICOM, has no place in the patient or does not fit, or there is
            nothing to write.
    """
    path = Path(path)
    with reading(path, "cannot be written as an RT Structure Set"):
        dataset = _build(path, labels, like)
        with atomic_path(path) as temporary:
            dataset.save_as(temporary, enforce_file_format=True)


def check_writable(path: Path, like: Image) -> None:
    """Build the structure set of one pixel and throw it away.

    Raises:
        FormatError: as for `write`.
    """
    with reading(path, "cannot be written as an RT Structure Set"), muted(_sources.__name__):
        dataset = _build(path, one_pixel(like), like)
        dataset.save_as(io.BytesIO(), enforce_file_format=True)


def _build(path: Path, labels: Labels, like: Image | None) -> FileDataset:
    from limner.io.dicom._rtstruct_writer import build

    sources = source_datasets(like, purpose="an RT Structure Set")
    assert like is not None
    check_same_grid(labels.geometry.shape, like, path)
    if not like.metadata.get("patient_space"):
        raise FormatError(
            f"{path}: contours are in patient space and {like.path} has no place in it; write "
            "a DICOM Segmentation or .png instead."
        )
    if like.kind == "video":
        raise FormatError(
            f"{path}: the frames of {like.path} share one place, so contours could not say which "
            "frame they are on; write a DICOM Segmentation (dicom_type='seg') instead."
        )
    if not like.metadata.get("evenly_spaced"):
        raise FormatError(
            f"{path}: the slices of {like.path} are not evenly spaced, so contours would lie "
            "beside them; write a DICOM Segmentation (dicom_type='seg') instead."
        )
    if not labels.ids:
        raise FormatError(f"{path}: there is no object to write.")
    return build(labels, like, sources)
