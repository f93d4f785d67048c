"""Volumes and videos are made of planes: the answers on each, and what was carried to them."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner import rle
from limner.errors import PromptError, SessionError
from limner.models import PromptableModel
from limner.prompts.convert import check_inside
from limner.prompts.types import Box, Prompt
from limner.sessions.answers.finite import finite
from limner.sessions.answers.image_view import ImageView
from limner.sessions.answers.prediction import Prediction
from limner.sessions.answers.sparse_logits import SparseLogits
from limner.sessions.base import BaseSession, Part
from limner.sessions.history.events import Runs
from limner.sessions.history.ids import check_frame, check_object_id
from limner.sessions.history.log import Action
from limner.sessions.propagation.plan import PropagationPlan
from limner.sessions.propagation.prefetch import FrameView, num_prefetched
from limner.sessions.propagation.review import ReviewFrame, choose_worst, rate_certainty

_CACHED_SCENES = 4


class PlanesSession(BaseSession):
    """A conversation about an image of several planes: slices of a volume, frames of a video."""

    plane_name = "frame"

    @cached_property
    def _scenes(self) -> OrderedDict[tuple[int, bool], FrameView]:
        """The frames looked at last, by whether the propagator did."""
        return OrderedDict()

    @property
    def num_frames(self) -> int:
        """Number of frames or slices."""
        return self.image.geometry.shape[0]

    def resume_propagation(self) -> Iterator[Prediction]:
        """Go on with the propagation that was asked for last, as after a crash: `propagate` with
        the same arguments, which runs only what is missing.

        Raises:
            SessionError: none was asked for, or it cannot begin.
        """
        asked = self.requested
        if asked is None:
            raise SessionError("No propagation was begun in this session; call propagate().")
        return self.propagate(
            start=asked.start,
            stop=asked.stop,
            direction=asked.direction,
            object_id=asked.object_id,
            how=asked.how,
        )

    def frames_to_review(
        self, count: int = 5, *, object_id: int | None = None
    ) -> tuple[ReviewFrame, ...]:
        """The propagated frames that most need a look, the worst first.

        A frame is doubtful where its score is low, or where the mask jumps in area or place against
        the frames beside it. Frames near one another are one entry: correct the worst, propagate,
        and ask again.

        Args:
            count: of frames, at most.
            object_id: one object, default all.

        Returns:
            Tuples ``(frame, score, object_id)``; the score is 0…1, and the object the one that is
            in doubt there.
        """
        self._check_open()
        objects = self.object_ids if object_id is None else (check_object_id(object_id),)
        sure: dict[int, tuple[float, int]] = {}
        for i in objects:
            marked = self._log.frames(i)
            left_out = {*marked, *self.image.damaged}
            written = self._log.committed(i).items()
            carried = {k: (w.runs, w.score) for k, w in written if k not in left_out}
            beside = (k for k in marked if {k - 1, k + 1} & carried.keys())
            fixed = {k: array("Q", rle.encode(self._frame_answer(i, k).mask())) for k in beside}
            for k, score in rate_certainty(carried, fixed).items():
                sure[k] = min(sure.get(k, (score, i)), (score, i))
        return choose_worst(sure, count)

    # -- the model that carries ---------------------------------------------------------------

    @property
    def _carrier(self) -> PromptableModel:
        """What carries answers from frame to frame."""
        return self.model if self.propagator is None else self.propagator

    @property
    def _carrier_zooms(self) -> bool:
        zoom = self.options.propagator_zoom
        return self.options.zoom if self.propagator is None or zoom is None else zoom

    # -- answers ------------------------------------------------------------------------------

    def _frame_answer(self, object_id: int, frame: int) -> SparseLogits:
        return self._answer(object_id, frame, self._log.prompts(object_id, frame)).region

    def _base(self, object_id: int, frame: int | None, first: Action) -> SparseLogits | None:
        """What earlier actions left on this frame, so that a first correction starts from it."""
        if frame is None:
            return None
        committed = self._log.carried_before(object_id, frame, first.number)
        if committed is not None:
            return SparseLogits.of_mask(self._decoded(committed.runs))
        earlier = [a for a in self._log.prompts(object_id, None) if a.number < first.number]
        return self._answer(object_id, None, earlier).region.plane(frame) if earlier else None

    def _parts(self, object_id: int) -> Iterator[Part]:
        """Frame by frame: answers there, over propagated masks, over the answer on the whole."""
        frames, committed = set(self._log.frames(object_id)), self._log.committed(object_id)
        known = frames | committed.keys()
        if said := self._log.prompts(object_id, None):
            region = self._answer(object_id, None, said).region
            _, rows, columns = region.slices
            for frame, part in enumerate(region.inside, start=region.low[0]):
                if frame not in known:
                    yield (frame, rows, columns), part
        for frame in sorted(known):
            if frame in frames:
                region = self._frame_answer(object_id, frame)
                rows, columns = region.slices
                yield (frame, rows, columns), region.inside
            else:
                mask = self._decoded(committed[frame].runs)
                yield (frame, slice(None), slice(None)), mask

    def _drawn(self, object_id: int, frame: int) -> NDArray[np.bool_]:
        """The mask on a frame with prompts."""
        self._check_source(object_id, frame)
        return self._frame_answer(object_id, frame).mask()

    def _marks(self, object_id: int, frames: Sequence[int]) -> dict[int, Box]:
        """The object's box on each frame with prompts: the last one given, or around the answer."""
        marks = {}
        for frame in frames:
            said = self._log.prompts(object_id, frame)
            given = [a.prompt for a in said if isinstance(a.prompt, Box)]
            bounds = self._answer(object_id, frame, said).region.mask_bounds
            if given:
                marks[frame] = given[-1]
            elif bounds is not None:
                marks[frame] = Box(*bounds)
        return marks

    def _check_source(self, object_id: int, source: int) -> None:
        """Refuse to go on from a frame whose prompts were taken back in between."""
        if not self._log.prompts(object_id, source):
            raise SessionError(
                f"The prompts of object {object_id} on {self.plane_name} {source} were "
                "taken back; call propagate() again."
            )

    def _beside(
        self, where: PropagationPlan
    ) -> Callable[[int], Iterator[tuple[int, NDArray[np.bool_]]]]:
        """What is there of all objects on a frame: what the user drew; of objects with a span over
        it what still holds; of others what was carried there. Forward, that are objects of other
        calls only, for what a pass backward wrote before may be run again after this one.
        """
        forward = where.spans[0].frames.step > 0
        passed_over = where.run.turns if forward else ()
        marks = {i: set(self._log.frames(i)) for i in self.object_ids}
        carried = {i: self._log.committed(i) for i in marks if i not in passed_over}

        def beside(frame: int) -> Iterator[tuple[int, NDArray[np.bool_]]]:
            own = {span.object_id: span for span in where.spans if frame in span.frames}
            for i, annotated in marks.items():
                if frame in annotated:
                    if self._log.prompts(i, frame):  # they may have been taken back since
                        yield i, self._drawn(i, frame)
                    continue
                there = where.right(own[i], frame) if i in own else None
                if i not in own and i in carried:
                    there = carried[i].get(frame)
                if there is not None:
                    yield i, self._decoded(there.runs)

        return beside

    def _nested(self) -> set[frozenset[int]]:
        """Pairs of objects of which one was drawn onto what had been carried of the other, most of
        it, as a tumour is onto its organ.
        """
        marks = {i: self._log.frames(i) for i in self.object_ids}
        found = set()
        for i, other in permutations(marks, 2):
            for frame in marks[i]:
                first = self._log.prompts(i, frame)[0].number
                there = self._log.carried_before(other, frame, first)
                if there is not None and any(there.runs[1::2]):
                    own = self._drawn(i, frame)
                    if 2 * np.count_nonzero(own & self._decoded(there.runs)) > own.sum():
                        found.add(frozenset((i, other)))
        return found

    # -- planes -------------------------------------------------------------------------------

    def _scene(self, frame: int | None) -> ImageView:
        assert frame is not None
        return self._plane_of(frame)

    def _carrier_plane(self, frame: int) -> FrameView:
        """A frame for the model that carries."""
        return self._plane_of(frame, carries=self.propagator is not None)

    def _plane_of(self, frame: int, *, carries: bool = False) -> FrameView:
        """A frame for one of the two models: what was encoded is of use to one of them only."""
        key = (frame, carries)
        if key not in self._scenes:
            geometry = self.image.geometry.slice_at(frame)
            self._scenes[key] = FrameView(
                self._plane(frame),
                geometry.spacing,
                self._intensity(),
                self.image.modality,
                windowed=self.options.window is not None,
            )
            ahead = num_prefetched(self._carrier, zoom=self._carrier_zooms)
            while len(self._scenes) > _CACHED_SCENES + ahead:
                self._scenes.popitem(last=False)
        return self._scenes[key]

    def _plane(self, frame: int) -> NDArray[Any]:
        """Pixels of one frame, finite."""
        return finite(self.image.slice_at(frame), self.image)

    def _intensity(self) -> tuple[float, float]:
        """Limits for black and white, the same for all frames."""
        raise NotImplementedError

    def _on_frame(self, prompt: Prompt, frame: int) -> tuple[Prompt, int]:
        """Check a 2D prompt against one frame."""
        if not 0 <= frame < self.num_frames:
            raise PromptError(
                f"There is no {self.plane_name} {frame}; they are 0…{self.num_frames - 1}."
            )
        check_inside(prompt, self.image.geometry.shape[1:], what=self.plane_name)
        return prompt, frame

    def _range(self, start: int | None, stop: int | None) -> tuple[int, int]:
        low = 0 if start is None else check_frame(start)
        high = self.num_frames if stop is None else check_frame(stop)
        if not 0 <= low < high <= self.num_frames:
            raise ValueError(
                f"Frames {low}…{high} are no range within 0…{self.num_frames} (half-open)."
            )
        return low, high

    def _decoded(self, runs: Runs) -> NDArray[np.bool_]:
        return np.asarray(rle.decode(runs, self.image.geometry.shape[1:]), dtype=np.bool_)
