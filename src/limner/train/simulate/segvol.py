"""Prompts about objects in a view, in the six combinations that SegVol is trained with, and about
pseudo labels. Positions are (d, h, w) in voxels of the network's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.networks.blocks.prompt_encoder import (
    HIGH_CORNER,
    LOW_CORNER,
    NEGATIVE,
    NOTHING,
    POSITIVE,
)

Array = NDArray[Any]
Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

_LEAST_SHARE = 0.001  # of a view: smaller pseudo regions are nobody's
_INSIDE = 0.9  # of a pseudo region within a box: then the box means it, too
_PSEUDO_POSITIVE, _PSEUDO_NEGATIVE = (5, 11), (0, 10)  # points about a pseudo region


@dataclass(frozen=True, eq=False)
class EncodedPrompts:
    """Points and a box about one object.

    Attributes:
        points: (N, 3), whole numbers.
        labels: (N,), of `limner.networks.blocks.prompt_encoder`.
        box: first and last voxel inside, (2, 3).
    """

    points: Floats
    labels: Floats
    box: Floats

    def tokens(self, combination: str) -> tuple[Floats, Floats]:
        """Points and labels as the decoder takes them; there are none for words alone.

        Args:
            combination: such as ``"box+point"``; its words are given apart.
        """
        parts = combination.split("+")
        points, labels = np.zeros((0, 3), np.float32), np.zeros(0, np.float32)
        if "point" in parts:
            points, labels = self.points, self.labels
        if "box" in parts:
            points = np.concatenate([points, self.box])
            labels = np.append(labels, np.array([LOW_CORNER, HIGH_CORNER], np.float32))
        elif len(labels):
            points = np.concatenate([points, np.zeros((1, 3), np.float32)])
            labels = np.append(labels, np.float32(NOTHING))
        return points, labels


def encode_prompts(
    mask: Mask,
    rng: np.random.Generator,
    *,
    most_positive: int = 10,
    most_negative: int = 10,
    jitter: int = 0,
) -> EncodedPrompts:
    """Points and a box about an object.

    Args:
        mask: not empty.
        rng: draws them.
        most_positive: points inside are 1 and up to so many.
        most_negative: points outside are up to so many.
        jitter: each side of the box is moved by up to so many voxels.
    """
    number = 1 + int(rng.integers(most_positive + 1)), int(rng.integers(most_negative + 1))
    points, labels = draw_points(mask, number, rng, room=1 + most_positive + most_negative)
    return EncodedPrompts(points, labels, find_box(mask, rng, jitter))


def draw_points(
    mask: Mask, number: tuple[int, int], rng: np.random.Generator, room: int
) -> tuple[Floats, Floats]:
    """Random voxels inside and outside, filled up with points that say nothing.

    Args:
        mask: where the object is.
        number: of points inside and outside; fewer if there are fewer voxels.
        rng: draws them.
        room: number of points altogether.

    Returns:
        (room, 3) and labels (room,).
    """
    points = np.zeros((room, 3), np.float32)
    labels = np.full(room, NOTHING, np.float32)
    used = 0
    for where, wanted, label in ((mask, number[0], POSITIVE), (~mask, number[1], NEGATIVE)):
        voxels = np.flatnonzero(where)
        chosen = rng.choice(voxels, min(wanted, len(voxels)), replace=False, shuffle=False)
        places = np.stack(np.unravel_index(chosen, mask.shape), axis=1)
        points[used : used + len(chosen)] = places
        labels[used : used + len(chosen)] = label
        used += len(chosen)
    return points, labels


def find_box(mask: Mask, rng: np.random.Generator, jitter: int = 0) -> Floats:
    """First and last voxel of the tight box, (2, 3), each side moved by up to `jitter`."""
    ends = []
    for axis in range(3):
        line = np.flatnonzero(mask.any(axis=tuple(k for k in range(3) if k != axis)))
        ends.append((line[0], line[-1]))
    box = np.array(ends).T
    if jitter:
        box = box + rng.integers(-jitter, jitter + 1, (2, 3))
        box = np.sort(np.clip(box, 0, np.array(mask.shape) - 1), axis=0)
    return np.asarray(box, dtype=np.float32)


def clean_mask(mask: Mask) -> Mask:
    """A pseudo region opened and closed, without its small parts; may be empty."""
    from scipy import ndimage

    place = ndimage.find_objects(mask.astype(np.uint8))
    if not place:
        return mask
    wide = tuple(
        slice(max(0, s.start - 2), min(n, s.stop + 2))
        for s, n in zip(place[0], mask.shape, strict=True)
    )
    part = ndimage.binary_closing(ndimage.binary_opening(mask[wide]))
    found, _ = ndimage.label(part)
    sizes = np.bincount(found.ravel())
    sizes[0] = 0
    out = np.zeros_like(mask)
    out[wide] = (sizes >= _LEAST_SHARE * mask.size)[found]
    return out


def list_pseudo_objects(regions: Array) -> list[int]:
    """Regions of a view that are large enough to be learnt from; -1 is none."""
    sizes = np.bincount(regions.ravel()[regions.ravel() >= 0])
    return [int(k) for k in np.flatnonzero(sizes >= max(1.0, _LEAST_SHARE * regions.size))]


def prompt_pseudo_object(
    regions: Array, choices: Sequence[int], kind: str, rng: np.random.Generator
) -> tuple[Mask, EncodedPrompts] | None:
    """A pseudo region and prompts about it, None if nothing is left of it.

    Args:
        regions: of a view, -1 for none.
        choices: of `list_pseudo_objects`.
        kind: ``"point"`` or ``"box"``; a box means all other regions, too, that are nearly wholly
            in it.
        rng: draws the region and the prompts.
    """
    mask = clean_mask(regions == rng.choice(np.asarray(choices)))
    if not mask.any():
        return None
    box = find_box(mask, rng)
    if kind == "box":
        low, high = box.astype(int)
        window = tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))
        whole = np.bincount(regions[regions >= 0])
        within = np.bincount(regions[window][regions[window] >= 0], minlength=len(whole))
        others = [k for k in choices if within[k] > _INSIDE * whole[k]]
        mask = mask | np.isin(regions, others)
        box = find_box(mask, rng)
    number = tuple(int(rng.integers(a, b + 1)) for a, b in (_PSEUDO_POSITIVE, _PSEUDO_NEGATIVE))
    room = _PSEUDO_POSITIVE[1] + _PSEUDO_NEGATIVE[1]
    points, labels = draw_points(mask, (number[0], number[1]), rng, room)
    return mask, EncodedPrompts(points, labels, box)
