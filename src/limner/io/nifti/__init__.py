"""NIfTI-1 and NIfTI-2, single files and .hdr/.img pairs, plain or gzip.

NIfTI counts (i, j, k) with i fastest and says where a voxel is in RAS millimetres; here index order
is ``(slice, row, column)`` = (k, j, i) and the affine is LPS. Nothing is flipped: only the names of
the axes and the signs of x and y change. The sform wins over the qform, as in nibabel; where they
differ a warning says so, for ITK may take the other. A file with neither gets nibabel's convention
for ANALYZE (x to the left, origin in the middle).
Spatial units of metres and micrometres are converted to millimetres; a mask is written with the
units, codes and numbers of the image it belongs to, bit for bit.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from limner.atomic import atomic_path
from limner.errors import FormatError
from limner.geometry import Geometry
from limner.io._block import Block, block_image
from limner.io._grid import as_written
from limner.io._inflate import GZIP_MAGIC, gzip_writer, peek_gzip
from limner.io.image import Image
from limner.io.labels import Labels
from limner.io.nifti.header import (
    COLOURS,
    INTENT_LABEL,
    NiftiHeader,
    geometry_of,
    is_header,
    metadata_of,
    new_header,
    parse_header,
    read_header,
    repeats_grid,
    scaling_of,
)

Array = NDArray[Any]

NAME = "nifti"


def sniff(path: Path, head: bytes) -> bool:
    """Whether the file begins with a NIfTI header, compressed or not."""
    if head.startswith(GZIP_MAGIC):
        head = peek_gzip(path, 348)
    return is_header(head)


def read(
    path: Path, *, channel: int | None = None, series: str | None = None, strict: bool = True
) -> Image:
    """Read a NIfTI file: the header now, the pixels when they are wanted.

    The type stays as stored; where the header rescales (slope and intercept other than 1 and 0) the
    pixels become float32 (float64 for types wider than 16 bits). Time and vector axes become
    channels, last.

    Args:
        path: the file, or either file of a pair.
        channel: take only this one of several channels or time points.
        series: ignored.
        strict: False accepts foreign bytes behind the data and a spacing of 0 (taken as 1).

    Raises:
        FormatError: not NIfTI, cut off, or of a type that is no image.
        GeometryError: a spacing of 0 or NaN, or an affine that maps axes onto each other.
    """
    header_path = _partner(path, ".img", ".hdr") if _is_named(path, ".img") else path
    header = read_header(header_path)
    facts = parse_header(header, header_path)
    pixel_path = _partner(header_path, ".hdr", ".img") if facts.paired else header_path
    block = _block_of(facts, pixel_path, strict)
    block.check_size()
    geometry = geometry_of(header, facts, header_path, strict)
    slope, intercept = scaling_of(header, header_path)
    convert, dtype = None, None
    if (slope, intercept) != (1.0, 0.0) and not facts.colours:
        dtype = np.result_type(block.dtype.newbyteorder("="), np.float32)
        convert = partial(_rescale, dtype=dtype, slope=slope, intercept=intercept)
    return block_image(
        block.select(channel),
        geometry,
        path=path,
        format=NAME,
        metadata=metadata_of(header, facts, geometry),
        convert=convert,
        dtype=dtype,
        channel_kind=facts.channel_kind,
    )


def write(path: Path, labels: Labels, *, like: Image | None) -> None:
    """Write a label map in the smallest unsigned type.

    Args:
        path: ends in ``.nii`` or ``.nii.gz``.
        labels: where objects overlap the first of `Labels.order` is written.
        like: the image they belong to. If it was NIfTI, its sform, qform, codes and units are
            repeated exactly.
    """
    pixels = np.asarray(labels.to_array())
    _write(path, pixels, labels.geometry, like, num_channels=None, intent=INTENT_LABEL)


def write_image(path: Path, image: Image) -> None:
    """Write an image; 8-bit colour as RGB or RGBA, other channels along the fourth axis."""
    pixels = image.array
    if pixels.dtype.kind == "b":
        pixels = pixels.astype(np.uint8)
    if pixels.dtype == np.float16:
        pixels = pixels.astype(np.float32)
    _write(path, pixels, image.geometry, image, num_channels=image.num_channels, intent=0)


def _is_named(path: Path, suffix: str) -> bool:
    return path.name.lower().endswith((suffix, suffix + ".gz"))


def _partner(path: Path, mine: str, other: str) -> Path:
    """The other file of a pair: `mine` and `other` are their suffixes."""
    stem = path.name[: path.name.lower().rindex(mine)] if _is_named(path, mine) else path.stem
    for suffix in (other, f"{other}.gz", other.upper(), f"{other.upper()}.gz"):
        if (path.parent / f"{stem}{suffix}").is_file():
            return path.parent / f"{stem}{suffix}"
    raise FormatError(
        f"{path} is half of a .hdr/.img pair, and {stem}{other} is not beside it; keep both in "
        "one folder."
    )


def _block_of(facts: NiftiHeader, path: Path, strict: bool) -> Block:
    space = facts.dims[:3][::-1]
    channels = prod(facts.dims[3:])
    axis: int | None = None
    shape: tuple[int, ...] = space
    if facts.colours:
        if channels > 1:
            raise FormatError(
                f"{path} is a series of {channels} colour volumes; split it into files first."
            )
        shape, axis = (*space, facts.colours), len(space)
    elif channels > 1:
        shape, axis = (channels, *space), 0
    with path.open("rb") as file:
        packed = file.read(2) == GZIP_MAGIC
    return Block(
        path,
        shape,
        facts.dtype,
        start=0 if packed else facts.offset,
        codec="gzip" if packed else "raw",
        skip=facts.offset if packed else 0,
        channel_axis=axis,
        strict=strict,
    )


def _rescale(values: Array, *, dtype: np.dtype[Any], slope: float, intercept: float) -> Array:
    scaled = values.astype(dtype)
    scaled *= slope
    scaled += intercept
    return scaled


def _write(
    path: Path,
    pixels: Array,
    geometry: Geometry,
    like: Image | None,
    *,
    num_channels: int | None,
    intent: int,
) -> None:
    if not repeats_grid(geometry, like):
        grid = as_written(geometry)
        pixels, geometry = pixels.reshape(grid.shape + pixels.shape[geometry.ndim :]), grid
    header = new_header(pixels, geometry, like, num_channels)
    header["intent_code"] = intent
    if num_channels is not None and int(header["datatype"]) not in COLOURS:
        pixels = np.moveaxis(pixels, -1, 0)
    with atomic_path(path) as temporary, ExitStack() as stack:
        packed = path.name.lower().endswith(".gz")
        file: BinaryIO = stack.enter_context(
            gzip_writer(temporary) if packed else temporary.open("wb")
        )
        file.write(header.binaryblock + b"\0\0\0\0")  # no extensions
        for slice_ in pixels:  # one at a time: no second copy of the volume
            file.write(np.ascontiguousarray(slice_).data)
