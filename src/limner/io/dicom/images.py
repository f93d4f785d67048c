"""DICOM images: one file, a series in a folder, a multi-frame file; header first, pixels on demand.

Slices are sorted by position along their normal, never by file name or number. Values are real
units: rescale slope and intercept (per slice where they vary, as in PET) or the modality lookup
table applied, in the smallest integer type that holds them, else float32. Palette and YBR colours
become RGB. ``MONOCHROME1`` images keep their values and are shown inverted, except CT, PET,
nuclear medicine and dose, whose numbers are measurements (``metadata["inverted"]`` tells).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.errors import FormatError, SeriesChoice
from limner.geometry import Geometry
from limner.io.dicom import _tiles
from limner.io.dicom._codecs import is_video_stream
from limner.io.dicom._files import (
    DICOMDIR_CLASS,
    RTSTRUCT_CLASS,
    SEG_CLASSES,
    Header,
    contains_dicom,
    files_of_dicomdir,
    find_files,
    is_image,
    read_header,
    reading,
    sop_class_of,
)
from limner.io.dicom._frames import FRAME_TAGS, frame_time_ms, frames_of
from limner.io.dicom._pixels import FrameReader
from limner.io.dicom._search import find_files_by_uid
from limner.io.dicom._series import Stack, geometry_of, is_even, stacks_of
from limner.io.dicom._values import FrameValues, ValuePlan
from limner.io.image import Image
from limner.io.inversion import REFLECTION
from limner.io.limits import check_allocation
from limner.io.video.lenient import LenientReader, stack_frames

logger = logging.getLogger(__name__)
Array = NDArray[Any]

NAME = "dicom"

_MAX_LISTED = 12  # series named in a message; all are in SeriesChoice.series
_FACTS = {
    "series_uid": "SeriesInstanceUID",
    "series_description": "SeriesDescription",
    "protocol": "ProtocolName",
    "manufacturer": "Manufacturer",
    "model": "ManufacturerModelName",
    "body_part": "BodyPartExamined",
    "image_type": "ImageType",
    "units": "Units",
    "rescale_type": "RescaleType",
}
_SERIES_TAGS = (
    *FRAME_TAGS,
    *_FACTS.values(),
    "SOPClassUID",
    "StudyInstanceUID",
    "FrameOfReferenceUID",
    "Modality",
    "SeriesNumber",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "ModalityLUTSequence",
    "WindowCenter",
    "WindowWidth",
    "FrameTime",
    "CineRate",
    "RecommendedDisplayFrameRate",
    "DoseGridScaling",
    "TotalPixelMatrixColumns",
    *(
        f"{colour}PaletteColorLookupTable{part}"
        for colour in ("Red", "Green", "Blue")
        for part in ("Descriptor", "Data")
    ),
)


def sniff(path: Path, head: bytes) -> bool:
    """Whether `path` is a DICOM file that is no segmentation, or a folder with DICOM files."""
    if path.is_dir():
        return contains_dicom(path)
    sop_class = sop_class_of(path, head)
    return sop_class is not None and sop_class not in (RTSTRUCT_CLASS, *SEG_CLASSES)


def read(
    path: Path | str,
    *,
    channel: int | None = None,
    series: str | int | None = None,
    strict: bool = True,
) -> Image:
    """Read a file, a folder or a DICOMDIR.

    Args:
        path: a file (read alone, even if it is one slice of a series), a folder (searched through)
            or a DICOMDIR file.
        channel: of a colour image, the only one to keep.
        series: which image, where there are several: a key of `SeriesChoice.series`, its end, or
            its number counted from 1.
        strict: False reads a series with gaps, doubled slices or unreadable files as an even stack,
            and shows the last readable frame of a video in place of a damaged one.

    Returns:
        A lazy `Image`: ``"image"`` from one frame, ``"volume"`` from frames at different positions,
        ``"video"`` from frames in time. ``metadata["sources"]`` names each frame's
        file, number and instance, as the segmentation writers need.

    Raises:
        SeriesChoice: there are several images and `series` does not name one.
        FormatError: no image, a damaged one, or one with slices missing.
    """
    path = Path(path)
    with reading(path):
        headers = _headers(path, strict=strict)
        stack = _choose(path, _stacks(headers), series)
        return _one_channel(_image_of(path, stack, strict=strict), channel)


def find_series(folder: Path, uids: Collection[str]) -> Image | None:
    """The image of a folder whose series or instances have most of the UIDs given, None if none.

    Args:
        folder: searched through.
        uids: SeriesInstanceUIDs and SOPInstanceUIDs.
    """
    with reading(folder):
        headers = _image_headers(find_files_by_uid(folder, uids), strict=False)[0]
        series = {header.text("SeriesInstanceUID") for header in headers} - {"", *uids}
        if series:  # only instances were named; others of their series belong to the image
            files = find_files_by_uid(folder, {*uids, *series})
            headers = _image_headers(files, strict=False)[0]
        if not headers:
            return None
        stacks = _stacks(headers)
        matches = {
            key: sum(f.uid in uids or f.header.text("SeriesInstanceUID") in uids for f in s.frames)
            for key, s in stacks.items()
        }
        best = max(matches, key=lambda key: matches[key])
        return _image_of(folder, stacks[best], strict=True) if matches[best] else None


def _headers(path: Path, *, strict: bool) -> list[Header]:
    """Headers of all images at a path, in order of file name."""
    if not path.is_dir():
        header = read_header(path)
        if header.sop_class in SEG_CLASSES:
            raise FormatError(f"{path} is a {header.object_name}: read it with read_labels.")
        if header.sop_class != DICOMDIR_CLASS:
            return [header]
        files = files_of_dicomdir(header) or find_files(path.parent)
    else:
        files = find_files(path)
    headers, others = _image_headers(files, strict=strict)
    if not headers:
        found = f" It holds: {', '.join(sorted(others))}." if others else ""
        raise FormatError(f"{path} holds no DICOM image.{found}")
    return headers


def _image_headers(files: Iterable[Path], *, strict: bool) -> tuple[list[Header], set[str]]:
    """Headers of those files that are images, and what the others are."""
    headers: list[Header] = []
    others: set[str] = set()
    for file in files:
        try:
            header = read_header(file, _SERIES_TAGS)
            if is_image(header) and _is_multiframe(header):
                header = read_header(file)
        except FormatError as error:
            if strict:
                raise FormatError(f"{error} Leave such files out with strict=False.") from error
            logger.warning("Left out: %s", error)
            continue
        if is_image(header):
            headers.append(header)
        else:
            others.add(header.object_name)
    return headers, others


def _is_multiframe(header: Header) -> bool:
    count = header.text("NumberOfFrames")
    return count not in ("", "1") or "Enhanced" in header.object_name


def _stacks(headers: Iterable[Header]) -> dict[str, Stack]:
    """All images among the headers, by the key that chooses them."""
    series: dict[str, list[Header]] = {}
    for header in headers:
        series.setdefault(header.text("SeriesInstanceUID") or "unnamed", []).append(header)
    stacks: dict[str, Stack] = {}
    for uid, members in series.items():
        slides = [h for h in members if _tiles.is_tiled(h)]
        found = [_tiles.stack_of(header) for header in slides]
        loose = [frame for h in members if h not in slides for frame in frames_of(h)]
        found += stacks_of(loose)
        for k, stack in enumerate(found, start=1):
            stacks[uid if len(found) == 1 else f"{uid}:{k}"] = stack
    return stacks


def _choose(path: Path, stacks: dict[str, Stack], series: str | int | None) -> Stack:
    keys = list(stacks)
    if series is None:
        if len(stacks) == 1:
            return stacks[keys[0]]
        raise _choice(path, stacks, "")
    wanted = str(series).strip()
    if wanted in stacks:
        return stacks[wanted]
    if wanted.isdigit() and 1 <= int(wanted) <= len(keys):
        return stacks[keys[int(wanted) - 1]]
    # One or two digits are a number, never the end of a UID.
    is_end = ":" in wanted or len(wanted) > 2
    matches = [k for k in keys if is_end and k.endswith(wanted)]
    if len(matches) == 1:
        return stacks[matches[0]]
    problem = "fits several" if matches else "is none of them"
    raise _choice(path, stacks, f" and {wanted!r} {problem}")


def _choice(path: Path, stacks: dict[str, Stack], problem: str) -> SeriesChoice:
    described = {key: stack.describe() for key, stack in stacks.items()}
    listed = [f"{k}) {text} [{key}]" for k, (key, text) in enumerate(described.items(), start=1)]
    more = len(listed) - _MAX_LISTED
    tail = f"; and {more} more" if more > 0 else ""
    noun = "images" if len(listed) > 1 else "image"
    message = (
        f"{path} holds {len(listed)} {noun}{problem}; choose one with series= (--series), by "
        f"number, UID or end of UID: {'; '.join(listed[:_MAX_LISTED])}{tail}."
    )
    return SeriesChoice(message, described)


def _check_spacing(stack: Stack, *, strict: bool) -> None:
    """Refuse an impossible pixel spacing; if not `strict`, say that it counts as unknown."""
    wrong = next((f.spacing_error for f in stack.frames if f.spacing_error), "")
    if wrong and strict:
        raise FormatError(
            f"{wrong} The file is damaged; read it without spacing with strict=False (--lenient)."
        )
    if wrong:
        logger.warning("%s Read without spacing, in pixels.", wrong)


def _image_of(path: Path, stack: Stack, *, strict: bool) -> Image:
    _check_spacing(stack, strict=strict)
    if _tiles.is_tiled(stack.first.header):
        return _slide_of(path, stack)
    header = stack.first.header
    modality = header.text("Modality")
    geometry = geometry_of(stack, strict=strict)
    scales = {(f.format, f.rescale) for f in stack.frames}
    plan = ValuePlan.for_frames(header, scales, modality)
    channels = () if plan.num_channels is None else (plan.num_channels,)
    check_allocation(geometry.shape + channels, plan.dtype.itemsize, path)
    load_slice = _slice_loader(stack, plan)
    frame_shape = geometry.shape[-2:] + channels

    def one(index: int) -> Array:
        target = np.empty(frame_shape, dtype=plan.dtype)
        load_slice(index, target)
        return target

    forgives = stack.kind == "video" and not strict
    read_slice = LenientReader(one, geometry.shape[0]) if forgives else one

    def load() -> Array:
        if geometry.ndim == 2:
            return read_slice(0)
        if forgives:
            return stack_frames(read_slice, geometry.shape + channels, plan.dtype)
        target = np.empty(geometry.shape + channels, dtype=plan.dtype)
        workers = 1 if is_video_stream(header.syntax) else min(8, os.cpu_count() or 1)
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(load_slice, range(geometry.shape[0]), target))
        return target

    return Image(
        load,
        geometry,
        kind=stack.kind,
        modality=modality or None,
        dtype=plan.dtype,
        num_channels=plan.num_channels,
        read_slice=read_slice if geometry.ndim == 3 else None,
        path=path,
        format=NAME,
        metadata=_metadata(stack, plan, geometry),
        damaged=read_slice.damaged if isinstance(read_slice, LenientReader) else None,
    )


def _slice_loader(stack: Stack, plan: ValuePlan) -> Callable[[int, Array], None]:
    """A function that reads the k-th frame of a stack into an array."""
    values: dict[Path, FrameValues] = {}
    for frame in stack.frames:
        if frame.header.path not in values:
            reader = FrameReader(frame.header, frame.format)
            values[frame.header.path] = FrameValues(reader, plan)

    def load_slice(index: int, target: Array) -> None:
        frame = stack.frames[index]
        values[frame.header.path].read_into(frame.index, frame.rescale, target)

    return load_slice


def _slide_of(path: Path, stack: Stack) -> Image:
    """A whole slide image as one image."""
    header, pixel_format = stack.first.header, stack.first.format
    _tiles.check_size(header, pixel_format)
    geometry = _tiles.slide_geometry(header)
    tile = (pixel_format.rows, pixel_format.columns)
    corners = _tiles.tile_corners(header, tile, pixel_format.num_frames)
    rescale = stack.first.rescale
    plan = ValuePlan.for_frames(header, {(pixel_format, rescale)}, "SM")
    values = FrameValues(FrameReader(header, pixel_format), plan)
    channels = () if plan.num_channels is None else (plan.num_channels,)

    def load() -> Array:
        pixels = np.zeros(geometry.shape + channels, dtype=plan.dtype)
        buffer = np.empty(tile + channels, dtype=plan.dtype)
        for k, corner in enumerate(corners):
            values.read_into(k, rescale, buffer)
            _tiles.paste(pixels, buffer, corner)
        return pixels

    return Image(
        load,
        geometry,
        kind="image",
        modality=header.text("Modality") or None,
        dtype=plan.dtype,
        num_channels=plan.num_channels,
        path=path,
        format=NAME,
        metadata=_metadata(stack, plan, geometry) | {"tiles": len(corners)},
    )


def _one_channel(image: Image, channel: int | None) -> Image:
    if channel is None:
        return image
    if image.num_channels is None or not 0 <= channel < image.num_channels:
        has = (
            "is grey" if image.num_channels is None else f"has channels 0…{image.num_channels - 1}"
        )
        raise FormatError(f"{image.path} {has}; there is no channel {channel}.")
    is_stack = image.geometry.ndim == 3
    return Image(
        lambda: image.array[..., channel],
        image.geometry,
        kind=image.kind,
        modality=image.modality,
        dtype=image.dtype,
        read_slice=(lambda k: image.slice_at(k)[..., channel]) if is_stack else None,
        path=image.path,
        format=image.format,
        metadata=image.metadata,
        damaged=image.damaged,
    )


def _metadata(stack: Stack, plan: ValuePlan, geometry: Geometry) -> dict[str, Any]:
    """Facts about the image, none about the patient."""
    header = stack.first.header
    facts: dict[str, Any] = {
        k: header.text(word) for k, word in _FACTS.items() if header.text(word)
    }
    facts["object"] = header.object_name
    facts["transfer_syntax"] = header.syntax_name
    for key, word in (("window_center", "WindowCenter"), ("window_width", "WindowWidth")):
        value = header.dataset.get(word)
        if value not in (None, ""):
            numbers = value if hasattr(value, "__len__") and not isinstance(value, str) else [value]
            facts[key] = [float(v) for v in numbers]
    facts["inverted"] = plan.inverted_from is not None
    if plan.inverted_from is not None:
        facts[REFLECTION] = plan.inverted_from
    if stack.first.spacing_source:
        facts["spacing_source"] = stack.first.spacing_source
    if stack.kind == "video" and (step := frame_time_ms(stack.frames)):
        facts["frame_time_ms"] = step
    if stack.note:
        facts["stack"] = stack.note
    if "MOSAIC" in header.text("ImageType").upper():
        logger.warning("%s is a Siemens mosaic: one picture tiled from many slices", header.path)
        facts["mosaic"] = "Siemens mosaic: one picture tiled from many slices, not a volume"
    facts["patient_space"] = (
        stack.first.position is not None and stack.first.orientation is not None
    )
    facts["evenly_spaced"] = is_even(stack, geometry)
    facts["sources"] = {
        "files": [str(f.header.path) for f in stack.frames],
        "frames": [f.index for f in stack.frames],
        "sop_instance_uids": [f.uid for f in stack.frames],
        "frame_of_reference_uid": header.text("FrameOfReferenceUID"),
        "series_instance_uid": header.text("SeriesInstanceUID"),
    }
    return facts
