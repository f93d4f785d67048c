"""MetaImage: .mha, and .mhd with plain files of pixels beside it.

MetaImage lists its axes from the fastest to the slowest and is in LPS, as all of ITK. A header may
name ``LOCAL`` or files of its own folder, alone, in a list or by a pattern; paths are refused,
because they could name any file of the machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from limner.atomic import atomic_path
from limner.errors import FormatError, GeometryError
from limner.geometry import Geometry
from limner.io._block import Block, block_image
from limner.io._detached import find_files
from limner.io._grid import as_written, axes_of, geometry_from_axes
from limner.io._inflate import zlib_compress
from limner.io.image import Image
from limner.io.labels import Labels

Array = NDArray[Any]

NAME = "mha"

_MAX_HEADER = 1 << 16  # bytes
_MAX_LIST = 1 << 23  # bytes of names of files
_FIRST_KEYS = ("objecttype", "ndims", "comment", "objectsubtype", "name", "id")
_DTYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",  # 4 bytes in the file on every machine
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_WRITTEN_TYPES = {v: k for k, v in _DTYPES.items() if "LONG" not in k or "LONG_LONG" in k}
_ORIGIN_KEYS = ("offset", "position", "origin")
_DIRECTION_KEYS = ("transformmatrix", "orientation", "rotation")
_MILLIMETRES = {"um": 1e-3, "mm": 1.0, "cm": 10.0}


def sniff(path: Path, head: bytes) -> bool:
    """Whether the file begins with lines of MetaImage's header."""
    first = head.lstrip()[:64].split(b"=", 1)
    if len(first) != 2 or first[0].strip().lower().decode("ascii", "replace") not in _FIRST_KEYS:
        return False
    return any(word in head.lower() for word in (b"ndims", b"dimsize", b"elementtype"))


def read(
    path: Path, *, channel: int | None = None, series: str | None = None, strict: bool = True
) -> Image:
    """Read a MetaImage: the header now, the pixels when they are wanted.

    Args:
        path: the file, or a detached header.
        channel: take only this one of several channels (or time points of a 4D file).
        series: ignored.
        strict: False accepts foreign bytes behind compressed pixels.

    Raises:
        FormatError: not MetaImage, cut off, or pixels that are elsewhere or no image.
        GeometryError: a spacing of 0 or NaN, or axes that point the same way.
    """
    fields, end = _read_header(path)
    sizes = [int(n) for n in _numbers(fields, "dimsize", path)]
    if len(sizes) != int(_numbers(fields, "ndims", path)[0]) or not 2 <= len(sizes) <= 4:
        raise FormatError(f"{path}: DimSize {sizes} does not fit NDims; 2 to 4 axes are read.")
    block = _block_of(fields, path, end, sizes, strict)
    block.check_size()
    geometry = _geometry_of(fields, path, sizes)
    metadata = {
        "stored_type": fields["elementtype"],
        "distance_units": fields.get("distanceunits", "mm"),
    }
    return block_image(
        block.select(channel),
        geometry,
        path=path,
        format=NAME,
        modality=_modality_of(fields),
        metadata=metadata,
        channel_kind="time" if len(sizes) == 4 and sizes[3] > 1 else None,
    )


def write(path: Path, labels: Labels, *, like: Image | None) -> None:
    """Write a label map in the smallest unsigned type, compressed.

    Args:
        path: ends in ``.mha``.
        labels: where objects overlap the first of `Labels.order` is written.
        like: the image they belong to. If it was MetaImage, its unit of length is repeated.

    Raises:
        GeometryError: the grid is sheared, which MetaImage cannot hold.
    """
    pixels = np.asarray(labels.to_array())
    _write(path, pixels, labels.geometry, num_channels=None, unit=_unit_of(like))


def check_writable(path: Path, like: Image) -> None:
    """Refuse a sheared grid.

    Raises:
        GeometryError: as for `write`.
    """
    _refuse_shear(like.geometry)


def write_image(path: Path, image: Image) -> None:
    """Write an image, compressed; channels become values of one pixel."""
    pixels = image.array
    if pixels.dtype.kind == "b":
        pixels = pixels.astype(np.uint8)
    unit = _unit_of(image)
    _write(path, pixels, image.geometry, num_channels=image.num_channels, unit=unit)


def _read_header(path: Path) -> tuple[dict[str, str], int]:
    """The fields by lower-case name, and the byte behind the header; under an empty name the lines
    behind it, where these list the files of the pixels.
    """
    with path.open("rb") as file:
        head = file.read(_MAX_HEADER)
    fields: dict[str, str] = {}
    end = 0
    for line in head.split(b"\n"):
        end += len(line) + 1
        if not line.strip():
            continue
        key, found, value = line.decode("utf-8", "replace").partition("=")
        if not found or len(key) > 80:
            break
        fields[key.strip().lower()] = value.strip()
        if key.strip().lower() == "elementdatafile":  # always the last
            if value.split()[:1] == ["LIST"]:
                fields[""] = _read_list(path, end)
            return fields, min(end, len(head))
    raise FormatError(
        f"{path} is not a MetaImage, or its header is cut off: no ElementDataFile in it."
    )


def _read_list(path: Path, start: int) -> str:
    """The names of files behind a header."""
    with path.open("rb") as file:
        file.seek(start)
        content = file.read(_MAX_LIST + 1)
    if len(content) > _MAX_LIST:
        raise FormatError(f"{path}: its list of files has more than {_MAX_LIST >> 20} MB.")
    return content.decode("utf-8", "replace").rstrip("\0")


def _numbers(fields: Mapping[str, str], name: str, path: Path) -> list[float]:
    try:
        numbers = [float(word) for word in fields[name].split()]
    except (KeyError, ValueError):
        numbers = []
    if not numbers or not np.isfinite(numbers).all():
        given = fields.get(name)
        problem = "is missing" if given is None else f"is {given!r}, which is not finite numbers"
        raise GeometryError(f"{path}: the field {name} of its header {problem}.")
    return numbers


def _flag(fields: Mapping[str, str], *names: str) -> bool:
    return any(fields.get(name, "").lower() in ("true", "1") for name in names)


def _block_of(
    fields: Mapping[str, str], path: Path, end: int, sizes: list[int], strict: bool
) -> Block:
    element = fields.get("elementtype", "").upper().removesuffix("_ARRAY")
    if element not in _DTYPES:
        raise FormatError(
            f"{path} holds elements of type {element or 'unknown'!r}; images are integers or "
            "floats. Convert it first."
        )
    big = _flag(fields, "binarydatabyteordermsb", "elementbyteordermsb")
    dtype = np.dtype(_DTYPES[element]).newbyteorder(">" if big else "<")
    count = (
        int(_numbers(fields, "elementnumberofchannels", path)[0])
        if "elementnumberofchannels" in fields
        else 1
    )
    shape, channel_axis = tuple(sizes[::-1]), None
    if min(shape) < 1 or count < 1:
        raise FormatError(f"{path}: DimSize {sizes} with {count} channels holds no pixel.")
    if len(sizes) == 4:
        if count > 1 and sizes[3] > 1:
            raise FormatError(f"{path} is a series of colour volumes; split it into files first.")
        shape, channel_axis = (shape, 0) if sizes[3] > 1 else (shape[1:], None)
    if count > 1:
        shape, channel_axis = (*shape, count), len(shape)
    codec: Literal["raw", "text", "zlib"] = "raw"
    if _flag(fields, "compresseddata"):
        codec = "zlib"
    elif fields.get("binarydata", "true").lower() in ("false", "0"):
        codec = "text"
    block = Block(path, shape, dtype, end, codec, channel_axis=channel_axis, strict=strict)
    name = fields["elementdatafile"]
    if name.upper() == "LOCAL":
        return _skip_header(block, fields, path)
    files = find_files(path, name, fields.get("", "").splitlines())
    if len(files) == 1:
        return _skip_header(replace(block, path=files[0], start=0), fields, path)
    return block.split_over(files, lambda piece: _skip_header(piece, fields, path))


def _skip_header(block: Block, fields: Mapping[str, str], path: Path) -> Block:
    """Apply HeaderSize: bytes before the pixels of another file; -1 takes the end of the file."""
    if "headersize" not in fields or block.codec != "raw":
        return block
    size = int(_numbers(fields, "headersize", path)[0])
    if size == -1:
        return replace(block, start=max(block.path.stat().st_size - block.nbytes, 0))
    return replace(block, start=max(block.start, size))


def _geometry_of(fields: Mapping[str, str], path: Path, sizes: list[int]) -> Geometry:
    count, full = min(len(sizes), 3), len(sizes)
    named = next((n for n in ("elementspacing", "elementsize") if n in fields), None)
    steps = _numbers(fields, named, path) if named else [1.0] * full
    direction = np.eye(full)
    origin = [0.0] * full
    for name in _DIRECTION_KEYS:
        if name in fields:
            numbers = _numbers(fields, name, path)
            if len(numbers) != full * full:
                raise FormatError(f"{path}: {name} has {len(numbers)} numbers for {full} axes.")
            direction = np.array(numbers).reshape(full, full)
    for name in _ORIGIN_KEYS:
        if name in fields:
            origin = _numbers(fields, name, path)
    if len(steps) != full or len(origin) != full:
        raise FormatError(f"{path}: spacing {steps} and offset {origin} do not fit {full} axes.")
    if min(steps) <= 0:
        raise GeometryError(
            f"{path}: its spacing is {steps} mm (fastest axis first); every spacing must be above "
            "0. Correct the header first."
        )
    scale = _MILLIMETRES.get(fields.get("distanceunits", "mm").lower(), 1.0)
    vectors = (direction * np.array(steps)[:, None])[:count, :count] * scale
    return geometry_from_axes(
        path, sizes[:count], vectors, np.array(origin[:count]) * scale, has_spacing=bool(named)
    )


def _modality_of(fields: Mapping[str, str]) -> str | None:
    """MetaImage's modality, such as ``MET_MOD_CT``, as DICOM's term."""
    term = fields.get("modality", "").upper().removeprefix("MET_MOD_")
    return {"CT": "CT", "MR": "MR", "US": "US", "NM": "NM"}.get(term)


def _unit_of(like: Image | None) -> str:
    """The image's own unit, so that programs that ignore units (ITK) see both in one place."""
    if like is None or like.format != NAME:
        return "mm"
    unit = str(like.metadata["distance_units"]).lower()
    return unit if unit in _MILLIMETRES else "mm"


def _write(
    path: Path, pixels: Array, geometry: Geometry, *, num_channels: int | None, unit: str
) -> None:
    if path.name.lower().endswith(".mhd"):
        raise FormatError(f"{path}: detached headers are only read; write .mha.")
    _refuse_shear(geometry)
    geometry = as_written(geometry)
    vectors, origin = axes_of(geometry)
    vectors, origin = vectors / _MILLIMETRES[unit], origin / _MILLIMETRES[unit]
    code = pixels.dtype.str[1:]
    if code not in _WRITTEN_TYPES:
        raise FormatError(f"MetaImage does not hold {pixels.dtype}; convert the image to float32.")
    packed = zlib_compress(np.ascontiguousarray(pixels).data)
    steps = np.linalg.norm(vectors, axis=1)
    lines = [
        "ObjectType = Image",
        f"NDims = {geometry.ndim}",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        "CompressedData = True",
        f"CompressedDataSize = {len(packed)}",
        f"TransformMatrix = {_join((vectors / steps[:, None]).ravel())}",
        f"Offset = {_join(origin)}",
        f"ElementSpacing = {_join(steps)}",
        *([] if unit == "mm" else [f"DistanceUnits = {unit}"]),
        f"DimSize = {' '.join(str(n) for n in geometry.shape[::-1])}",
        *([] if num_channels is None else [f"ElementNumberOfChannels = {num_channels}"]),
        f"ElementType = {_WRITTEN_TYPES[code]}",
        "ElementDataFile = LOCAL",
        "",
    ]
    if not geometry.has_spacing:
        lines = [line for line in lines if not line.startswith("ElementSpacing")]
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write("\n".join(lines).encode("ascii"))
        file.write(packed)


def _refuse_shear(geometry: Geometry) -> None:
    if not geometry.is_orthogonal:
        raise GeometryError(
            "MetaImage cannot hold a sheared grid (a tilted gantry); write .nii.gz or .nrrd."
        )


def _join(numbers: Array) -> str:
    return " ".join(repr(float(x)) for x in numbers)
