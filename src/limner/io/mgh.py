"""FreeSurfer's volumes: .mgh, and .mgz, the same in gzip.

A header of 284 bytes in big-endian order says how many voxels there are along x (fastest), y and z
and how many frames, and where the middle of the volume is in RAS millimetres; what follows the
pixels (scanner parameters, tags) is passed over. Frames become channels. The format is described at
https://surfer.nmr.mgh.harvard.edu/fswiki/FsTutorial/MghFormat.
"""

from __future__ import annotations

import struct
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from limner.atomic import atomic_path
from limner.errors import FormatError
from limner.geometry import Geometry
from limner.io._block import Block, block_image
from limner.io._grid import geometry_from_axes
from limner.io._inflate import GZIP_MAGIC, gzip_writer, peek_gzip
from limner.io.image import Image
from limner.io.labels import Labels

Array = NDArray[Any]

NAME = "mgh"

_HEADER = struct.Struct(">7ih15f")
_HEADER_BYTES = 284
_VERSION = 1
_MAX_SIZE = 1 << 20  # voxels along an axis
_DTYPES = {0: ">u1", 1: ">i4", 3: ">f4", 4: ">i2", 10: ">u2"}
_CORONAL = ((-1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, -1.0, 0.0))  # as nibabel, where there is none
_RAS_TO_LPS = np.diag((-1.0, -1.0, 1.0))


def sniff(path: Path, head: bytes) -> bool:
    """Whether the file begins with a header of FreeSurfer, compressed or not."""
    if head.startswith(GZIP_MAGIC):
        head = peek_gzip(path, _HEADER_BYTES)
    if len(head) < _HEADER.size:
        return False
    version, *sizes, code, _ = _HEADER.unpack_from(head)[:7]
    return version == _VERSION and code in _DTYPES and all(0 < n <= _MAX_SIZE for n in sizes)


def read(
    path: Path, *, channel: int | None = None, series: str | None = None, strict: bool = True
) -> Image:
    """Read a volume: the header now, the pixels when they are wanted.

    Args:
        path: the file.
        channel: take only this one of several frames.
        series: ignored.
        strict: ignored.

    Raises:
        FormatError: not of this format, cut off, or of a type that is no image.
        GeometryError: a spacing of 0 or NaN, or axes that point the same way.
    """
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
    packed = head.startswith(GZIP_MAGIC)
    if packed:
        head = peek_gzip(path, _HEADER_BYTES)
    if len(head) < _HEADER_BYTES or not sniff(path, head):
        raise FormatError(f"{path} is no volume of FreeSurfer, or its header is damaged.")
    _, *sizes, frames, code, dof, has_place = _HEADER.unpack_from(head)[:8]
    block = Block(
        path,
        (*([frames] if frames > 1 else []), *sizes[::-1]),
        np.dtype(_DTYPES[code]),
        start=0 if packed else _HEADER_BYTES,
        codec="gzip" if packed else "raw",
        skip=_HEADER_BYTES if packed else 0,
        channel_axis=0 if frames > 1 else None,
        trailer=True,
    )
    block.check_size()
    return block_image(
        block.select(channel),
        _geometry_of(path, sizes, _HEADER.unpack_from(head)[8:], bool(has_place)),
        path=path,
        format=NAME,
        metadata={"stored_type": str(block.dtype), "degrees_of_freedom": dof},
        channel_kind="time",
    )


def write(path: Path, labels: Labels, *, like: Image | None) -> None:
    """Write a label map: bytes where the ids allow it, else 32-bit integers, as FreeSurfer does.

    Args:
        path: ends in ``.mgh`` or ``.mgz``.
        labels: where objects overlap the higher id wins.
        like: not used.

    Raises:
        FormatError: an id beyond 32 bits.
    """
    if max(labels.ids, default=0) >= 1 << 31:
        raise FormatError(f"{path}: FreeSurfer holds ids below 2³¹, not {max(labels.ids)}.")
    dtype = np.uint8 if max(labels.ids, default=0) < 256 else np.int32
    _write(path, np.asarray(labels.to_array()).astype(dtype), labels.geometry, None)


def write_image(path: Path, image: Image) -> None:
    """Write an image; channels become frames.

    Raises:
        FormatError: the pixel type has no place in the format.
    """
    pixels = image.array.astype(np.uint8) if image.dtype.kind == "b" else image.array
    _write(path, pixels, image.geometry, image.num_channels)


def _geometry_of(
    path: Path, sizes: list[int], numbers: tuple[float, ...], has_place: bool
) -> Geometry:
    """The grid in LPS; without a place coronal slices of 1 mm."""
    steps, axes = np.array(numbers[:3]), np.array(numbers[3:12]).reshape(3, 3)
    centre = np.array(numbers[12:])
    if not has_place:
        steps, axes, centre = np.ones(3), np.array(_CORONAL), np.zeros(3)
    vectors = axes * steps[:, None]
    origin = centre - np.array(sizes) / 2 @ vectors
    return geometry_from_axes(
        path, sizes, vectors @ _RAS_TO_LPS, _RAS_TO_LPS @ origin, has_spacing=has_place
    )


def _write(path: Path, pixels: Array, geometry: Geometry, num_channels: int | None) -> None:
    code = next((c for c, t in _DTYPES.items() if np.dtype(t) == pixels.dtype.newbyteorder(">")), 0)
    if np.dtype(_DTYPES[code]) != pixels.dtype.newbyteorder(">"):
        raise FormatError(
            f"{path}: FreeSurfer does not hold {pixels.dtype}; convert the image to float32."
        )
    sizes = [*geometry.shape[::-1], 1][:3]
    vectors = geometry.affine[:3, 2::-1].T @ _RAS_TO_LPS
    steps = np.linalg.norm(vectors, axis=1)
    centre = _RAS_TO_LPS @ geometry.affine[:3, 3] + np.array(sizes) / 2 @ vectors
    axes = (vectors / steps[:, None]).ravel()
    place = int(geometry.has_spacing)
    head = _HEADER.pack(_VERSION, *sizes, num_channels or 1, code, 0, place, *steps, *axes, *centre)
    frames = [pixels] if num_channels is None else [pixels[..., k] for k in range(num_channels)]
    with atomic_path(path) as temporary, ExitStack() as stack:
        packed = path.name.lower().endswith("z")
        file: BinaryIO = stack.enter_context(
            gzip_writer(temporary) if packed else temporary.open("wb")
        )
        file.write(head.ljust(_HEADER_BYTES, b"\0"))
        for frame in frames:
            for slice_ in frame:  # one at a time: no second copy of the volume
                file.write(np.ascontiguousarray(slice_, dtype=_DTYPES[code]).data)
