"""Propagation of masks over the slices of a volume, the frames of a video.

A plan says which frames follow from which and what of it is there already (`plan`, `schedule`,
`provenance`); a propagator finds the rest, from mask to mask (`mask_propagator`), by a memory of
each object (`object_tracker`) or of all together (`memory_propagator`); the writer puts every frame
into the log before it is handed out (`frame_writer`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, cached_property, partial
from typing import Any

from limner.errors import SessionError
from limner.models import MemoryModel, PromptableModel, TrackerModel
from limner.prompts.types import MaskPrompt, Prompt
from limner.sessions.answers.answer import Answer
from limner.sessions.answers.answer_table import AnswerTable
from limner.sessions.answers.changed_box import LastMasks
from limner.sessions.answers.prediction import Prediction
from limner.sessions.history.events import PropagationRequest
from limner.sessions.history.ids import check_frame, check_object_id
from limner.sessions.history.manifest import Options
from limner.sessions.history.recorder import Recorder
from limner.sessions.propagation import provenance
from limner.sessions.propagation.annotations import AnnotatedFrames
from limner.sessions.propagation.frame_writer import FrameAnswers, FrameWriter
from limner.sessions.propagation.mask_propagator import MaskPropagator, SpanState
from limner.sessions.propagation.memory_propagator import (
    chain_digests,
    plan_route,
    propagate_with_memory,
)
from limner.sessions.propagation.object_tracker import MOST_MISSED, TrackingOptions, track_objects
from limner.sessions.propagation.plan import PropagationPlan, PropagationRun
from limner.sessions.propagation.prefetch import FrameView
from limner.sessions.propagation.schedule import (
    FrameSpan,
    assign_spans,
    box_around,
    find_gaps,
)
from limner.sessions.propagation.snapshots import Part, ResumeState, SnapshotStore
from limner.sessions.views import FrameViews

WAYS = ("carry", "interpolate")


class Propagation:
    """Carries the masks of a session to frames without prompts.

    ``how="carry"``: the answer on one frame becomes the prompt on the next: its mask, or a box
    around it. With several annotated frames each carries to the frames nearest to it. An object
    that vanishes is not carried further, and is taken off frames that an earlier propagation had
    put it on. A model with a method ``next_prompts(view, before, prompts)``
    (`limner.models.MaskCarrier`) says itself what to ask next; one that takes neither masks nor
    boxes is asked with the same texts and examples everywhere. A model with a memory of each object
    (`limner.models.TrackerModel`) sees the annotated frame and the next one ahead, and what it
    found since; one with a memory of all objects together (`limner.models.MemoryModel`) all
    annotated frames on the way. Forward and backward are two passes, each of which begins anew. All
    objects are carried together, frame by frame, so that a model sees each frame once.

    ``how="interpolate"``: between annotated frames the session's model is asked with a box that
    moves evenly from one to the other, as from the long and short axes that a reader draws. The box
    is the one that was given, or the one around the answer. Needs two such frames at least; nothing
    is said beyond the outermost ones.

    Args:
        views: the frames.
        recorder: the log and its journal.
        answers: to the prompts.
        last_masks: the masks handed out before.
        model: answers prompts.
        propagator: another model that carries, which sees the answers on annotated frames as masks;
            None: `model` does it.
        options: of the session.
    """

    def __init__(
        self,
        views: FrameViews,
        recorder: Recorder,
        answers: AnswerTable,
        last_masks: LastMasks,
        model: PromptableModel,
        propagator: PromptableModel | None,
        options: Options,
    ) -> None:
        self._views, self._image, self._recorder = views, views.image, recorder
        self._log = recorder.log
        self._annotated = AnnotatedFrames(recorder.log, answers, views.frame_name)
        self._writer = FrameWriter(recorder, answers, last_masks, views.image)
        self._model, self._propagator, self._options = model, propagator, options
        self._carrier = propagator or model
        self._carrier_zooms = options.zoom_of_carrier

    def start(self, request: PropagationRequest, *, again: bool) -> Iterator[Prediction]:
        """Begin a propagation; see `limner.Session.propagate`.

        Args:
            request: what is asked for.
            again: also run what still holds.
        """
        low, high = self._check_range(request.start, request.stop)
        objects = self._log.object_ids
        if request.object_id is not None:
            objects = (check_object_id(request.object_id),)
        sources = {i: frames for i in objects if (frames := self._log.frames(i))}
        self._check_request(request, sources)
        run = PropagationRun(
            PropagationRequest(
                None if request.start is None else low,
                None if request.stop is None else high,
                request.direction,
                None if request.object_id is None else objects[0],
                request.how,
            ),
            again,
            {i: self._log.turns[i] for i in sources},
        )
        if request.how == "interpolate":
            return self._interpolate(run, sources, low, high)
        spans = [
            span
            for i, frames in sources.items()
            for span in assign_spans(i, frames, low, high, request.direction)
            if span.frames
        ]
        return self._propagate(run, spans) if spans else iter(())

    # -- one propagation ----------------------------------------------------------------------

    def _propagate(self, run: PropagationRun, spans: Sequence[FrameSpan]) -> Iterator[Prediction]:
        self._begin(run, spans)
        for step in (1, -1):
            if own := [span for span in spans if span.frames.step == step]:
                yield from self._propagate_one_way(run, own)

    def _begin(self, run: PropagationRun, spans: Sequence[FrameSpan]) -> None:
        self._recorder.check_open()
        for span in spans:
            self._annotated.check(span.object_id, span.source)
        if self._log.requested is None:
            self._snapshots.clear()
        if self._log.requested != run.request:
            self._recorder.record(run.request)

    def _propagate_one_way(
        self, run: PropagationRun, spans: Sequence[FrameSpan]
    ) -> Iterator[Prediction]:
        """All spans of one direction, by what the model can do."""
        model = self._carrier
        if not isinstance(model, (TrackerModel, MemoryModel)):
            yield from self._propagate_masks(run, spans)
            return
        absent = [s for s in spans if not self._annotated.mask(s.object_id, s.source).any()]
        if absent:  # said to be absent: nothing to carry, but perhaps something to take away
            plan = self._plan(run, absent, self._follow_from_source(absent))
            yield from self._writer.write(plan, lambda: ())
        rest = [span for span in spans if span not in absent]
        if rest and isinstance(model, TrackerModel):
            yield from self._propagate_by_tracker(run, rest, model)
        elif rest and isinstance(model, MemoryModel):
            yield from self._propagate_by_memory(run, rest, model)

    def _propagate_masks(
        self, run: PropagationRun, spans: Sequence[FrameSpan]
    ) -> Iterator[Prediction]:
        """From mask to mask."""
        ends = 1 if MaskPropagator.follows_masks(self._carrier) else None  # None: the model knows
        plan = self._plan(run, spans, self._follow_from_source(spans), ends=ends)
        propagator = MaskPropagator(self._carrier, self._carrier_view, zoom=self._carrier_zooms)

        def known(span: FrameSpan, frame: int) -> Answer | None:
            stored = plan.find_valid(span, frame)
            if stored is None or frame in self._image.damaged:  # what was found is not written
                return None
            return self._writer.load_answer(stored)

        yield from self._writer.write(
            plan, lambda: propagator.propagate(plan.missing, self._start_span, known)
        )

    def _propagate_by_tracker(
        self, run: PropagationRun, spans: Sequence[FrameSpan], model: TrackerModel
    ) -> Iterator[Prediction]:
        """By a memory of each object."""
        follows_from = self._follow_from_source(spans, ahead=True)
        options = TrackingOptions(self._carrier_zooms, returns=self._image.kind == "video")
        ends = None if options.returns else MOST_MISSED
        plan = self._plan(run, spans, follows_from, ends=ends)
        ready: dict[Part, set[int]] = {span: set(plan.known_prefix(span)) for span in spans}
        resume = ResumeState(self._snapshots, spans[0].frames.step, follows_from, ready)
        annotated, beside = self._annotated.by_object(), self._annotated.masks_beside(plan)

        def propagate() -> FrameAnswers:
            return track_objects(
                model,
                plan.missing,
                annotated,
                self._carrier_view,
                self._annotated.mask,
                options,
                resume=resume,
                beside=beside,
                nested=self._annotated.nested_pairs(),
            )

        yield from self._writer.write(plan, propagate)
        resume.drop()

    def _propagate_by_memory(
        self, run: PropagationRun, spans: Sequence[FrameSpan], model: MemoryModel
    ) -> Iterator[Prediction]:
        """By a memory of all objects together."""
        annotated = {span.object_id: self._log.frames(span.object_id) for span in spans}
        route = plan_route(spans, annotated)
        digest_of = cache(partial(provenance.of_mark, self._log))
        there, after = chain_digests(route, self._starting_digest, digest_of)
        plan = self._plan(run, spans, lambda _, frame: there[frame])
        ready: dict[Part, set[int]] = {None: set()}
        for stop in route:
            if not all(plan.find_valid(span, stop.frame) for span in stop.here.values()):
                break
            ready[None].add(stop.frame)
        resume = ResumeState(
            self._snapshots, spans[0].frames.step, lambda _, frame: after[frame], ready
        )
        view, mask = self._carrier_view, self._annotated.mask
        yield from self._writer.write(
            plan, lambda: propagate_with_memory(model, spans, annotated, view, mask, resume)
        )
        resume.drop()

    def _interpolate(
        self, run: PropagationRun, sources: Mapping[int, Sequence[int]], low: int, high: int
    ) -> Iterator[Prediction]:
        """By boxes between annotated frames."""
        spans = [
            span
            for i, frames in sources.items()
            for span in find_gaps(i, frames, low, high)
            if span.frames
        ]
        if not spans:
            return
        self._begin(run, spans)
        boxes = {i: self._annotated.boxes(i, frames) for i, frames in sources.items()}
        model_digest = self._digest_of_model(self._model, self._options.zoom)
        follows_from = {}
        for span in spans:
            own = boxes[span.object_id].items()
            before = max(((k, b.low, b.high) for k, b in own if k <= span.source), default=None)
            after = min(((k, b.low, b.high) for k, b in own if k > span.source), default=None)
            follows_from[span] = provenance.digest("between", model_digest, before, after)
        plan = self._plan(run, spans, lambda span, _: follows_from[span])
        propagator = MaskPropagator(self._model, self._views.frames.view, zoom=self._options.zoom)

        def known(span: FrameSpan, frame: int) -> bool:
            return plan.find_valid(span, frame) is not None

        yield from self._writer.write(
            plan, lambda: propagator.interpolate(plan.missing, boxes, known)
        )

    # -- what frames follow from --------------------------------------------------------------

    def _plan(
        self,
        run: PropagationRun,
        spans: Sequence[FrameSpan],
        follows_from: Callable[[FrameSpan, int], str],
        *,
        ends: int | None = None,
    ) -> PropagationPlan:
        objects = {span.object_id for span in spans}
        return PropagationPlan(
            run,
            spans,
            follows_from,
            {i: {} if run.again else self._log.known(i) for i in objects},
            {i: self._log.committed(i) for i in objects},
            ends,
            self._image.damaged,
        )

    def _follow_from_source(
        self, spans: Sequence[FrameSpan], *, ahead: bool = False
    ) -> Callable[[Any, int], str]:
        """For spans that do not depend on one another: each follows from the annotated frame that
        it begins at, the first frame that it goes to, and perhaps the next annotated one ahead.
        """
        found = {}
        for span in spans:
            frames = [span.source, *([span.ahead] if ahead and span.ahead is not None else [])]
            marks = [provenance.of_mark(self._log, span.object_id, k) for k in frames]
            first, step = span.frames[0], span.frames.step
            found[span] = provenance.digest(self._starting_digest, marks, first, step)
        return lambda span, _: found[span]

    @cached_property
    def _starting_digest(self) -> str:
        """What all that is carried follows from, besides the annotated frames."""
        return provenance.digest(
            self._digest_of_model(self._model, self._options.zoom),
            self._digest_of_model(self._carrier, self._carrier_zooms),
        )

    def _digest_of_model(self, model: PromptableModel, zoom: bool) -> str:
        return provenance.of_model(model, zoom=zoom, exact=self._options.exact)

    @cached_property
    def _snapshots(self) -> SnapshotStore:
        """Beside the journal."""
        if self._recorder.journal is None:
            return SnapshotStore(None)
        path = self._recorder.journal.path
        return SnapshotStore(path.with_name(f"{path.name}.state"))

    # -- where it starts ----------------------------------------------------------------------

    def _carrier_view(self, frame: int) -> FrameView:
        """A frame for the model that carries."""
        return self._views.frames.view(frame, propagator=self._propagator is not None)

    def _start_span(self, span: FrameSpan) -> SpanState:
        """What is on the frame that a span begins at. Another model than the one that answered
        there sees the mask only.
        """
        answer = self._annotated.answer(span.object_id, span.source)
        actions = self._log.prompts(span.object_id, span.source)
        prompts: list[Prompt] = [a.prompt for a in actions if a.prompt is not None]
        if self._propagator is None:
            return SpanState(answer, prompts)
        region, understood = answer.region, self._propagator.card.prompts
        if "mask" in understood:
            prompts = [MaskPrompt(region.mask())]
        elif "box" in understood and region.mask_bounds is not None:
            prompts = [box_around(region)]
        return SpanState(Answer(region, answer.score), prompts)

    def _check_range(self, start: int | None, stop: int | None) -> tuple[int, int]:
        count = self._image.geometry.shape[0]
        low = 0 if start is None else check_frame(start)
        high = count if stop is None else check_frame(stop)
        if not 0 <= low < high <= count:
            raise ValueError(f"Frames {low}…{high} are no range within 0…{count} (half-open).")
        return low, high

    def _check_request(
        self, request: PropagationRequest, sources: Mapping[int, Sequence[int]]
    ) -> None:
        """Refuse a propagation that cannot be."""
        if request.direction not in ("forward", "backward", "both"):
            raise ValueError(f"Direction is forward, backward or both, not {request.direction!r}.")
        if request.how not in WAYS:
            raise ValueError(f"Propagate how: {' or '.join(WAYS)}, not {request.how!r}.")
        if not sources:
            raise SessionError(
                f"No {self._views.frame_name} has prompts to start from; add one with frame=K "
                "first."
            )
        if request.how == "carry":
            return
        if "box" not in self._model.card.prompts:
            raise SessionError(
                f"{self._model.card.name} takes no boxes to interpolate; carry the mask instead."
            )
        if request.direction != "both":
            raise ValueError("Boxes are interpolated between frames, so direction is both.")
        lone = [str(i) for i, frames in sources.items() if len(frames) < 2]
        if lone:
            raise SessionError(
                f"Object {', '.join(lone)} has prompts on one {self._views.frame_name} only; to "
                "interpolate, mark two at least."
            )
