"""Arrays as JSON text: their bytes compressed without loss, in base64."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_BYTES = 2**30  # of an array read from JSON: a few bytes may claim any size
_LEVEL = 6


def pack(array: NDArray[Any], *, level: int = _LEVEL) -> str:
    """The values of an array, row-major; type and shape are kept elsewhere.

    Args:
        array: of any type.
        level: of zlib, 1 (fast) to 9 (small).
    """
    return base64.b64encode(zlib.compress(np.ascontiguousarray(array).data, level)).decode("ascii")


def unpack(text: str, dtype: np.dtype[Any], shape: Sequence[int]) -> NDArray[Any]:
    """Inverse of `pack`.

    Raises:
        ValueError: not such text, or it holds more or less than the shape says.
    """
    size = [int(n) for n in shape]
    expected = math.prod(size) * dtype.itemsize
    if min(size, default=0) < 0 or expected > MOST_BYTES:
        raise ValueError(f"an array of {size} is negative or larger than {MOST_BYTES} bytes")
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(base64.b64decode(text, validate=True), expected + 1)
    except zlib.error as error:
        raise ValueError(f"the pixels cannot be unpacked: {error}") from error
    if len(content) != expected:
        raise ValueError(f"the pixels are not the {expected} bytes of {dtype.name} {size}")
    return np.frombuffer(content, dtype).reshape(size)
