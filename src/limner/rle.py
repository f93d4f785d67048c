"""Run-length codes of binary masks: our own row-major runs and the two forms of COCO RLE.

Runs alternate background and foreground and begin with background (which may be 0 long). Ours run
along the last axis first (C order) and serve any number of axes; COCO's run along the first axis
first (Fortran order) and are 2D (Lin et al. 2014, https://arxiv.org/abs/1405.0312).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]

_COCO_BITS = 5  # payload bits per character of a compressed count


def encode(mask: ArrayLike) -> list[int]:
    """Runs of a mask of any shape in C order: background, foreground, background, …

    Examples:
        >>> encode([[0, 1], [1, 0]])
        [1, 2, 1]
    """
    return _runs(np.asarray(mask, dtype=bool).ravel())


def decode(counts: Sequence[int], shape: Sequence[int]) -> Array:
    """Inverse of `encode`.

    Args:
        counts: runs, which must add up to the number of elements of `shape`.
        shape: of the mask.

    Returns:
        Boolean array of `shape`.

    Raises:
        ValueError: a run is negative or the sum is wrong (checked before anything is allocated).
    """
    return _fill(counts, shape).reshape(tuple(shape))


def coco_encode(mask: ArrayLike) -> dict[str, Any]:
    """COCO RLE ``{"size": [rows, columns], "counts": str}`` of a 2D mask, compressed."""
    array = _two_dimensional(mask)
    return {"size": list(array.shape), "counts": coco_compress(_runs(array.ravel(order="F")))}


def coco_decode(value: dict[str, Any]) -> Array:
    """2D boolean mask of a COCO RLE; `counts` may be a compressed string or a list of runs.

    Raises:
        ValueError: the counts are malformed or do not add up to `size`.
    """
    rows, columns = (int(n) for n in value["size"])
    counts = value["counts"]
    if isinstance(counts, bytes):
        counts = counts.decode("ascii")
    runs = coco_decompress(counts) if isinstance(counts, str) else [int(n) for n in counts]
    return _fill(runs, (columns, rows)).reshape((columns, rows)).T


def _two_dimensional(mask: ArrayLike) -> Array:
    array = np.asarray(mask, dtype=bool)
    if array.ndim != 2:
        raise ValueError(f"COCO RLE holds 2D masks, not shape {array.shape}.")
    return array


def _runs(flat: Array) -> list[int]:
    if flat.size == 0:
        return []
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = np.concatenate(([0], edges, [flat.size]))
    counts: list[int] = np.diff(bounds).tolist()
    return [0, *counts] if flat[0] else counts


def _fill(counts: Sequence[int], shape: Sequence[int]) -> Array:
    size = 1
    for n in shape:
        size *= int(n)
    if size > np.iinfo(np.int64).max:
        raise ValueError(f"A mask of shape {tuple(shape)} is larger than any memory.")
    if any(int(n) < 0 for n in counts) or sum(int(n) for n in counts) != size:
        raise ValueError(
            f"Runs that add up to {sum(int(n) for n in counts)} do not fill shape {tuple(shape)}."
        )
    values = np.zeros(len(counts), dtype=bool)
    values[1::2] = True
    return np.repeat(values, np.asarray(counts, dtype=np.int64))


def coco_compress(counts: Sequence[int]) -> str:
    """COCO's text form of runs.

    Signed little-endian base 32 of each count, from the fourth on as difference to two before.
    """
    text = bytearray()
    for k, count in enumerate(counts):
        value = count - counts[k - 2] if k > 2 else count
        more = True
        while more:
            digit = value & 0x1F
            value >>= _COCO_BITS
            more = value != (-1 if digit & 0x10 else 0)
            text.append((digit | 0x20 if more else digit) + 48)
    return text.decode("ascii")


def coco_decompress(text: str) -> list[int]:
    """Inverse of `coco_compress`.

    Raises:
        ValueError: malformed text.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text.encode("ascii"):
        digit = character - 48
        if not 0 <= digit < 64 or shift > 60:
            raise ValueError("Malformed COCO RLE string.")
        value |= (digit & 0x1F) << shift
        shift += _COCO_BITS
        if digit & 0x20:
            continue
        if digit & 0x10:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("Malformed COCO RLE string: it ends inside a number.")
    return counts
