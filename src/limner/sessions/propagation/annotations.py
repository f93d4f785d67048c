"""Masks on the frames that a propagation starts from, and on the frames beside its way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import permutations
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from limner.errors import SessionError
from limner.prompts.types import Box
from limner.sessions.answers.answer import Answer
from limner.sessions.answers.answer_table import AnswerTable
from limner.sessions.history.log import CommittedMask, PromptLog
from limner.sessions.propagation.plan import PropagationPlan

Mask: TypeAlias = NDArray[np.bool_]


class AnnotatedFrames:
    """The frames with prompts, and what is on them.

    Args:
        log: prompts and propagated frames.
        answers: to the prompts.
        frame_name: what a frame is called in messages.
    """

    def __init__(self, log: PromptLog, answers: AnswerTable, frame_name: str) -> None:
        self._log, self._answers, self._frame_name = log, answers, frame_name

    def by_object(self) -> dict[int, tuple[int, ...]]:
        """The annotated frames of every object that has some, ascending."""
        return {i: frames for i in self._log.object_ids if (frames := self._log.frames(i))}

    def answer(self, object_id: int, frame: int) -> Answer:
        """The answer to the prompts on a frame.

        Raises:
            SessionError: they were taken back.
        """
        self.check(object_id, frame)
        return self._answers.answer(object_id, frame)

    def mask(self, object_id: int, frame: int) -> Mask:
        """The mask on a frame with prompts; see `answer`."""
        return self.answer(object_id, frame).region.mask()

    def check(self, object_id: int, frame: int) -> None:
        """Refuse to go on from a frame whose prompts were taken back in between.

        Raises:
            SessionError: they were.
        """
        if not self._log.prompts(object_id, frame):
            raise SessionError(
                f"The prompts of object {object_id} on {self._frame_name} {frame} were "
                "taken back; call propagate() again."
            )

    def boxes(self, object_id: int, frames: Sequence[int]) -> dict[int, Box]:
        """The object's box on frames with prompts: the last one given, or around the answer."""
        boxes = {}
        for frame in frames:
            prompts = (a.prompt for a in self._log.prompts(object_id, frame))
            given = [prompt for prompt in prompts if isinstance(prompt, Box)]
            bounds = self._answers.answer(object_id, frame).region.mask_bounds
            if given:
                boxes[frame] = given[-1]
            elif bounds is not None:
                boxes[frame] = Box(*bounds)
        return boxes

    def nested_pairs(self) -> set[frozenset[int]]:
        """Pairs of objects of which one was drawn onto what had been carried of the other, most of
        it, as a tumour is onto its organ.
        """
        annotated = self.by_object()
        found = set()
        for i, other in permutations(self._log.object_ids, 2):
            for frame in annotated.get(i, ()):
                first = self._log.prompts(i, frame)[0].number
                stored = self._log.propagated_before(other, frame, first)
                if stored is not None and any(stored.runs[1::2]):
                    own = self.mask(i, frame)
                    propagated = self._answers.decode_frame(stored.runs)
                    if 2 * np.count_nonzero(own & propagated) > own.sum():
                        found.add(frozenset((i, other)))
        return found

    def masks_beside(self, plan: PropagationPlan) -> Callable[[int], Iterator[tuple[int, Mask]]]:
        """What is on a frame of all objects: what the user drew; of objects with a span over it
        what still holds; of others what was carried there. Forward, that are objects of other calls
        only, for what a pass backward wrote before may be run again after this one.
        """
        forward = plan.spans[0].frames.step > 0
        passed_over = plan.run.turns if forward else ()
        annotated = {i: set(self._log.frames(i)) for i in self._log.object_ids}
        propagated = {i: self._log.committed(i) for i in annotated if i not in passed_over}

        def masks_on(frame: int) -> Iterator[tuple[int, Mask]]:
            for i, frames in annotated.items():
                if frame not in frames:
                    stored = _stored_on(frame, i, plan, propagated)
                    if stored is not None:
                        yield i, self._answers.decode_frame(stored.runs)
                elif self._log.prompts(i, frame):  # they may have been taken back since
                    yield i, self.mask(i, frame)

        return masks_on


def _stored_on(
    frame: int,
    object_id: int,
    plan: PropagationPlan,
    propagated: Mapping[int, Mapping[int, CommittedMask]],
) -> CommittedMask | None:
    """What a propagation left of an object on a frame."""
    own = [s for s in plan.spans if s.object_id == object_id and frame in s.frames]
    if own:
        return plan.find_valid(own[-1], frame)
    return propagated[object_id].get(frame) if object_id in propagated else None
