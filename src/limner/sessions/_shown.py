"""What a session has shown last of every object and frame, to say what an answer changes."""

from __future__ import annotations

import math
import zlib
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from limner.prompts.types import Box
from limner.sessions._region import Region, true_bounds


@dataclass(frozen=True)
class PackedMask:
    """The mask of a region in little memory."""

    low: tuple[int, ...]
    size: tuple[int, ...]
    bits: bytes

    @classmethod
    def of(cls, region: Region) -> PackedMask:
        """Pack the mask of a region."""
        bits = zlib.compress(np.packbits(region.inside).tobytes(), level=1)
        return cls(region.low, region.steps.shape, bits)

    @property
    def inside(self) -> NDArray[np.bool_]:
        """The mask of the window that begins at `low`."""
        packed = np.frombuffer(zlib.decompress(self.bits), dtype=np.uint8)
        bits = np.unpackbits(packed, count=math.prod(self.size))
        return bits.view(np.bool_).reshape(self.size)


class Shown:
    """The masks shown last: the newest as it is, so that click after click costs no packing; the
    others packed.
    """

    def __init__(self) -> None:
        self._packed: dict[Hashable, PackedMask] = {}
        self._newest: tuple[Hashable, Region] | None = None

    def show(self, key: Hashable, region: Region) -> Box | None:
        """Show a region as the answer for `key`; returns the box of what changed there."""
        before: PackedMask | Region | None = self._packed.pop(key, None)
        if self._newest is not None:
            newest, shown = self._newest
            if newest == key:
                before = shown
            else:
                self._packed[newest] = PackedMask.of(shown)
        self._newest = key, region
        return changed_box(before, region)

    def clear(self) -> None:
        """Forget all."""
        self._packed.clear()
        self._newest = None


def changed_box(before: PackedMask | Region | None, after: Region) -> Box | None:
    """The smallest box that holds every pixel whose label differs, None if none does."""
    masks = [(after.low, after.inside)]
    if before is not None:
        masks.append((before.low, before.inside))
    corners = np.asarray([corner for corner, mask in masks if mask.size])
    ends = np.asarray([np.add(corner, mask.shape) for corner, mask in masks if mask.size])
    if not len(corners):
        return None
    low, high = corners.min(axis=0), ends.max(axis=0)
    differs = np.zeros(high - low, dtype=np.bool_)
    for corner, mask in masks:
        place = zip(np.subtract(corner, low), mask.shape, strict=True)
        if mask.size:
            differs[tuple(slice(a, a + n) for a, n in place)] ^= mask
    if not differs.any():
        return None
    start, stop = true_bounds(differs)
    return Box(tuple(low + start), tuple(low + stop))
