"""Carrying masks along: which frames follow from which, what of it is there already, and what runs
the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property, partial
from typing import Any, TypeAlias

from limner import rle
from limner.adapters.protocols import MemoryModel
from limner.errors import SessionError
from limner.models import TrackerModel
from limner.prompts.types import MaskPrompt, Prompt
from limner.sessions.answers.answer import Answer
from limner.sessions.answers.prediction import Prediction
from limner.sessions.answers.sparse_logits import SparseLogits
from limner.sessions.history.events import Committed, Propagated, PropagationRequest
from limner.sessions.history.ids import check_object_id
from limner.sessions.history.log import CommittedMask
from limner.sessions.propagation import provenance as basis
from limner.sessions.propagation.mask_propagator import MaskPropagator, SpanState
from limner.sessions.propagation.memory_propagator import (
    chain_digests,
    plan_route,
    propagate_with_memory,
)
from limner.sessions.propagation.object_tracker import MOST_MISSED, TrackingOptions, track_objects
from limner.sessions.propagation.plan import PropagationPlan, PropagationRun
from limner.sessions.propagation.schedule import (
    FrameSpan,
    assign_spans,
    box_around,
    find_gaps,
    interleave_spans,
)
from limner.sessions.propagation.slice_session import PlanesSession
from limner.sessions.propagation.snapshots import Part, ResumeState, SnapshotStore

WAYS = ("carry", "interpolate")
Answers: TypeAlias = Iterable[tuple[FrameSpan, int, Answer]]


class StackSession(PlanesSession):
    """A session that carries masks over the slices of a volume, the frames of a video."""

    def propagate(
        self,
        *,
        start: int | None = None,
        stop: int | None = None,
        direction: str = "both",
        object_id: int | None = None,
        how: str = "carry",
        again: bool = False,
    ) -> Iterator[Prediction]:
        """Carry masks from the frames with prompts to the others, one answer at a time.

        Frames with prompts stay as they are. Every frame is in the journal before it is yielded;
        stop by leaving the loop, and what was yielded stays. All objects are carried together,
        frame by frame, so that a model sees each frame once.

        Only what is missing is run. A frame that an earlier propagation wrote, and of which nothing
        that it follows from has changed since, is yielded as it is, before all others of its
        direction. So after leaving the loop, a crash or a correction the same call goes on, and
        `resume_propagation` repeats the call that was made last.

        ``how="carry"``: the answer on one frame becomes the prompt on the next: its mask, or a box
        around it. With several frames with prompts, each carries to the frames nearest to it. An
        object that vanishes is not carried further, and is taken off frames that an earlier
        propagation had put it on. A model with a method ``next_prompts(view, before,
        prompts)`` says itself what to ask next, from the answer before and the user's prompts; one
        that takes neither masks nor boxes is asked with the same texts and examples everywhere. A
        model with a memory of each object (`limner.models.TrackerModel`) sees the annotated frame
        and the next one ahead, and what it found since; one with a memory of all objects together
        (`limner.models.MemoryModel`) all annotated frames on the way. Forward and backward are
        two passes, each of which begins anew. Where the session has a propagator, that is the model
        that carries, and it sees the answers on annotated frames as masks.

        ``how="interpolate"``: between frames with prompts the session's model is asked with a box
        that moves evenly from one to the other, as from the long and short axes that a reader
        draws. The box is the one that was given, or the one around the answer. Needs two such
        frames at least; nothing is said beyond the outermost ones.

        Args:
            start: first frame to write, default 0.
            stop: first frame not to write, default the number of frames.
            direction: ``"forward"``, ``"backward"`` or ``"both"`` (forward first).
            object_id: one object, default all that have prompts on a frame.
            how: ``"carry"`` or ``"interpolate"``.
            again: also run what still holds.

        Yields:
            A `Prediction` per object and frame, with `frame` set.

        Raises:
            SessionError: too few frames have prompts, the model understands neither masks nor boxes
                (to interpolate: no boxes), or the conversation went on in between.
            ValueError: an unknown way or direction, an empty range of frames, or no object id.
        """
        low, high = self._range(start, stop)
        objects = self.object_ids if object_id is None else (check_object_id(object_id),)
        sources = {i: self._log.frames(i) for i in objects if self._log.frames(i)}
        self._check_way(how, direction, sources)
        run = PropagationRun(
            PropagationRequest(
                None if start is None else low,
                None if stop is None else high,
                direction,
                None if object_id is None else objects[0],
                how,
            ),
            again,
            {i: self._log.turns[i] for i in sources},
        )
        if how == "interpolate":
            return self._between(run, sources, low, high)
        found = (assign_spans(i, frames, low, high, direction) for i, frames in sources.items())
        parts = [span for own in found for span in own if span.frames]
        return self._carried(run, parts) if parts else iter(())

    # -- one propagation ----------------------------------------------------------------------

    def _carried(self, run: PropagationRun, parts: Sequence[FrameSpan]) -> Iterator[Prediction]:
        self._begin(run, parts)
        for step in (1, -1):
            if own := [span for span in parts if span.frames.step == step]:
                yield from self._pass(run, own, step)

    def _begin(self, run: PropagationRun, parts: Sequence[FrameSpan]) -> None:
        self._check_open()
        for span in parts:
            self._check_source(span.object_id, span.source)
        if self._log.requested is None:
            self._snapshots.clear()
        if self._log.requested != run.request:
            self._record(run.request)

    def _pass(
        self, run: PropagationRun, parts: Sequence[FrameSpan], step: int
    ) -> Iterator[Prediction]:
        """All spans of one direction."""
        if not isinstance(self._carrier, (TrackerModel, MemoryModel)):
            where = self._pass_of(run, parts, self._by_source(parts), ends=self._walk_ends)
            yield from self._written(where, partial(self._walk, where))
            return
        absent = [span for span in parts if not self._drawn(span.object_id, span.source).any()]
        if absent:  # said to be absent: nothing to carry, but perhaps something to take away
            where = self._pass_of(run, absent, self._by_source(absent))
            yield from self._written(where, lambda: ())
        rest = [span for span in parts if span not in absent]
        if rest and isinstance(self._carrier, TrackerModel):
            yield from self._followed(run, rest, self._carrier)
        elif rest and isinstance(self._carrier, MemoryModel):
            yield from self._recalled(run, rest, self._carrier)

    def _walk(self, where: PropagationPlan) -> Answers:
        """From mask to mask."""

        def known(span: FrameSpan, frame: int) -> Answer | None:
            there = where.right(span, frame)
            if there is None or frame in self.image.damaged:  # what was found there is not written
                return None
            return Answer(self._region(there), there.score)

        walk = MaskPropagator(self._carrier, self._carrier_plane, zoom=self._carrier_zooms)
        return walk.carried(where.missing, self._begun, known)

    def _followed(
        self, run: PropagationRun, parts: Sequence[FrameSpan], model: TrackerModel
    ) -> Iterator[Prediction]:
        """By a memory of one object at a time."""
        follows_from = self._by_source(parts, ahead=True)
        going = TrackingOptions(self._carrier_zooms, returns=self.image.kind == "video")
        ends = None if going.returns else MOST_MISSED
        where = self._pass_of(run, parts, follows_from, ends=ends)
        ready: dict[Part, set[int]] = {span: set(where.prefix(span)) for span in parts}
        kept = ResumeState(self._snapshots, parts[0].frames.step, follows_from, ready)
        marks = {i: frames for i in self.object_ids if (frames := self._log.frames(i))}
        plane, drawn, beside = self._carrier_plane, self._drawn, self._beside(where)

        def rest() -> Answers:
            return track_objects(
                model,
                where.missing,
                marks,
                plane,
                drawn,
                going,
                kept=kept,
                beside=beside,
                nested=self._nested(),
            )

        yield from self._written(where, rest)
        kept.drop()

    def _recalled(
        self, run: PropagationRun, parts: Sequence[FrameSpan], model: MemoryModel
    ) -> Iterator[Prediction]:
        """By a memory of all objects together."""
        step = parts[0].frames.step
        marks = {span.object_id: self._log.frames(span.object_id) for span in parts}
        stops = plan_route(parts, marks)
        there, after = chain_digests(
            stops, self._begun_with, cache(partial(basis.of_mark, self._log))
        )
        where = self._pass_of(run, parts, lambda _, frame: there[frame])
        ready: dict[Part, set[int]] = {None: set()}
        for stop in stops:
            if not all(where.right(span, stop.frame) for span in stop.here.values()):
                break
            ready[None].add(stop.frame)
        kept = ResumeState(self._snapshots, step, lambda _, frame: after[frame], ready)
        yield from self._written(
            where,
            lambda: propagate_with_memory(
                model, parts, marks, self._carrier_plane, self._drawn, kept
            ),
        )
        kept.drop()

    def _between(
        self, run: PropagationRun, sources: Mapping[int, Sequence[int]], low: int, high: int
    ) -> Iterator[Prediction]:
        """By boxes between annotated frames."""
        parts = [span for i, frames in sources.items() for span in find_gaps(i, frames, low, high)]
        parts = [span for span in parts if span.frames]
        if not parts:
            return
        self._begin(run, parts)
        marks = {i: self._marks(i, frames) for i, frames in sources.items()}
        asked = basis.of_model(self.model, zoom=self.options.zoom, exact=self.options.exact)
        bases = {}
        for span in parts:
            boxes = marks[span.object_id].items()
            before = max(((k, b.low, b.high) for k, b in boxes if k <= span.source), default=None)
            after = min(((k, b.low, b.high) for k, b in boxes if k > span.source), default=None)
            bases[span] = basis.digest("between", asked, before, after)
        where = self._pass_of(run, parts, lambda span, _: bases[span])
        walk = MaskPropagator(self.model, self._plane_of, zoom=self.options.zoom)

        def known(span: FrameSpan, frame: int) -> bool:
            return where.right(span, frame) is not None

        yield from self._written(where, lambda: walk.between(where.missing, marks, known))

    # -- what is there, and what is written ---------------------------------------------------

    @cached_property
    def _snapshots(self) -> SnapshotStore:
        """Beside the journal."""
        if self.journal is None:
            return SnapshotStore(None)
        path = self.journal.path
        return SnapshotStore(path.with_name(f"{path.name}.state"))

    @property
    def _begun_with(self) -> str:
        """What all that is carried follows from, besides the annotated frames."""
        exact = self.options.exact
        asked = basis.of_model(self.model, zoom=self.options.zoom, exact=exact)
        return basis.digest(
            asked, basis.of_model(self._carrier, zoom=self._carrier_zooms, exact=exact)
        )

    def _by_source(
        self, parts: Sequence[FrameSpan], *, ahead: bool = False
    ) -> Callable[[Any, int], str]:
        """For spans that do not depend on one another: each follows from the annotated frame that
        it begins at, the first frame that it goes to, and perhaps the next annotated one ahead.
        """
        begun = self._begun_with
        found = {}
        for span in parts:
            frames = [span.source, *([span.ahead] if ahead and span.ahead is not None else [])]
            marks = [basis.of_mark(self._log, span.object_id, k) for k in frames]
            found[span] = basis.digest(begun, marks, span.frames[0], span.frames.step)
        return lambda span, _: found[span]

    def _pass_of(
        self,
        run: PropagationRun,
        parts: Sequence[FrameSpan],
        follows_from: Callable[[FrameSpan, int], str],
        *,
        ends: int | None = None,
    ) -> PropagationPlan:
        objects = {span.object_id for span in parts}
        return PropagationPlan(
            run,
            parts,
            follows_from,
            {i: {} if run.again else self._log.known(i) for i in objects},
            {i: self._log.committed(i) for i in objects},
            ends,
            self.image.damaged,
        )

    def _written(
        self, where: PropagationPlan, found: Callable[[], Answers]
    ) -> Iterator[Prediction]:
        """First the frames that are there and still hold, then what is found of the others; last,
        the object is taken off frames of before on which it is not found any more.
        """
        for span, frame in interleave_spans(where.spans):
            if there := where.right(span, frame):
                yield self._confirmed(where, span, frame, there)
        left = {
            (span, frame): None
            for span, frame in interleave_spans(where.spans)
            if frame in where.visible[span.object_id] and not where.right(span, frame)
        }
        for span, frame, answer in found() if where.missing else ():
            if not where.right(span, frame):
                yield self._answered_there(where, span, frame, answer)
                left.pop((span, frame), None)
        for span, frame in left:
            yield self._answered_there(where, span, frame, self._nothing)

    def _answered_there(
        self, where: PropagationPlan, span: FrameSpan, frame: int, answer: Answer
    ) -> Prediction:
        self._check_turns(where.run)
        if frame in self.image.damaged:  # another frame stood in, and the object goes on from there
            answer = self._nothing
        counts = tuple(rle.encode(answer.region.mask()))
        self._commit(where, span, Committed(span.object_id, frame, counts, answer.score))
        return self._prediction(answer.region, answer.score, span.object_id, frame)

    @property
    def _nothing(self) -> Answer:
        """That the object is not on a frame."""
        return Answer(SparseLogits.empty(self.image.geometry.shape[1:]), 0.0)

    @property
    def _walk_ends(self) -> int | None:
        """After how many empty masks a span from mask to mask has ended; None: the model knows."""
        return 1 if MaskPropagator.follows_masks(self._carrier) else None

    def _confirmed(
        self, where: PropagationPlan, span: FrameSpan, frame: int, there: CommittedMask
    ) -> Prediction:
        """A frame that still holds; written again if something else was written over it."""
        self._check_turns(where.run)
        shown = where.visible[span.object_id].get(frame)
        if shown is None or shown.basis != there.basis:
            event = Committed(span.object_id, frame, tuple(there.runs), there.score)
            self._commit(where, span, event)
        found = self._prediction(self._region(there), there.score, span.object_id, frame)
        return replace(found, known=True)

    def _commit(self, where: PropagationPlan, span: FrameSpan, event: Committed) -> None:
        """Write a frame, as part of one propagation with the others of this run."""
        run = where.run
        if event.object_id not in run.writing:
            how, joins = run.request.how, bool(run.writing)
            self._record(Propagated((event.object_id,), how, joins))
            run.writing.add(event.object_id)
        self._record(replace(event, basis=where.basis(span, event.frame)))

    def _region(self, there: CommittedMask) -> SparseLogits:
        return SparseLogits.of_mask(self._decoded(there.runs))

    def _begun(self, span: FrameSpan) -> SpanState:
        """What is on the frame that a span begins at. Another model than the one that answered
        there sees the mask only.
        """
        self._check_source(span.object_id, span.source)
        said = self._log.prompts(span.object_id, span.source)
        prompts: list[Prompt] = [a.prompt for a in said if a.prompt is not None]
        answer = self._answer(span.object_id, span.source, said)
        if self.propagator is None:
            return SpanState(answer, prompts)
        region, understood = answer.region, self.propagator.card.prompts
        if "mask" in understood:
            prompts = [MaskPrompt(region.mask())]
        elif "box" in understood and region.mask_bounds is not None:
            prompts = [box_around(region)]
        return SpanState(Answer(region, answer.score), prompts)

    def _check_way(self, how: str, direction: str, sources: Mapping[int, Sequence[int]]) -> None:
        """Refuse a propagation that cannot be."""
        if direction not in ("forward", "backward", "both"):
            raise ValueError(f"Direction is forward, backward or both, not {direction!r}.")
        if how not in WAYS:
            raise ValueError(f"Propagate how: {' or '.join(WAYS)}, not {how!r}.")
        if not sources:
            raise SessionError(
                f"No {self.plane_name} has prompts to start from; add one with frame=K first."
            )
        if how == "carry":
            return
        if "box" not in self.model.card.prompts:
            raise SessionError(
                f"{self.model.card.name} takes no boxes to interpolate; carry the mask instead."
            )
        if direction != "both":
            raise ValueError("Boxes are interpolated between frames, so direction is both.")
        lone = [str(i) for i, frames in sources.items() if len(frames) < 2]
        if lone:
            raise SessionError(
                f"Object {', '.join(lone)} has prompts on one {self.plane_name} only; to "
                "interpolate, mark two at least."
            )

    def _check_turns(self, run: PropagationRun) -> None:
        """Refuse to go on where anything was said of an object that is carried, for it may share a
        memory with the others.
        """
        for i, turns in run.turns.items():
            if self._log.turns[i] != turns:
                raise SessionError(
                    f"The conversation about object {i} went on in between; call propagate() again."
                )
