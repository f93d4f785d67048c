"""Masks of COCO files as runs along columns: from label maps, to pixels, and polygons filled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner import rle

Array = NDArray[Any]

_MAX_CORNERS = 1 << 20  # of one polygon


@dataclass(frozen=True, eq=False)
class Runs:
    """The pixels of one object in one plane, as runs down its columns (Fortran order).

    Attributes:
        starts: flat index ``column * rows + row`` of each run's first pixel, increasing.
        lengths: pixels per run; a run may go on in the next column.
        rows, columns: of the plane.
    """

    starts: Array
    lengths: Array
    rows: int
    columns: int

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(self.lengths.sum())

    def bbox(self) -> list[int]:
        """COCO's box ``[x, y, width, height]``."""
        ends = self.starts + self.lengths - 1
        left, right = int(self.starts[0]) // self.rows, int(ends[-1]) // self.rows
        if (self.starts // self.rows != ends // self.rows).any():  # reaches round an edge
            top, bottom = 0, self.rows - 1
        else:
            top, bottom = int((self.starts % self.rows).min()), int((ends % self.rows).max())
        return [left, top, right - left + 1, bottom - top + 1]

    def to_rle(self) -> dict[str, Any]:
        """COCO's compressed RLE ``{"size": [rows, columns], "counts": text}``."""
        ends = self.starts + self.lengths
        counts = np.empty(2 * len(self.starts) + 1, dtype=np.int64)
        counts[0:-1:2] = np.diff(self.starts, prepend=0)
        counts[2:-1:2] -= self.lengths[:-1]  # from the end of a run to the start of the next
        counts[1::2] = self.lengths
        counts[-1] = self.rows * self.columns - ends[-1]
        runs: list[int] = counts.tolist()
        return {
            "size": [self.rows, self.columns],
            "counts": rle.coco_compress(runs if runs[-1] else runs[:-1]),
        }


def runs_of_labels(labels: Array) -> list[tuple[int, Runs]]:
    """The runs of every object of a label map ``(row, column)``, by id; one pass for all."""
    rows, columns = labels.shape
    flat = labels.ravel(order="F")
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    lengths = np.diff(starts, append=flat.size)
    values = flat[starts]
    order = np.argsort(values, kind="stable")
    ids, first = np.unique(values[order], return_index=True)
    groups = np.split(order, first[1:])
    return [
        (int(i), Runs(starts[g], lengths[g], rows, columns))
        for i, g in zip(ids, groups, strict=True)
        if i != 0
    ]


def pixels_of(segmentation: Any, rows: int, columns: int) -> Array:
    """Flat indices ``column * rows + row`` of the pixels of a COCO segmentation.

    Args:
        segmentation: RLE with compressed or plain counts, or a list of polygons ``[x0, y0, x1, y1,
            …]``, which are united.
        rows, columns: of the image, already checked to fit the memory.

    Raises:
        ValueError: malformed, or of another size.
    """
    if isinstance(segmentation, list):
        mask = np.zeros((rows, columns), dtype=bool)
        for polygon in segmentation:
            mask |= polygon_to_mask(polygon, rows, columns)
        return np.flatnonzero(mask.ravel(order="F"))
    if not isinstance(segmentation, dict):
        raise ValueError("a segmentation is RLE or a list of polygons")
    if [int(n) for n in segmentation["size"]] != [rows, columns]:
        raise ValueError(f"RLE of size {segmentation['size']} in an image of {rows}×{columns}")
    counts = segmentation["counts"]
    runs = np.asarray(rle.coco_decompress(counts) if isinstance(counts, str) else counts)
    if runs.size == 0:
        runs = np.zeros(1, dtype=np.int64)
    whole = runs.dtype.kind in "iu" and runs.ndim == 1
    # The sum of Python integers: that of int64 could wrap round to the right number.
    if not whole or runs.min() < 0 or sum(runs.tolist()) != rows * columns:
        raise ValueError(f"RLE counts that do not fill {rows}×{columns} pixels")
    ends = np.cumsum(runs)
    starts, lengths = (ends - runs)[1::2], runs[1::2]
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


def polygon_to_mask(polygon: Any, rows: int, columns: int) -> NDArray[np.bool_]:
    """Fill a polygon: the pixels whose centres are inside by the even-odd rule.

    Args:
        polygon: corners ``[x0, y0, x1, y1, …]`` in pixels; the first pixel spans 0…1, its centre is
            0.5. It may reach over the edges.
        rows, columns: of the mask.

    Raises:
        ValueError: fewer than three corners, or numbers that are not finite.
    """
    corners = np.asarray(polygon, dtype=np.float64)
    if corners.ndim != 1 or corners.size < 6 or corners.size % 2 or corners.size > _MAX_CORNERS:
        raise ValueError("a polygon is a list of three or more pairs x, y")
    if not np.isfinite(corners).all():
        raise ValueError("a polygon's corners are finite")
    x, y = corners[0::2], corners[1::2]
    # Every edge flips all pixels to its right, in the rows whose centres it crosses.
    flips = np.zeros((rows, columns + 1), dtype=bool)
    for x0, y0, x1, y1 in zip(x, y, np.roll(x, -1), np.roll(y, -1), strict=True):
        low, high = (y0, y1) if y0 < y1 else (y1, y0)
        first = int(np.clip(np.ceil(low - 0.5), 0, rows))
        stop = int(np.clip(np.ceil(high - 0.5), 0, rows))
        if first >= stop:
            continue
        crossed = np.arange(first, stop)
        at = x0 + (crossed + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
        column = np.clip(np.ceil(at - 0.5), 0, columns).astype(np.int64)
        flips[crossed, column] ^= True
    return np.logical_xor.accumulate(flips, axis=1)[:, :columns]
