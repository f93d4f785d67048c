"""The last masks that a session handed out, and the box of what a new one changes."""

from __future__ import annotations

import math
import zlib
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from limner.prompts.types import Box
from limner.sessions.answers.answer import Answer
from limner.sessions.answers.prediction import Prediction
from limner.sessions.answers.sparse_logits import SparseLogits, true_bounds

Mask = NDArray[np.bool_]
BUDGET = 64 << 20  # a mask of a video of 512x512 takes some hundred bytes


@dataclass(frozen=True)
class PackedMask:
    """The mask of a region in little memory."""

    low: tuple[int, ...]
    size: tuple[int, ...]
    bits: bytes

    @classmethod
    def of(cls, region: SparseLogits) -> PackedMask:
        """Pack the mask of a region."""
        packer = zlib.compressobj(level=1)
        parts = [packer.compress(np.packbits(part).tobytes()) for part in _slices_of(region)]
        return cls(region.low, region.size, b"".join(parts) + packer.flush())

    @property
    def inside(self) -> Mask:
        """The mask of the window that begins at `low`."""
        slices = list(self.slices_inside())
        return np.stack(slices).reshape(self.size) if slices else np.zeros(self.size, np.bool_)

    def slices_inside(self) -> Iterator[Mask]:
        """A volume's slices along the first axis, one by one; a 2D image at once."""
        shape = self.size[-2:]
        count = math.prod(self.size) // max(1, math.prod(shape))
        packed = np.frombuffer(zlib.decompress(self.bits), dtype=np.uint8)
        for part in packed.reshape(count, -1) if packed.size else ():
            yield np.unpackbits(part, count=math.prod(shape)).view(np.bool_).reshape(shape)


class LastMasks:
    """The last mask of every object and frame: the newest as it is, so that click after click costs
    no packing; the others packed. Of the oldest only that there was one, where there are many.

    Args:
        budget: bytes of packed masks.
    """

    def __init__(self, budget: int = BUDGET) -> None:
        self._budget = budget
        self._size = 0
        self._packed: dict[Hashable, PackedMask] = {}
        self._forgotten: set[Hashable] = set()
        self._newest: tuple[Hashable, SparseLogits] | None = None

    def to_prediction(
        self, answer: Answer, object_id: int, frame: int | None, *, known: bool = False
    ) -> Prediction:
        """An answer as the session hands it out, with the box of what it changes."""
        box = self.replace((object_id, frame), answer.region)
        return Prediction(
            answer.region, answer.score, box, object_id, frame, known, answer.withheld
        )

    def replace(self, key: Hashable, region: SparseLogits) -> Box | None:
        """Keep a mask as the last one of `key`; returns the box of what it changes, which is
        everything where the mask before is not known any more.
        """
        packed = self._packed.pop(key, None)
        self._size -= 0 if packed is None else len(packed.bits)
        before: PackedMask | SparseLogits | None = packed
        if self._newest is not None:
            newest, last = self._newest
            if newest == key:
                before = last
            else:
                self._pack(newest, last)
        self._newest = key, region
        if key in self._forgotten:
            self._forgotten.remove(key)
            return Box((0,) * len(region.shape), region.shape)
        return changed_box(before, region)

    def _pack(self, key: Hashable, region: SparseLogits) -> None:
        self._packed[key] = packed = PackedMask.of(region)
        self._size += len(packed.bits)
        while self._size > self._budget and len(self._packed) > 1:
            oldest = next(iter(self._packed))
            self._size -= len(self._packed.pop(oldest).bits)
            self._forgotten.add(oldest)

    def clear(self) -> None:
        """Forget all."""
        self._packed.clear()
        self._forgotten.clear()
        self._size = 0
        self._newest = None


def changed_box(before: PackedMask | SparseLogits | None, after: SparseLogits) -> Box | None:
    """The smallest box that holds every pixel whose label differs, None if none does. Volumes are
    compared slice by slice, so that little memory is needed.
    """
    masks = [mask for mask in (after, before) if mask is not None and 0 not in mask.size]
    if not masks:
        return None
    lows = [_lifted(mask.low, 0) for mask in masks]
    highs = [np.add(a, _lifted(mask.size, 1)) for a, mask in zip(lows, masks, strict=True)]
    low, high = np.min(lows, axis=0), np.max(highs, axis=0)
    first, last = int(low[0]), int(high[0])
    found: list[int] = []
    union = np.zeros(high[1:] - low[1:], dtype=np.bool_)
    padded = [
        _pad_slices(_slices_of(m), a[0], first, last) for m, a in zip(masks, lows, strict=True)
    ]
    for k, slices in zip(range(first, last), zip(*padded, strict=True), strict=True):
        differs = np.zeros_like(union)
        for part, corner in zip(slices, lows, strict=True):
            if part is not None:
                place = zip(np.subtract(corner[1:], low[1:]), part.shape, strict=True)
                differs[tuple(slice(a, a + n) for a, n in place)] ^= part
        if differs.any():
            found.append(k)
            union |= differs
    if not found:
        return None
    start, stop = true_bounds(union)
    begin = (found[0], *np.add(low[1:], start))
    end = (found[-1] + 1, *np.add(low[1:], stop))
    ndim = len(after.shape)
    return Box(begin[-ndim:], end[-ndim:])


def _slices_of(mask: PackedMask | SparseLogits) -> Iterator[Mask]:
    """A volume's slices, or the whole of a 2D image; nothing of what is empty."""
    if isinstance(mask, SparseLogits) and len(mask.size) == 2:
        return iter([mask.inside] if mask.grid.size else [])
    return mask.slices_inside()


def _pad_slices(slices: Iterator[Mask], low: int, first: int, last: int) -> Iterator[Mask | None]:
    """The slices that begin at `low`, with None before and behind, from `first` to `last`."""
    for k in range(first, last):
        yield None if k < low else next(slices, None)


def _lifted(values: tuple[int, ...], first: int) -> tuple[int, ...]:
    """Values per axis of a 2D image as those of a volume of one slice."""
    return values if len(values) == 3 else (first, *values)
