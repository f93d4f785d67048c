"""Label maps and masks of whole images, composed of answers and propagated frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from limner.sessions.answers.answer_table import AnswerTable
from limner.sessions.answers.image_view import Shape
from limner.sessions.answers.sparse_logits import SparseLogits
from limner.sessions.history.log import PromptLog

Part: TypeAlias = tuple[tuple[int | slice, ...], NDArray[np.bool_]]  # where, and the mask there


class LabelPainter:
    """Paints the objects of a session.

    On a frame, the answer to its own prompts stands over what was propagated, and that over the
    answer about the whole volume. Objects are kept off those that are locked.

    Args:
        log: the prompts and propagated frames.
        answers: to the prompts.
        shape: of the image, spatial.
    """

    def __init__(self, log: PromptLog, answers: AnswerTable, shape: Shape) -> None:
        self._log, self._answers, self._shape = log, answers, shape

    def keep_off_locked(
        self, region: SparseLogits, object_id: int, frame: int | None
    ) -> SparseLogits:
        """An answer without the pixels of the objects that it is kept off."""
        if not region.grid.size or not self._holders(object_id):
            return region
        low, size = list(region.low), list(region.size)
        if frame is not None:
            low, size = [frame, *low], [1, *size]
        held = self._held(object_id, low, [a + n for a, n in zip(low, size, strict=True)])
        held = held.reshape(region.size)
        if not (held & region.inside).any():
            return region
        steps = np.where(held, np.minimum(region.steps, np.int16(-1)), region.steps)
        return SparseLogits(region.shape, region.low, steps)

    def paint_labels(self) -> NDArray[np.unsignedinteger] | None:
        """The label map, or None where objects overlap."""
        dtype = np.min_scalar_type(max(self._log.object_ids, default=0))
        labels = np.zeros(self._shape, dtype=dtype)
        for object_id in self._log.object_ids:
            for place, inside in self._parts(object_id):
                part = labels[place]
                if part[inside].any():
                    return None
                part[inside] = object_id
        return labels

    def paint_mask(self, object_id: int) -> NDArray[np.bool_]:
        """The mask of one object."""
        whole = np.zeros(self._shape, dtype=np.bool_)
        for place, inside in self._parts(object_id):
            whole[place] = inside
        return whole

    def _parts(self, object_id: int) -> Iterator[Part]:
        """Places of an object's mask that do not overlap; it is nowhere else."""
        if not self._holders(object_id):
            yield from self._drawn_parts(object_id)
            return
        for place, inside in self._drawn_parts(object_id):
            low, high = self._bounds(place)
            yield place, inside & ~self._held(object_id, low, high).reshape(inside.shape)

    def _holders(self, object_id: int) -> tuple[int, ...]:
        """The objects whose pixels an object does not get: those that are locked, if it is locked
        itself those that were so before.
        """
        locked, known = self._log.locked, self._log.object_ids
        if object_id in locked:
            locked = locked[: locked.index(object_id)]
        return tuple(i for i in locked if i in known)

    def _held(self, object_id: int, low: Sequence[int], high: Sequence[int]) -> NDArray[np.bool_]:
        """Where in a window of the image an object is kept off."""
        result: NDArray[np.bool_] = np.zeros(
            [b - a for a, b in zip(low, high, strict=True)], dtype=np.bool_
        )
        for holder in self._holders(object_id):
            for place, inside in self._drawn_parts(holder, range(low[0], high[0])):
                begin, end = self._bounds(place)
                start, stop = np.maximum(low, begin), np.minimum(high, end)
                if (start < stop).all():
                    size = [b - a for a, b in zip(begin, end, strict=True)]
                    part: NDArray[np.bool_] = inside.reshape(size)
                    result[_window(start, stop, low)] |= part[_window(start, stop, begin)]
        return result

    def _bounds(self, place: tuple[int | slice, ...]) -> tuple[list[int], list[int]]:
        """The window of the image that a place is."""
        parts = [slice(p, p + 1) if isinstance(p, int) else p for p in place]
        spans = [p.indices(n) for p, n in zip(parts, self._shape, strict=True)]
        return [a for a, _, _ in spans], [b for _, b, _ in spans]

    def _drawn_parts(self, object_id: int, within: range | None = None) -> Iterator[Part]:
        """The same, whatever is locked; frames outside `within` may be left out."""
        frames = set(self._log.frames(object_id))
        committed = self._log.committed(object_id)
        known = frames | committed.keys()
        wanted = sorted(known if within is None else known & set(within))
        if self._log.prompts(object_id, None):
            region = self._answers.answer(object_id, None).region
            if not known:
                yield region.slices, region.inside
            else:
                _, rows, columns = region.slices
                for frame, part in enumerate(region.inside, start=region.low[0]):
                    if frame not in known:
                        yield (frame, rows, columns), part
        for frame in wanted:
            if frame in frames:
                region = self._answers.answer(object_id, frame).region
                yield (frame, *region.slices), region.inside
            else:
                mask = self._answers.decode_frame(committed[frame].runs)
                yield (frame, slice(None), slice(None)), mask


def _window(low: Any, high: Any, origin: Sequence[int]) -> tuple[Any, ...]:
    """The index of a window in an array that begins at `origin`."""
    return tuple(slice(int(a - c), int(b - c)) for a, b, c in zip(low, high, origin, strict=True))
