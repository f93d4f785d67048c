"""NNIA: the compressed arrays of the nnInteractive protocol, with limits before memory is taken.

Layout: ``NNIA``, version 1, codec, number of axes, length of the dtype's name, the name, the shape
as int64, the number of chunks, then of each chunk its length, its compressed length and a blosc2
frame; all little-endian.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import blosc2
import numpy as np
from numpy.typing import NDArray

from limner.errors import FormatError
from limner.server.failures import Refused

_CHUNK = 1 << 30
_DTYPES = frozenset(
    ["bool", *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64))]
    + [f"float{n}" for n in (16, 32, 64)]
)


def pack_nnia(array: NDArray[Any]) -> bytes:
    """An array as NNIA bytes."""
    array = np.ascontiguousarray(array)
    name = array.dtype.name.encode()
    raw = array.reshape(-1).view(np.uint8)
    chunks = [raw[k : k + _CHUNK] for k in range(0, raw.size, _CHUNK)]
    parts = [
        struct.pack("<4sBBBB", b"NNIA", 1, 1, array.ndim, len(name)),
        name,
        struct.pack(f"<{array.ndim}qI", *array.shape, len(chunks)),
    ]
    for chunk in chunks:
        # A buffer of zeros whose length is no multiple of the type's size cannot be read again.
        frame = blosc2.compress2(
            chunk.tobytes(), typesize=array.dtype.itemsize, codec=blosc2.Codec.ZSTD, clevel=1
        )
        parts += [struct.pack("<QQ", chunk.size, len(frame)), frame]
    return b"".join(parts)


def unpack_nnia(content: bytes, *, max_values: int, ndim: int) -> NDArray[Any]:
    """Inverse of `pack_nnia`.

    Args:
        content: of a request.
        max_values: that the array may have.
        ndim: axes that it must have.

    Raises:
        FormatError: malformed.
        Refused: too large.
    """
    try:
        return _unpack(memoryview(content), max_values, ndim)
    except (struct.error, UnicodeDecodeError, ValueError, RuntimeError, TypeError) as error:
        raise FormatError(f"The array is no NNIA of version 1: {error}.") from error


def _unpack(content: memoryview, max_values: int, ndim: int) -> NDArray[Any]:
    magic, version, codec, axes, length = struct.unpack_from("<4sBBBB", content)
    if (magic, version) != (b"NNIA", 1) or codec not in (1, 2):
        raise ValueError("magic, version or codec are others")
    name = bytes(content[8 : 8 + length]).decode("ascii")
    if name not in _DTYPES or axes != ndim:
        raise ValueError(f"{axes} axes of {name!r}; {ndim} axes of numbers are needed")
    *shape, count = struct.unpack_from(f"<{axes}qI", content, 8 + length)
    dtype = np.dtype(name)
    if min(shape) < 1:
        raise ValueError(f"a shape of {shape}")
    if math.prod(shape) > max_values:
        raise Refused(413, f"An array of {shape} has more than {max_values} values.")
    parts, left = [], math.prod(shape) * dtype.itemsize
    place = 8 + length + 8 * axes + 4
    for _ in range(count):
        size, packed = struct.unpack_from("<QQ", content, place)
        frame = bytes(content[place + 16 : place + 16 + packed])
        left -= size
        if left < 0 or len(frame) != packed or size > _CHUNK:
            raise ValueError("its chunks do not fit its shape")
        if blosc2.get_cbuffer_sizes(frame)[0] != size:
            raise ValueError("a chunk is longer or shorter than it says")
        parts.append(blosc2.decompress2(frame))
        place += 16 + packed
    if left:
        raise ValueError("chunks are missing")
    return np.frombuffer(b"".join(parts), dtype).reshape(shape)
