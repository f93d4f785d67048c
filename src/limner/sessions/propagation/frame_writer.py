"""Propagated frames on their way into the log: what still holds, what was found, what has gone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TypeAlias

from limner import rle
from limner.errors import SessionError
from limner.io.image import Image
from limner.sessions.answers.answer import Answer
from limner.sessions.answers.answer_table import AnswerTable
from limner.sessions.answers.changed_box import LastMasks
from limner.sessions.answers.prediction import Prediction
from limner.sessions.answers.sparse_logits import SparseLogits
from limner.sessions.history.events import Committed, Propagated
from limner.sessions.history.log import CommittedMask
from limner.sessions.history.recorder import Recorder
from limner.sessions.propagation.plan import PropagationPlan, PropagationRun
from limner.sessions.propagation.schedule import FrameSpan, interleave_spans

FrameAnswers: TypeAlias = Iterable[tuple[FrameSpan, int, Answer]]


class FrameWriter:
    """Writes the frames of a plan into the log, and hands them out.

    Args:
        recorder: the log and its journal.
        answers: decode stored masks.
        last_masks: the masks handed out before.
        image: volume or video.
    """

    def __init__(
        self, recorder: Recorder, answers: AnswerTable, last_masks: LastMasks, image: Image
    ) -> None:
        self._recorder, self._answers, self._last_masks = recorder, answers, last_masks
        self._image = image
        nothing = SparseLogits.empty(image.geometry.shape[1:])
        self._absent = Answer(nothing, 0.0)  # the object is not on a frame

    def write(
        self, plan: PropagationPlan, propagate: Callable[[], FrameAnswers]
    ) -> Iterator[Prediction]:
        """First the frames that are there and still hold, then what is found of the others; last,
        the object is taken off frames of before on which it is not found any more.

        Args:
            plan: what to write.
            propagate: finds the masks that are missing; called only if any are.
        """
        for span, frame in interleave_spans(plan.spans):
            if stored := plan.find_valid(span, frame):
                yield self._confirm(plan, span, frame, stored)
        left = {
            (span, frame): None
            for span, frame in interleave_spans(plan.spans)
            if frame in plan.visible[span.object_id] and not plan.find_valid(span, frame)
        }
        for span, frame, answer in propagate() if plan.missing else ():
            if not plan.find_valid(span, frame):
                yield self._write_answer(plan, span, frame, answer)
                left.pop((span, frame), None)
        for span, frame in left:
            yield self._write_answer(plan, span, frame, self._absent)

    def load_answer(self, stored: CommittedMask) -> Answer:
        """A stored mask as an answer."""
        mask = self._answers.decode_frame(stored.runs)
        return Answer(SparseLogits.of_mask(mask), stored.score)

    def _write_answer(
        self, plan: PropagationPlan, span: FrameSpan, frame: int, answer: Answer
    ) -> Prediction:
        self._check_turns(plan.run)
        if frame in self._image.damaged:  # another frame stood in, and the object goes on from
            answer = self._absent  # there
        counts = tuple(rle.encode(answer.region.mask()))
        self._commit(plan, span, Committed(span.object_id, frame, counts, answer.score))
        return self._last_masks.to_prediction(answer, span.object_id, frame)

    def _confirm(
        self, plan: PropagationPlan, span: FrameSpan, frame: int, stored: CommittedMask
    ) -> Prediction:
        """A frame that still holds; written again if something else was written over it."""
        self._check_turns(plan.run)
        visible = plan.visible[span.object_id].get(frame)
        if visible is None or visible.basis != stored.basis:
            counts = tuple(stored.runs)
            self._commit(plan, span, Committed(span.object_id, frame, counts, stored.score))
        answer = self.load_answer(stored)
        return self._last_masks.to_prediction(answer, span.object_id, frame, known=True)

    def _commit(self, plan: PropagationPlan, span: FrameSpan, event: Committed) -> None:
        """Write a frame, as part of one propagation with the others of this run."""
        run = plan.run
        if event.object_id not in run.writing:
            how, joins = run.request.how, bool(run.writing)
            self._recorder.record(Propagated((event.object_id,), how, joins))
            run.writing.add(event.object_id)
        self._recorder.record(replace(event, basis=plan.provenance(span, event.frame)))

    def _check_turns(self, run: PropagationRun) -> None:
        """Refuse to go on where prompts about an object that is carried came or went, for it may
        share a memory with the others.
        """
        for i, turns in run.turns.items():
            if self._recorder.log.turns[i] != turns:
                raise SessionError(
                    f"The conversation about object {i} went on in between; call propagate() again."
                )
