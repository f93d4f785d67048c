"""TIFF metadata: pixel size, limner's own block, completeness."""

from __future__ import annotations

import json
import math
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage, TiffPageSeries

KEY = "limner"  # of our block in the ImageDescription: geometry, kind and names as JSON

# Per unit, in millimetres. ImageJ writes free text; OME the symbols of its schema.
_UNIT_MM = {
    "m": 1e3,
    "dm": 1e2,
    "cm": 10.0,
    "mm": 1.0,
    "µm": 1e-3,
    "um": 1e-3,
    "micron": 1e-3,
    "microns": 1e-3,
    "micrometer": 1e-3,
    "micrometre": 1e-3,
    "nm": 1e-6,
    "pm": 1e-9,
    "å": 1e-7,
    "in": 25.4,
    "inch": 25.4,
}

# ImageDescription, XResolution, YResolution, ColorMap: without them pixels mean something else.
_TAGS_THAT_MATTER = (270, 282, 283, 320)

_OTHER_VIEWS = ("label", "macro")  # photographs of the glass, not of the specimen
_SAME_ASPECT = 0.02  # of the ratio of rows to columns: sizes are rounded
_MAX_TILE = 1 << 26  # pixels; real tiles have 256² to 4096², but a damaged file may claim any size

_MAX_IMAGEJ_CHANNELS = 7

Spacing = tuple[float | None, float | None, float | None]  # slice, row, column; None if not stated


def series_spacing(file: TiffFile, number: int) -> Spacing:
    """Millimetres per slice, row and column of an image of the file, None where not stated.

    What is stated is about the first image. Another one that shows the same, such as the thumbnail
    of a slide, has it in proportion to its size; the label and the macro photograph have none.
    """
    base, series = file.series[0], file.series[number]
    if number == 0 or (file.is_ome and series.kind == "ome"):
        return spacing_mm(file, series, number)
    slices, *in_slice = spacing_mm(file, base, 0)
    if str(series.name).strip().lower() in _OTHER_VIEWS:
        return None, None, None
    ratios = [base.shape[base.axes.index(a)] / series.shape[series.axes.index(a)] for a in "YX"]
    if abs(ratios[0] / ratios[1] - 1) > _SAME_ASPECT:
        return None, None, None
    rows, columns = (None if s is None else s * r for s, r in zip(in_slice, ratios, strict=True))
    return slices, rows, columns


def spacing_mm(file: TiffFile, series: TiffPageSeries, number: int) -> Spacing:
    """Millimetres per slice, row and column of series `number`, each None where not stated.

    Only writers that mean the size of the specimen are believed: OME, ImageJ (with a unit), Zeiss
    LSM and Aperio. The resolution of an ordinary TIFF in dots per inch or centimetre tells a
    printer how large to print (72, 96 and 300 are defaults of programs), so it counts as unknown.
    """
    if file.is_ome and series.kind == "ome":
        return _ome_spacing(file, number)
    if file.is_imagej:
        return _imagej_spacing(file)
    if file.is_lsm:
        facts = file.lsm_metadata or {}
        return _check_spacing([_number(facts.get(f"VoxelSize{a}")) for a in "ZYX"], 1e3)  # metres
    if file.is_svs:
        return _aperio_spacing(file)
    return None, None, None


def axes_of(file: TiffFile, series: TiffPageSeries) -> str:
    """A letter per axis, as tifffile has them.

    ImageJ shows at most 7 channels at once; a stack of more, and of nothing else, are slices whose
    writer named no axes.
    """
    axes = str(series.axes)
    many = file.is_imagej and axes == "CYX" and series.shape[0] > _MAX_IMAGEJ_CHANNELS
    return "ZYX" if many else axes


def own_block(page: TiffPage) -> dict[str, Any]:
    """The block that limner wrote into the description of the first page, else an empty one."""
    text = page.description
    try:
        if text.startswith("{"):
            block = json.loads(text).get(KEY, {})
        else:  # ImageJ's lines of name=value
            lines = [line for line in text.splitlines() if line.startswith(f"{KEY}=")]
            block = json.loads(lines[0].partition("=")[2]) if lines else {}
    except (ValueError, AttributeError, RecursionError):
        return {}
    return block if isinstance(block, dict) else {}


def check_chain(file: TiffFile) -> None:
    """Check that the list of pages and the first page's tags are whole, before any is followed.

    tifffile takes the pages and tags it can find and only logs that others are missing.

    Raises:
        ValueError: the list is cut off or runs in a circle, or a tag that matters is lost.
    """
    tiff, handle = file.tiff, file.filehandle
    first = file.pages.first
    handle.seek(first.offset)
    (num_tags,) = struct.unpack(tiff.tagnoformat, handle.read(tiff.tagnosize))
    content = handle.read(num_tags * tiff.tagsize)
    for at in range(0, len(content) - 1, tiff.tagsize):
        (code,) = struct.unpack_from(f"{tiff.byteorder}H", content, at)
        if code in _TAGS_THAT_MATTER and code not in first.tags:
            raise ValueError(f"tag {code} lies beyond the end of the file")
    seen: set[int] = set()
    offset = first.offset
    while offset:
        if offset in seen:  # tifffile would follow it for ever
            raise ValueError("its list of pages runs in a circle")
        if offset >= handle.size:
            raise ValueError(f"the file ends after {len(seen)} pages, but there are more")
        seen.add(offset)
        offset = _next_page(file, offset)


def _next_page(file: TiffFile, offset: int) -> int:
    """Byte at which the page behind the one at `offset` begins, 0 behind the last."""
    tiff, handle = file.tiff, file.filehandle
    handle.seek(offset)
    content = handle.read(tiff.tagnosize)
    if len(content) == tiff.tagnosize:
        (num_tags,) = struct.unpack(tiff.tagnoformat, content)
        handle.seek(offset + tiff.tagnosize + num_tags * tiff.tagsize)
        content = handle.read(tiff.offsetsize)
        if len(content) == tiff.offsetsize:
            return int(struct.unpack(tiff.offsetformat, content)[0])
    raise ValueError("the file ends inside its list of pages")


def check_extent(page: Any, size: int) -> None:
    """Check that all strips or tiles of a page lie inside the file.

    Empty tiles are legal (slide scanners leave out glass); empty strips are not.

    Raises:
        ValueError: pixels are missing.
    """
    if page.keyframe.is_tiled and page.keyframe.tilewidth * page.keyframe.tilelength > _MAX_TILE:
        raise ValueError(f"page {page.index} claims tiles of more than {_MAX_TILE:,} pixels")
    offsets, counts = page.dataoffsets, page.databytecounts
    key = page.keyframe
    if len(offsets) != len(counts) or not offsets:
        raise ValueError(f"page {page.index} has no table of its pixels")
    if key.is_tiled and len(offsets) < math.prod(key.chunked):
        raise ValueError(f"page {page.index} lists too few tiles for its size")
    if any(o + n > size for o, n in zip(offsets, counts, strict=True)):
        raise ValueError(f"the file ends inside page {page.index}")
    if not key.is_tiled and min(counts) == 0:
        raise ValueError(f"page {page.index} has empty strips")
    if key.compression == 1 and not key.is_tiled and sum(counts) * 8 < key.size * key.bitspersample:
        raise ValueError(f"page {page.index} has too few bytes for its pixels")


def _ome_spacing(file: TiffFile, number: int) -> Spacing:
    from xml.etree import ElementTree as ET

    root = ET.fromstring(file.ome_metadata or "<OME/>")
    pixels = [e for e in root.iter() if e.tag.rpartition("}")[2] == "Pixels"]
    if number >= len(pixels):
        return None, None, None
    element, values = pixels[number], list[float | None]()
    for axis in "ZYX":
        size = _number(element.get(f"PhysicalSize{axis}"))
        unit = _unit(element.get(f"PhysicalSize{axis}Unit", "µm"))
        values.append(None if size is None or unit is None else size * unit)
    return _check_spacing(values, 1.0)


def _imagej_spacing(file: TiffFile) -> Spacing:
    facts = file.imagej_metadata or {}
    unit = _unit(str(facts.get("unit", "")))
    if unit is None:
        return None, None, None
    tags = file.pages.first.tags
    steps = [_pixels_per_unit(tags.valueof(name)) for name in ("YResolution", "XResolution")]
    in_slice = [None if s is None else 1.0 / s for s in steps]
    return _check_spacing([_number(facts.get("spacing")), *in_slice], unit)


def _aperio_spacing(file: TiffFile) -> Spacing:
    for field in file.pages.first.description.split("|"):
        name, _, value = field.partition("=")
        if name.strip() == "MPP":  # micrometres per pixel
            size = _number(value)
            return _check_spacing([None, size, size], 1e-3)
    return None, None, None


def _pixels_per_unit(value: Any) -> float | None:
    try:
        numerator, denominator = value
        return _number(numerator / denominator)
    except (TypeError, ValueError, ZeroDivisionError):
        return None


def _unit(text: str) -> float | None:
    name = text.strip().replace("\\u00B5", "µ").replace("\u03bc", "µ").lower()
    return _UNIT_MM.get(name)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def _check_spacing(values: list[float | None], scale: float) -> Spacing:
    slices, rows, columns = (None if v is None else v * scale for v in values)
    return slices, rows, columns
