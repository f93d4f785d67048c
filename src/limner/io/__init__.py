"""Reading and writing of files: images, volumes, videos and segmentations.

The reader is chosen by content, then by suffix; the writer by suffix (`limner.io.formats`). Every
format is one module with functions of the same names, imported when a file is of that format.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import ArrayLike

from limner.errors import FormatError
from limner.geometry import Geometry
from limner.io._changes import stamp_of
from limner.io._errors import plain_errors
from limner.io._given import as_labels, check_priority
from limner.io.formats import (
    FormatEntry,
    Writer,
    choose_image_writer,
    choose_reader,
    choose_writer,
    read_head,
    recognise,
)
from limner.io.image import Image
from limner.io.inversion import REFLECTION
from limner.io.labels import LabelArray, Labels
from limner.io.overlaps import describe_overlaps
from limner.io.placement import place_on_grid
from limner.io.protocols import (
    ImageReader,
    ImageWriter,
    LabelReader,
    LabelWriter,
    MixedFormat,
    SelectiveWriter,
)
from limner.io.reoriented import Reoriented, labels_as_reoriented, labels_as_stored

__all__ = [
    "Image",
    "LabelArray",
    "Labels",
    "holds_labels",
    "manifest_path",
    "read",
    "read_labels",
    "write",
    "write_image",
    "writer",
]

Like: TypeAlias = Image | Geometry | str | Path

_log = logging.getLogger(__name__)


def read(
    path: str | Path,
    *,
    series: str | int | None = None,
    channel: int | None = None,
    strict: bool = True,
    axis: int = 0,
) -> Image:
    """Read an image, a volume or a video: its header now, its pixels when they are wanted.

    Args:
        path: a file, or a folder that holds a DICOM series or the frames of a video.
        series: which DICOM series of a folder: its UID, the end of it, or its number in the list
            that `SeriesChoice` shows.
        channel: take only this one of several channels, counted from 0.
        strict: False accepts what is probably right although the file contradicts itself, such as
            missing slices; each time a warning is logged. Frames of a video that cannot be read are
            noted in `Image.damaged`.
        axis: of a volume, the one across which its slices lie, to work on them from another side:
            0 (as stored), 1 or 2. It comes first in the image. What `write` is given ``like`` such
            an image is written as stored.

    Raises:
        FormatError: the file is missing, empty, damaged or of an unknown kind.
        SeriesChoice: the folder holds several series and `series` does not say which.
        GeometryError: the grid is impossible, such as a spacing of 0; or no volume has that axis.
    """
    path = Path(path)
    module = cast(ImageReader, choose_reader(path).load())
    stamps = {path: stamp_of(path)}
    with plain_errors(path):
        image = module.read(path, channel=channel, series=series, strict=strict)
    image.watch(stamps)
    image.read_options = {"series": series, "channel": channel, "strict": strict}
    _log.info("%s is read as %s: %r", path, image.format, image)
    return Reoriented(image, axis) if axis != 0 else image


def read_labels(
    path: str | Path,
    *,
    like: Like | None = None,
    threshold: float | None = None,
    channel: int | None = None,
    any_frame: bool = False,
) -> Labels:
    """Read a segmentation.

    Labels are whole numbers from 0 on (floats: within a thousandth). Channels that hold one mask
    each are one object each. An object with soft edges is cut at half, with a warning. Pictures,
    probabilities, fractions and NaN are refused; see `limner.label_values`.

    Args:
        path: a file of any format that limner writes, or any image of labels.
        like: the image (or its grid or path) that it belongs to. Its grid is taken where the file
            has none, or the same within a tenth of a pixel; where the file stores the same voxels
            in another order of axes they are put into the image's. RTSTRUCT needs it.
        threshold: of probabilities and soft masks, in the file's values: from this one on a pixel
            belongs to object 1 (of several channels: to the channel's object).
        channel: of several channels or time points only this one, counted from 0.
        any_frame: take a DICOM segmentation or structure set of another frame of reference (patient
            coordinate system) than `like` as if it were the same, with a warning.

    Raises:
        FormatError: the file is missing, damaged or holds no labels, or lies in another frame of
            reference than `like`.
        GeometryError: it lies on another grid than `like`.
    """
    path = Path(path)
    image, geometry = _as_like(like)
    if isinstance(image, Reoriented):
        return labels_as_reoriented(
            read_labels(
                path, like=image.stored, threshold=threshold, channel=channel, any_frame=any_frame
            ),
            image,
        )
    entry = choose_reader(path, labels=True)
    module = entry.load()
    chosen = {"threshold": threshold, "channel": channel}
    options: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    with plain_errors(path):
        if isinstance(module, LabelReader):
            unknown = options.keys() - set(entry.label_options)
            if unknown:
                raise FormatError(
                    f"{path} holds whole masks, of which no {unknown.pop()} is to be taken."
                )
            if any_frame and "any_frame" in entry.label_options:
                options["any_frame"] = True
            found = module.read_labels(path, like=image, **options)
        elif module.NAME == "dicom":
            raise FormatError(f"{path} is a DICOM image, not a segmentation (SEG or RTSTRUCT).")
        else:
            read_one = cast(ImageReader, module).read(path, channel=channel)
            _refuse_time_points(read_one, image, threshold)
            found = _labels_of(read_one, path, threshold)
    if geometry is not None and found.geometry != geometry:
        found = place_on_grid(found, geometry, path, placeless=entry.placeless, image=image)
    return found


def write(
    path: str | Path,
    labels: Labels | Mapping[int, ArrayLike] | Mapping[str, ArrayLike] | ArrayLike,
    *,
    like: Like | None = None,
    names: Mapping[int, str] | None = None,
    dicom_type: str | None = None,
    priority: Sequence[int] | None = None,
) -> None:
    """Write a segmentation, on exactly the grid of the image it belongs to.

    The file appears whole or not at all. If the labels know how they were made, that is written
    beside it as ``FILE.limner.json``, FILE being its whole name.

    Args:
        path: its suffix is the format: .nii, .nii.gz, .nrrd, .seg.nrrd (3D Slicer), .mha, .npz,
            .png, .tif, .dcm or .json.
        labels: a label map, one mask per object id or name, or `Labels`. A label map of a session
            stands for the session's `Labels`, so that overlapping objects survive where the format
            can hold them; elsewhere one of them is written, and a warning says which and how much.
        like: the image, its grid or its path. An array or masks need it where the format says where
            voxels lie (.nii, .nrrd, .mha, .dcm); `Labels` know their grid.
        names: what the objects are, by id; added to those that `labels` knows.
        dicom_type: of a .dcm: ``"seg"`` (the default), ``"seg-labelmap"`` or ``"rtstruct"``.
        priority: ids of objects that keep the pixels that they share with others, the uppermost
            first; default: what `labels` says, else the lower id, but for an object of which more
            than half lies in the other one.

    Raises:
        FormatError: the suffix is unknown, the place cannot be written, or the format cannot hold
            the labels.
        GeometryError: the labels do not lie on the grid of `like`, or nothing says on which, or
            the format cannot hold it; or what was given is no label map.
        ValueError: an unknown `dicom_type`, or one for a file that is not ``.dcm``.
    """
    path = Path(path)
    target = writer(path, dicom_type=dicom_type)
    image, geometry = _as_like(like)
    placed = not target.format.placeless and path.suffix.lower() != ".json"
    found = as_labels(labels, (image, geometry), names, path, placed=placed)
    if priority is not None:
        found.priority = check_priority(priority)
    if isinstance(image, Reoriented):
        found, image = labels_as_stored(found, image), image.stored
    if image is not None:
        _refuse_to_replace(path, image)
    if placed:
        _warn_of_qform(path, target.format, image)
    if not target.keeps_overlaps:
        _warn_of_overlaps(found, path)
    if not target.keeps_empty:
        _warn_of_empty(found, path)
    with plain_errors(path):
        module = cast(LabelWriter, target.format.load())
        module.write(path, found, like=image, **target.options)
    _write_manifest(found, path)


def write_image(path: str | Path, image: Image) -> None:
    """Write an image, a volume or a video as it is: same grid, same values.

    Args:
        path: its suffix is the format: .nii, .nii.gz, .nrrd, .mha, .png or .tif.
        image: may be lazy; it is not changed.

    Raises:
        FormatError: the suffix is unknown, the format cannot hold the pixels, or the file is the
            image itself.
        GeometryError: the format cannot hold the grid.
    """
    path = Path(path)
    entry = choose_image_writer(path)
    module = cast(ImageWriter, entry.load())
    _refuse_to_replace(path, image)
    if not entry.placeless:
        _warn_of_qform(path, entry, image)
    if REFLECTION in image.metadata:
        _log.warning(
            "%s: larger values are darker in this image, and the values are written as they are; "
            "the format cannot say so, and viewers will show it inverted.",
            path,
        )
    with plain_errors(path):
        module.write_image(path, image)


def writer(path: str | Path, *, dicom_type: str | None = None) -> Writer:
    """How labels would be written to a path; asks nothing of the disk.

    Raises:
        FormatError: the suffix is unknown; the message lists those that are known.
        ValueError: an unknown `dicom_type`, or one for a file that is not ``.dcm``.
    """
    return choose_writer(Path(path), dicom_type=dicom_type)


def check_writable(path: str | Path, image: Image, *, dicom_type: str | None = None) -> None:
    """Refuse a file that could not hold the labels of an image, before they are made.

    Args:
        path: its suffix is the format.
        image: that is going to be labelled.
        dicom_type: as for `write`.

    Raises:
        FormatError: the suffix is unknown, the image does not come from the files that the format
            refers to, or these say too little or too odd things.
        GeometryError: the format cannot hold the grid.
        ValueError: an unknown `dicom_type`, or one for a file that is not ``.dcm``.
    """
    path = Path(path)
    target = writer(path, dicom_type=dicom_type)
    stored = image.stored if isinstance(image, Reoriented) else image
    module = target.format.load()
    if isinstance(module, SelectiveWriter):
        with plain_errors(path):
            module.check_writable(path, stored, **target.options)


def holds_labels(path: str | Path) -> bool:
    """Whether a file can only be a segmentation: DICOM SEG, RTSTRUCT, COCO, npz without an image.

    Raises:
        FormatError: the file is missing or empty.
    """
    path = Path(path)
    if path.is_dir():
        return False
    entry = recognise(path, read_head(path))
    if entry is None or not entry.images:
        return entry is not None
    module = entry.load()
    return isinstance(module, MixedFormat) and module.holds_labels(path)


def manifest_path(path: str | Path) -> Path:
    """Where the manifest of a segmentation is: ``seg.nii.gz.limner.json`` beside ``seg.nii.gz``.

    The suffix stays, so that ``seg.nii.gz`` and ``seg.png`` have a manifest each.
    """
    path = Path(path)
    return path.with_name(f"{path.name}.limner.json")


def _write_manifest(labels: Labels, path: Path) -> None:
    from limner.atomic import atomic_bytes

    target = manifest_path(path)
    manifest = labels.manifest_json()
    if manifest is not None:
        atomic_bytes(target, manifest.encode())
    elif target.exists():
        # Kept: it is the only record of a segmentation of which there may be a copy elsewhere.
        _log.warning(
            "%s tells how the file that %s replaced was made, not this one; move or delete it.",
            target,
            path.name,
        )


def _as_like(like: Like | None) -> tuple[Image | None, Geometry | None]:
    if isinstance(like, (str, Path)):
        like = read(like)
    if isinstance(like, Image):
        return like, like.geometry
    if like is None or isinstance(like, Geometry):
        return None, like
    raise TypeError(f"like is an image, a geometry or a path, not {type(like).__name__}.")


def _labels_of(image: Image, path: Path, threshold: float | None) -> Labels:
    from limner.io.raster.pixels import labels_from_pixels

    return labels_from_pixels(
        image.array,
        image.geometry,
        path,
        colour=image.channel_kind == "colour",
        declared=bool(image.metadata.get("is_label_map")),
        threshold=threshold,
    )


def _refuse_time_points(labels: Image, image: Image | None, threshold: float | None) -> None:
    """Refuse label maps over time beside an image with as many times: they are no objects."""
    count = labels.num_channels
    if image is not None and count is not None and count == image.num_channels:
        raise FormatError(
            f"{labels.path} holds {count} volumes, as many as the image has channels or time "
            "points; take the one that belongs to it (channel=K, --channel K)."
        )


def _refuse_to_replace(path: Path, image: Image) -> None:
    if image.is_made_of(path):
        raise FormatError(f"{path} is the image itself; write to another file.")


def _warn_of_empty(labels: Labels, path: Path) -> None:
    if labels.ids and labels.empty_ids:
        _log.warning(
            "%s: left out, without a pixel: %s. .seg.nrrd and .dcm keep empty objects.",
            path,
            ", ".join(labels.name(i) for i in labels.empty_ids),
        )


def _warn_of_qform(path: Path, entry: FormatEntry, image: Image | None) -> None:
    """Warn where programs built on ITK show an image elsewhere than what is written of it."""
    if image is None or entry.module == "nifti" or image.metadata.get("used_by_itk") != "qform":
        return
    _log.warning(
        "%s lies where the sform of %s puts it; SimpleITK, 3D Slicer and ITK-SNAP show that image "
        "elsewhere, by its qform. A .nii.gz keeps both.",
        path,
        image.path,
    )


def _warn_of_overlaps(labels: Labels, path: Path) -> None:
    count = labels.num_overlapping()
    if not count:
        return
    visible = set(np.unique(labels.to_array()).tolist())
    empty = [i for i in labels.ids if i not in visible and labels.mask(i).any()]
    _log.warning(
        "%s: %s pixels belong to several objects, and this format holds one per pixel: %s. "
        ".seg.nrrd, .json and .dcm keep all; --lock or --priority (session.lock, set_priority) say "
        "who keeps them.",
        path,
        f"{count:,}",
        describe_overlaps(labels.overlaps, labels.order, labels.names, empty),
    )
