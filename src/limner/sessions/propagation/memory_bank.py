"""The memory bank of a propagation: pixels of earlier frames, of objects that share their frames
(XMem, https://arxiv.org/abs/2207.07115, sections 3.3 and 3.4).

Its size is bounded however long the video is. Frames that the user annotated are permanent; the
newest others are kept as they are; older ones are condensed to a few prototypes, of which the least
used are forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from limner.models import EncodedFrame, MemoryLimits
from limner.networks.blocks.memory import read, similarity, top, usage

Floats = NDArray[np.float32]

_AT_ONCE = 256  # pixels that read together: of all of a frame's, distances would take 140 MB
_NEVER = 1e-7  # reads of a new element, so that use per read is finite


@dataclass(eq=False)
class _Elements:
    """Pixels that are remembered, one per row.

    Attributes:
        key: (N, C).
        shrinkage: (N,).
        selection: (N, C).
        value: (N, objects * V).
        uses: (N,), the weight that reads gave to each.
        reads: (N,), how many reads there were.
    """

    key: Floats
    shrinkage: Floats
    selection: Floats
    value: Floats
    uses: Floats
    reads: Floats

    @classmethod
    def new(cls, key: Floats, shrinkage: Floats, selection: Floats, value: Floats) -> Self:
        """Not read yet."""
        size = len(key)
        unread = np.full(size, _NEVER, np.float32)
        return cls(key, shrinkage, selection, value, np.zeros(size, np.float32), unread)

    def __len__(self) -> int:
        return len(self.key)

    def taken(self, which: slice | NDArray[np.bool_] | NDArray[np.int64]) -> Self:
        """Some of the elements."""
        return type(self)(*(getattr(self, f.name)[which] for f in fields(self)))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Parts one after the other."""
        return cls(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)))

    @property
    def usage(self) -> Floats:
        """Weight per read."""
        return np.asarray(self.uses / self.reads)


class MemoryBank:
    """The memory of some objects; all of them are remembered of the same frames.

    Elements lie in this order: prototypes, permanent frames, other frames; the oldest first.

    Args:
        limits: how much is kept.
    """

    def __init__(self, limits: MemoryLimits) -> None:
        self._limits = limits
        self._all: _Elements | None = None
        self._area = 0  # elements per frame
        self.num_prototypes = 0
        self.places: list[int] = []  # of the permanent frames

    @property
    def size(self) -> int:
        """Number of elements."""
        return 0 if self._all is None else len(self._all)

    @property
    def elements(self) -> _Elements:
        """All elements.

        Raises:
            LookupError: nothing is remembered yet.
        """
        if self._all is None:
            raise LookupError("Nothing is remembered yet.")
        return self._all

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        if self._all is None:
            return 0
        return sum(int(getattr(self._all, f.name).nbytes) for f in fields(self._all))

    def state(self) -> dict[str, NDArray[Any]]:
        """All that is remembered, as arrays of its own."""
        sizes = np.array([self._area, self.num_prototypes, *self.places], dtype=np.int64)
        if self._all is None:
            return {"sizes": sizes}
        held = {f.name: getattr(self._all, f.name).copy(order="K") for f in fields(self._all)}
        return {"sizes": sizes, **held}

    @classmethod
    def restored(cls, limits: MemoryLimits, state: Mapping[str, NDArray[Any]]) -> Self:
        """The bank of which `state` was.

        Raises:
            KeyError: an array is missing.
        """
        bank = cls(limits)
        bank._area, bank.num_prototypes, *bank.places = state["sizes"].tolist()
        if len(state) > 1:  # laid out as they were, so that sums come out alike to the last bit
            bank._all = _Elements(*(state[f.name].copy(order="K") for f in fields(_Elements)))
        return bank

    def add(self, frame: EncodedFrame, value: Floats, *, permanent: int | None = None) -> None:
        """Remember a frame.

        Args:
            frame: its keys.
            value: (Q, objects, V).
            permanent: the frame's number, if it is to stay; one that is there already is replaced.
        """
        rows = value.reshape(len(value), -1)
        new = _Elements.new(frame.key, frame.shrinkage, frame.selection, rows)
        self._area = len(new)
        if self._all is None:
            self._all = new.taken(slice(0, 0))
        low = self.num_prototypes
        high = low + len(self.places) * self._area
        if permanent is None:
            self._all = _Elements.joined([self._all, new])
        elif permanent in self.places:
            at = low + self.places.index(permanent) * self._area
            self._all.value[at : at + self._area] = rows
            return
        else:
            before, after = self._all.taken(slice(0, high)), self._all.taken(slice(high, None))
            if len(self.places) >= self._limits.most_permanent:  # the oldest makes room
                before = _Elements.joined(
                    [before.taken(slice(0, low)), before.taken(slice(low + self._area, None))]
                )
                self.places.pop(0)
            self._all = _Elements.joined([before, new, after])
            self.places.append(permanent)
        self._condense()

    def read(self, frame: EncodedFrame) -> Floats:
        """What memory says of each pixel of a frame, (Q, objects * V); counts what was used.

        Raises:
            LookupError: nothing is remembered yet.
        """
        known, readings = self.elements, []
        for start in range(0, len(frame.key), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            near = similarity(known.key, known.shrinkage, frame.key[some], frame.selection[some])
            chosen, weights = top(near, self._limits.top)
            known.uses += usage(chosen, weights, len(known))
            readings.append(read(chosen, weights, known.value))
        known.reads += 1
        return np.concatenate(readings)

    def _condense(self) -> None:
        """Older frames to prototypes, once there are too many; without long-term memory they go."""
        known, limits = self.elements, self._limits
        first = self.num_prototypes + len(self.places) * self._area
        frames = (len(known) - first) // self._area + min(1, len(self.places))
        if frames < limits.most_frames + (not limits.long_term):
            return
        kept = limits.least_frames - 1 if limits.long_term else limits.most_frames - 1
        last = len(known) - kept * self._area
        if last <= first:
            return
        old, newest = known.taken(slice(first, last)), known.taken(slice(last, None))
        condensed = known.taken(slice(0, self.num_prototypes))
        if limits.long_term:
            condensed = self._forgotten(condensed)
            condensed = _Elements.joined([condensed, potentiated(old, limits.prototypes)])
        permanent = known.taken(slice(self.num_prototypes, first))
        self._all = _Elements.joined([condensed, permanent, newest])
        self.num_prototypes = len(condensed)

    def _forgotten(self, condensed: _Elements) -> _Elements:
        """Prototypes without the least used, so that as many new ones have room; as published, all
        that are used no more than the last to go do so.
        """
        surplus = len(condensed) - (self._limits.most_elements - self._limits.prototypes)
        if surplus <= 0:
            return condensed
        used = condensed.usage
        return condensed.taken(used > np.partition(used, surplus - 1)[surplus - 1])


def potentiated(old: _Elements, count: int) -> _Elements:
    """The most used elements, each with the values of all that are near to it (section 3.3).

    Args:
        old: what is condensed.
        count: of prototypes, at most.
    """
    chosen = old.taken(np.argsort(-old.usage, kind="stable")[:count])
    near = similarity(old.key, old.shrinkage, chosen.key, chosen.selection)
    _, weights = top(near, None)
    return _Elements.new(
        chosen.key, weights @ old.shrinkage, np.zeros_like(chosen.selection), weights @ old.value
    )
