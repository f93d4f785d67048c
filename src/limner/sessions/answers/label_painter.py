"""Label maps and masks of whole images, composed of answers and propagated frames."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from limner.sessions.answers.answer_table import AnswerTable
from limner.sessions.answers.image_view import Shape
from limner.sessions.history.log import PromptLog

Part: TypeAlias = tuple[tuple[int | slice, ...], NDArray[np.bool_]]  # where, and the mask there


class LabelPainter:
    """Paints the objects of a session.

    On a frame, the answer to its own prompts stands over what was propagated, and that over the
    answer about the whole volume.

    Args:
        log: the prompts and propagated frames.
        answers: to the prompts.
        shape: of the image, spatial.
    """

    def __init__(self, log: PromptLog, answers: AnswerTable, shape: Shape) -> None:
        self._log, self._answers, self._shape = log, answers, shape

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
        frames = set(self._log.frames(object_id))
        committed = self._log.committed(object_id)
        known = frames | committed.keys()
        if self._log.prompts(object_id, None):
            region = self._answers.answer(object_id, None).region
            if not known:
                yield region.slices, region.inside
            else:
                _, rows, columns = region.slices
                for frame, part in enumerate(region.inside, start=region.low[0]):
                    if frame not in known:
                        yield (frame, rows, columns), part
        for frame in sorted(known):
            if frame in frames:
                region = self._answers.answer(object_id, frame).region
                yield (frame, *region.slices), region.inside
            else:
                mask = self._answers.decode_frame(committed[frame].runs)
                yield (frame, slice(None), slice(None)), mask
