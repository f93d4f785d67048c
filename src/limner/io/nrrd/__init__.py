"""NRRD, with the pixels in the same file or in plain files beside a detached header.

NRRD lists its axes from the fastest to the slowest; here index order is the reverse, and an axis
without a place in space (colour, vector, list, time) becomes channels, last. Spaces in RAS and LAS
are turned into LPS by sign; a space that says nothing about the patient counts as LPS, as in ITK.
A detached header may name files of its own folder, alone, in a list or by a pattern; paths are
refused, because they could name any file of the machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.atomic import atomic_path
from limner.errors import FormatError
from limner.geometry import Geometry
from limner.io._block import FROM_END, Block, block_image
from limner.io._detached import find_files
from limner.io._grid import as_written, axes_of, geometry_from_axes
from limner.io._inflate import gzip_writer
from limner.io.image import ChannelKind, Image
from limner.io.labels import Labels
from limner.io.nrrd.field_values import (
    CODECS,
    MILLIMETRES,
    SHORT_SPACES,
    TO_LPS,
    TYPES,
    WRITTEN_TYPES,
)
from limner.io.nrrd.header import MAGIC, read_header
from limner.io.nrrd.segments import (
    SEGMENTS_SUFFIX,
    Segment,
    fields_of,
    labels_of_segments,
    layers_of,
    place,
    segments_of,
)
from limner.io.raster.pixels import labels_from_pixels

Array = NDArray[Any]

NAME = "nrrd"

_MAX_LINE = 1 << 20  # bytes of a line to skip
_SPATIAL_KINDS = ("domain", "space")
_CHANNEL_KINDS_BY_COUNT = {3: "RGB-color", 4: "RGBA-color"}


def sniff(path: Path, head: bytes) -> bool:
    """Whether the file begins with NRRD's magic."""
    return head.startswith(MAGIC)


def read(
    path: Path, *, channel: int | None = None, series: str | None = None, strict: bool = True
) -> Image:
    """Read a NRRD file: the header now, the pixels when they are wanted.

    Args:
        path: the file, or a detached header.
        channel: take only this one of several channels.
        series: ignored.
        strict: False accepts foreign bytes behind compressed pixels.

    Raises:
        FormatError: not NRRD, cut off, an encoding or type that is no image, or pixels elsewhere.
        GeometryError: a spacing of 0 or NaN, or axes that point the same way.
    """
    header = read_header(path)
    fields = header.fields
    sizes = _require_field(fields, "sizes", path)
    axes = _axes_of(fields, sizes, path)
    block = _block_of(fields, path, header.end, sizes, axes, strict)
    block.check_size()
    geometry = _geometry_of(fields, path, sizes, axes)
    metadata = {
        "space": fields.get("space"),
        "space_units": fields.get("space units", []),
        "encoding": fields["encoding"],
        "stored_type": fields["type"],
    }
    return block_image(
        block.select(channel),
        geometry,
        path=path,
        format=NAME,
        metadata=metadata,
        channel_kind=_channel_kind(fields, axes),
    )


def read_labels(
    path: Path,
    *,
    like: Image | None = None,
    threshold: float | None = None,
    channel: int | None = None,
) -> Labels:
    """Read a label map, or a segmentation of 3D Slicer with its names and overlaps.

    Args:
        path: the file.
        like: the image it belongs to. A segmentation that Slicer cut to a part of this image is put
            back in its place.
        threshold: values from this one on are object 1.
        channel: of several channels or time points only this one.

    Raises:
        FormatError: as `read`, or values that are no labels.
    """
    image = read(path, channel=channel)
    pixels, geometry = image.array, image.geometry
    if like is not None and geometry.shape != like.geometry.shape:
        placed = place(pixels, geometry, like.geometry)
        if placed is not None:
            pixels, geometry = placed, like.geometry
    try:
        segments = segments_of(read_header(path).keys)
        if segments and pixels.dtype.kind in "bui" and threshold is None and channel is None:
            return labels_of_segments(pixels, geometry, segments)
    except ValueError as error:
        raise FormatError(f"{path}: its segments are malformed: {error}.") from error
    return labels_from_pixels(
        pixels,
        geometry,
        path,
        colour=image.channel_kind == "colour",
        declared=bool(segments),
        threshold=threshold,
    )


def write(path: Path, labels: Labels, *, like: Image | None) -> None:
    """Write a label map in the smallest unsigned type, gzip, in LPS space, with the names.

    Args:
        path: ends in ``.nrrd``. In ``.seg.nrrd``, which 3D Slicer opens as a segmentation,
            overlapping objects lie in layers; else the first of `Labels.order` is written.
        labels: the objects.
        like: the image they belong to. If it was NRRD, its units of length are repeated.
    """
    if path.name.lower().endswith(SEGMENTS_SUFFIX):
        pixels, segments = layers_of(labels)
    else:
        pixels = np.asarray(labels.to_array())
        segments = [Segment(labels.name(i), i, 0) for i in labels.ids if i in labels.names]
    count = pixels.shape[-1] if pixels.ndim > labels.geometry.ndim else None
    units = _units_of(like)
    _write(path, pixels, labels.geometry, num_channels=count, units=units, segments=segments)


def write_image(path: Path, image: Image) -> None:
    """Write an image, gzip, in LPS space; channels become the fastest axis."""
    pixels = image.array
    if pixels.dtype.kind == "b":
        pixels = pixels.astype(np.uint8)
    units = _units_of(image)
    _write(path, pixels, image.geometry, num_channels=image.num_channels, units=units)


@dataclass(frozen=True)
class _Axes:
    """Which axes of the file lie in space, counted from the fastest."""

    space: tuple[int, ...]
    channel: int | None


def _require_field(fields: Mapping[str, Any], name: str, path: Path) -> Any:
    if name not in fields:
        raise FormatError(f"{path}: its NRRD header lacks the field {name!r}.")
    return fields[name]


def _axes_of(fields: Mapping[str, Any], sizes: Sequence[int], path: Path) -> _Axes:
    count = len(sizes)
    if _require_field(fields, "dimension", path) != count or not sizes or min(sizes) < 1:
        raise FormatError(f"{path}: sizes {sizes} do not fit dimension {fields['dimension']}.")
    for name in ("kinds", "space directions", "spacings", "axis mins", "centerings"):
        if name in fields and len(fields[name]) != count:
            raise FormatError(f"{path}: {len(fields[name])} {name} are given for {count} axes.")
    if "space directions" in fields:
        vectors = fields["space directions"]
        placed = ~np.isnan(vectors).all(axis=1)
        if vectors.shape[1] == 4:  # a space with time, as ITK writes 4D: those steps are in time
            placed &= vectors[:, 3] == 0
    elif "kinds" in fields:
        placed = np.array([k in _SPATIAL_KINDS or k in ("???", "none") for k in fields["kinds"]])
    else:
        placed = np.array([k < 3 for k in range(count)])  # a slowest fourth axis is time
    space = tuple(int(k) for k in np.flatnonzero(placed))
    others = [k for k in range(count) if k not in space]
    wide = [k for k in others if sizes[k] > 1]
    if len(space) not in (2, 3) or len(wide) > 1:
        raise FormatError(
            f"{path}: of its {count} axes {len(space)} lie in space and {len(wide)} hold "
            "channels; an image has 2 or 3, and at most 1. Split the file first."
        )
    return _Axes(space, wide[0] if wide else None)


def _channel_kind(fields: Mapping[str, Any], axes: _Axes) -> ChannelKind | None:
    """What the axis outside space holds, by its kind; None where the file does not say."""
    if axes.channel is None:
        return None
    kind = str(fields["kinds"][axes.channel] if "kinds" in fields else "???").lower()
    if "color" in kind:
        return "colour"
    unnamed = kind in ("???", "none", "list", "domain", "space")
    if kind == "time" or (unnamed and axes.channel > max(axes.space)):
        return "time"
    return None if kind in ("???", "none", "vector", "3-vector") else "other"


def _block_of(
    fields: Mapping[str, Any],
    path: Path,
    end: int,
    sizes: Sequence[int],
    axes: _Axes,
    strict: bool,
) -> Block:
    named = " ".join(str(_require_field(fields, "type", path)).split()).lower()
    code = next((c for c, names in TYPES.items() if named in names), None)
    if code is None:
        raise FormatError(
            f"{path} holds values of type {named!r}; images are integers or floats of 32 or 64 "
            "bits. Convert it first."
        )
    encoding = str(_require_field(fields, "encoding", path)).lower()
    if encoding not in CODECS:
        known = "raw, gzip, bzip2 or ascii"
        raise FormatError(f"{path}: its encoding {encoding!r} is not read; {known} is.")
    codec = CODECS[encoding]
    dtype = np.dtype(code)
    if dtype.itemsize > 1 and codec != "text":
        endian = str(_require_field(fields, "endian", path)).lower()
        if endian not in ("little", "big"):
            raise FormatError(f"{path}: its endian is {endian!r}; little or big is allowed.")
        dtype = dtype.newbyteorder("<" if endian == "little" else ">")
    kept = [k for k in range(len(sizes)) if k in axes.space or k == axes.channel]
    shape = tuple(sizes[k] for k in reversed(kept))
    channel_axis = None
    if axes.channel is not None:
        channel_axis = len(kept) - 1 - kept.index(axes.channel)
    block = Block(path, shape, dtype, end, codec, channel_axis=channel_axis, strict=strict)

    def skipped(part: Block) -> Block:
        part = replace(part, start=_skip_lines(part.path, part.start, fields.get("line skip", 0)))
        return _skip_bytes(part, fields.get("byte skip", 0))

    if "data file" not in fields:
        return skipped(block)
    files = find_files(path, fields["data file"], fields.get("listed files", ()))
    if len(files) == 1:
        return skipped(replace(block, path=files[0], start=0))
    return block.split_over(files, skipped)


def _skip_lines(path: Path, start: int, count: int) -> int:
    if count < 0:
        raise FormatError(f"{path}: a line skip of {count} is not possible; 0 or more is allowed.")
    with path.open("rb") as file:
        file.seek(start)
        for _ in range(count):
            if not file.readline(_MAX_LINE):
                raise FormatError(f"{path} is cut off: it has fewer than {count} lines to skip.")
        return file.tell()


def _skip_bytes(block: Block, count: int) -> Block:
    """Apply NRRD's byte skip: inside the decompressed stream; -1 takes the end of it."""
    if count == -1 and block.codec == "raw":
        return replace(block, start=max(block.path.stat().st_size - block.nbytes, 0))
    if count == -1 and block.codec != "text":
        return replace(block, skip=FROM_END)
    if count < 0:
        raise FormatError(f"{block.path}: a byte skip of {count} is not possible here.")
    if block.codec in ("raw", "text"):
        return replace(block, start=block.start + count)
    return replace(block, skip=count)


def _geometry_of(
    fields: Mapping[str, Any], path: Path, sizes: Sequence[int], axes: _Axes
) -> Geometry:
    space = list(axes.space)
    extent = [sizes[k] for k in space]
    if "space directions" in fields:
        vectors = np.asarray(fields["space directions"], dtype=np.float64)[space]
        width = vectors.shape[1]
        origin = np.asarray(fields.get("space origin", np.zeros(width)), dtype=np.float64)
        if width not in (2, 3, 4) or origin.shape != (width,):
            raise FormatError(f"{path}: its space has {width} axes; 2 or 3 (and time) are allowed.")
        vectors, origin, width = vectors[:, :3], origin[:3], min(width, 3)
        units = _millimetres_of(fields.get("space units", []))
        scale = np.array(_signs_of(fields))[:width] * units[:width]
        if np.isnan(origin).all():
            origin = np.zeros(width)
        return geometry_from_axes(path, extent, vectors * scale, origin * scale)
    steps = np.asarray(fields.get("spacings", np.ones(len(sizes))), dtype=np.float64)[space]
    lows = np.asarray(fields.get("axis mins", np.full(len(sizes), np.nan)), dtype=np.float64)
    # A cell's minimum is its edge, half a step before its centre; NRRD's default is the cell.
    at_node = [c == "node" for c in fields.get("centerings", ["cell"] * len(sizes))]
    half = np.array([0.0 if at_node[k] else 0.5 for k in space])
    origin = lows[space] + half * steps if np.isfinite(lows[space]).all() else np.zeros(len(space))
    return geometry_from_axes(
        path, extent, np.diag(steps), origin, has_spacing="spacings" in fields
    )


def _signs_of(fields: Mapping[str, Any]) -> tuple[int, int, int]:
    named = str(fields.get("space", "")).strip().lower().removesuffix("-time")
    named = SHORT_SPACES.get(named.removesuffix("t") if len(named) == 4 else named, named)
    return TO_LPS.get(named, (1, 1, 1))


def _millimetres_of(units: Sequence[str]) -> Array:
    """Millimetres per unit of each axis of space; unknown units count as millimetres."""
    known = [MILLIMETRES.get(str(u).strip().lower(), 1.0) for u in units]
    return np.array([*known, 1.0, 1.0, 1.0][:3])


def _units_of(like: Image | None) -> list[str]:
    """The image's own units, so that programs that ignore units (ITK) see both in one place."""
    units: list[str] = [] if like is None else list(like.metadata.get("space_units", []))
    return units if (_millimetres_of(units) != 1).any() else []


def _write(
    path: Path,
    pixels: Array,
    geometry: Geometry,
    *,
    num_channels: int | None,
    units: Sequence[str],
    segments: Sequence[Segment] | None = None,
) -> None:
    if path.name.lower().endswith(".nhdr"):
        raise FormatError(f"{path}: detached headers are only read; write .nrrd.")
    code = pixels.dtype.str[1:]
    if code not in WRITTEN_TYPES:
        raise FormatError(f"NRRD does not hold {pixels.dtype}; convert the image to float32.")
    grid = as_written(geometry)
    if grid.ndim > geometry.ndim:
        pixels = pixels[None]
    kind = _CHANNEL_KINDS_BY_COUNT.get(num_channels or 1, "vector")
    header = _header_lines(
        WRITTEN_TYPES[code], grid, units, num_channels, kind if segments is None else "list"
    )
    header += fields_of(segments or ())
    with atomic_path(path) as temporary:
        with gzip_writer(temporary) as packed:
            for slice_ in pixels:  # one at a time: no second copy of the volume
                packed.write(np.ascontiguousarray(slice_).data)
        compressed = temporary.read_bytes()
        with temporary.open("wb") as file:
            file.write("\n".join([*header, "", ""]).encode())
            file.write(compressed)


def _header_lines(
    type_name: str,
    geometry: Geometry,
    units: Sequence[str],
    num_channels: int | None,
    channel_kind: str,
) -> list[str]:
    vectors, origin = axes_of(geometry)
    scale = _millimetres_of(units)[: len(origin)]
    vectors, origin = vectors / scale, origin / scale
    sizes = [str(n) for n in geometry.shape[::-1]]
    kinds = ["domain"] * len(sizes)
    directions = [_vector(row) for row in vectors]
    if num_channels is not None:
        sizes.insert(0, str(num_channels))
        kinds.insert(0, channel_kind)
        directions.insert(0, "none")
    if len(origin) == 3:
        space = "space: left-posterior-superior"
    else:
        space = "space dimension: 2"
    lines = [
        "NRRD0005",
        f"type: {type_name}",
        f"dimension: {len(sizes)}",
        space,
        f"sizes: {' '.join(sizes)}",
    ]
    if geometry.has_spacing:
        lines += [
            f"space directions: {' '.join(directions)}",
            f"space origin: {_vector(origin)}",
        ]
        if units:
            quoted = " ".join(f'"{u}"' for u in units[: len(origin)])
            lines.append(f"space units: {quoted}")
    else:
        lines.remove(space)
    lines += [f"kinds: {' '.join(kinds)}", "endian: little", "encoding: gzip"]
    return lines


def _vector(numbers: Array) -> str:
    return f"({','.join(repr(float(x)) for x in numbers)})"
