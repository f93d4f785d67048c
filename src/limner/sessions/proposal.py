"""Masks proposed by the everything mode, as runs: small, and compared without being drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner import rle
from limner.adapters.axes import Bounds
from limner.prompts.types import Box
from limner.sessions.answers.sparse_logits import SparseLogits


@dataclass(frozen=True)
class Proposal:
    """One object that was found without a prompt.

    Attributes:
        shape: rows and columns of the image.
        counts: the mask as COCO's compressed runs, see `limner.rle`.
        box: the smallest that holds the mask, half-open.
        area: pixels.
        score: quality as the model predicts it, 0…1.
        stability: IoU of the masks at two thresholds on either side of the model's own, 0…1.
        point: the click ``(row, column)`` that it answers.
    """

    shape: tuple[int, int]
    counts: str
    box: Box
    area: int
    score: float
    stability: float
    point: tuple[float, float]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Boolean, of the image's shape; made anew each time."""
        return np.asarray(rle.coco_decode({"size": self.shape, "counts": self.counts}))

    def to_json(self) -> dict[str, Any]:
        """The facts as JSON values, without the mask."""
        return {
            "box": [int(x) for x in (*self.box.low, *self.box.high)],
            "area": self.area,
            "score": round(self.score, 4),
            "stability": round(self.stability, 4),
            "point": list(self.point),
        }

    def to_coco(self, number: int, image_id: int = 1) -> dict[str, Any]:
        """The record of a COCO file; its ``bbox`` is ``[x, y, width, height]``."""
        (top, left), (bottom, right) = self.box.low, self.box.high
        return {
            "id": number,
            "image_id": image_id,
            "category_id": 1,
            "segmentation": {"size": list(self.shape), "counts": self.counts},
            "area": self.area,
            "bbox": [int(left), int(top), int(right - left), int(bottom - top)],
            "iscrowd": 0,
            "object_id": number,
            "score": round(self.score, 4),
            "stability": round(self.stability, 4),
            "point": list(self.point),
        }


@dataclass(frozen=True, eq=False)
class Candidate:
    """A mask before it is known whether it stays.

    Attributes:
        starts, ends: of its runs, down the columns of an image of `shape`, half-open.
        shape: rows and columns of the image.
        bounds: bounding box of the mask.
        score, stability, point: see `Proposal`.
        layer: of crops that it was found in; 0 is the whole image.
    """

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    shape: tuple[int, int]
    bounds: Bounds
    score: float
    stability: float
    point: tuple[float, float]
    layer: int = 0

    @property
    def area(self) -> int:
        """Pixels."""
        return int((self.ends - self.starts).sum())

    def proposal(self) -> Proposal:
        """As it is handed out."""
        counts = np.empty(2 * len(self.starts) + 1, dtype=np.int64)
        counts[1:-1:2] = self.ends - self.starts
        counts[0] = self.starts[0]
        counts[2:-1:2] = self.starts[1:] - self.ends[:-1]
        counts[-1] = self.shape[0] * self.shape[1] - self.ends[-1]
        runs: list[int] = (counts if counts[-1] else counts[:-1]).tolist()
        return Proposal(
            self.shape,
            rle.coco_compress(runs),
            Box(*self.bounds),
            self.area,
            self.score,
            self.stability,
            self.point,
        )


def runs_of(
    region: SparseLogits, offset: Sequence[int], shape: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Starts and ends of the runs of a mask down the columns of an image.

    Args:
        region: the mask in a part of the image.
        offset: where that part begins.
        shape: of the image.
    """
    turned = np.zeros((region.steps.shape[1], region.steps.shape[0] + 2), dtype=np.int8)
    turned[:, 1:-1] = region.inside.T
    change = np.diff(turned, axis=1)
    first = np.add(region.low, offset)

    def flat(columns: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.asarray((columns + first[1]) * shape[0] + rows + first[0], dtype=np.int64)

    starts, ends = flat(*np.nonzero(change > 0)), flat(*np.nonzero(change < 0))
    apart = starts[1:] != ends[:-1]  # a run may go on in the next column
    return starts[np.r_[True, apart]], ends[np.r_[apart, True]]


def mask_iou(one: Candidate, other: Candidate) -> float:
    """Intersection over union of two masks that are not empty."""
    length = np.r_[0, np.cumsum(one.ends - one.starts)]

    def pixels_before(places: NDArray[np.int64]) -> NDArray[np.int64]:
        k = np.searchsorted(one.starts, places, side="right")
        over = np.maximum(one.ends[np.maximum(k - 1, 0)] - places, 0)
        return np.asarray(length[k] - np.where(k > 0, over, 0))

    shared = int((pixels_before(other.ends) - pixels_before(other.starts)).sum())
    return shared / (one.area + other.area - shared)


def distinct(found: Sequence[Candidate], *, box_iou: float, same_mask: float) -> list[Candidate]:
    """Candidates without those that a better one makes superfluous, best first.

    Better is: from a closer crop, then of a higher score, then earlier.

    Args:
        found: candidates.
        box_iou: those whose box has a larger IoU with a better one's go.
        same_mask: and those whose mask has.
    """
    order = sorted(range(len(found)), key=lambda k: (-found[k].layer, -found[k].score, k))
    kept: list[Candidate] = []
    low = np.empty((len(found), 2))
    high = np.empty((len(found), 2))
    for k in order:
        candidate, n = found[k], len(kept)
        low[n], high[n] = candidate.bounds
        sides = np.minimum(high[:n], high[n]) - np.maximum(low[:n], low[n])
        shared = np.maximum(sides, 0).prod(axis=1)
        sizes = (high[: n + 1] - low[: n + 1]).prod(axis=1)
        iou = shared / (sizes[:n] + sizes[n] - shared)
        if (iou > box_iou).any():
            continue
        # Masks cannot share more than their boxes do.
        near = np.flatnonzero(shared > same_mask * candidate.area)
        if not any(mask_iou(kept[j], candidate) > same_mask for j in near):
            kept.append(candidate)
    return kept
