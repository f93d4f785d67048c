"""Arrays of many parts in one compressed file that needs nothing but Python and NumPy to open."""

from __future__ import annotations

import json
import lzma
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.errors import FormatError

Array = NDArray[Any]


def compress(parts: list[dict[str, Array]]) -> bytes:
    """All arrays of a set, grouped by kind, since like compresses with like.

    Args:
        parts: one dictionary per plane or volume, with the same keys.
    """
    head: list[dict[str, Any]] = []
    body = bytearray()
    for key in parts[0]:
        for part in parts:
            array = np.ascontiguousarray(part[key])
            if array.dtype == np.uint16 and array.ndim >= 2 and array.max(initial=0) < 256:
                array = array.astype(np.uint8)
            head.append({"key": key, "shape": array.shape, "type": array.dtype.str})
            body += array.tobytes()
    text = json.dumps({"planes": len(parts), "arrays": head}).encode()
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 5, "lc": 3, "lp": 0, "pb": 0}]
    return lzma.compress(len(text).to_bytes(8, "little") + text + body, filters=filters)


def decompress(content: bytes, path: Path, wide: Collection[str] = ()) -> list[dict[str, Array]]:
    """Inverse of `compress`.

    Args:
        content: of the file.
        path: for messages.
        wide: keys that become uint16 whatever they are stored as.

    Raises:
        FormatError: it is damaged.
    """
    try:
        raw = lzma.decompress(content)
        size = int.from_bytes(raw[:8], "little")
        head = json.loads(raw[8 : 8 + size])
        parts: list[dict[str, Array]] = [{} for _ in range(head["planes"])]
        offset = 8 + size
        for k, fact in enumerate(head["arrays"]):
            dtype, shape = np.dtype(fact["type"]), tuple(fact["shape"])
            count = int(np.prod(shape, dtype=np.int64))
            array = np.frombuffer(raw, dtype, count, offset).reshape(shape)
            offset += count * dtype.itemsize
            key = fact["key"]
            parts[k % head["planes"]][key] = array.astype(np.uint16) if key in wide else array
    except (lzma.LZMAError, ValueError, KeyError) as error:
        raise FormatError(f"{path} is damaged: {error}. Make the pack again.") from error
    return parts


def encode_differences(levels: NDArray[np.uint8], axes: int) -> NDArray[np.uint8]:
    """Levels as differences along the last axes, modulo 256: noise where there was a picture."""
    for axis in range(-1, -1 - axes, -1):
        levels = np.diff(levels, axis=axis, prepend=np.uint8(0))
    return levels


def decode_differences(levels: NDArray[np.uint8], axes: int) -> NDArray[np.uint8]:
    """Inverse of `encode_differences`."""
    for axis in range(-1, -1 - axes, -1):
        levels = np.cumsum(levels, axis=axis, dtype=np.uint8)
    return levels
