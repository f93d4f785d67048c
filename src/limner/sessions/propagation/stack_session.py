"""Carrying masks along: which frames follow from which, what of it is there already, and what runs
the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property, partial
from typing import Any, TypeAlias

from limner import rle
from limner.adapters.protocols import PropagatingModel
from limner.errors import SessionError
from limner.models import FollowingModel
from limner.prompts.types import MaskPrompt, Prompt
from limner.sessions.answers.answer import Answer
from limner.sessions.answers.prediction import Prediction
from limner.sessions.answers.sparse_logits import Region
from limner.sessions.history.events import Committed, Propagated, Requested
from limner.sessions.history.ids import check_object_id
from limner.sessions.history.log import Written
from limner.sessions.propagation import provenance as basis
from limner.sessions.propagation.mask_propagator import Reached, Walk
from limner.sessions.propagation.memory_propagator import chain, recalled, route
from limner.sessions.propagation.object_tracker import MOST_MISSED, Going, followed
from limner.sessions.propagation.plan import Pass, Run
from limner.sessions.propagation.schedule import Leg, box_around, gaps, in_order, legs
from limner.sessions.propagation.slice_session import PlanesSession
from limner.sessions.propagation.snapshots import Kept, Part, Snapshots

WAYS = ("carry", "interpolate")
Answers: TypeAlias = Iterable[tuple[Leg, int, Answer]]


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
        `go_on` repeats the call that was made last.

        ``how="carry"``: the answer on one frame becomes the prompt on the next: its mask, or a box
        around it. With several frames with prompts, each carries to the frames nearest to it. An
        object that vanishes is not carried further, and is taken off frames that an earlier
        propagation had put it on. A model with a method ``carry(view, before,
        prompts)`` says itself what to ask next, from the answer before and the user's prompts; one
        that takes neither masks nor boxes is asked with the same texts and examples everywhere. A
        model with a memory of each object (`limner.models.FollowingModel`) sees the annotated frame
        and the next one ahead, and what it found since; one with a memory of all objects together
        (`limner.models.PropagatingModel`) all annotated frames on the way. Forward and backward are
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
        run = Run(
            Requested(
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
        found = (legs(i, frames, low, high, direction) for i, frames in sources.items())
        parts = [leg for own in found for leg in own if leg.frames]
        return self._carried(run, parts) if parts else iter(())

    # -- one propagation ----------------------------------------------------------------------

    def _carried(self, run: Run, parts: Sequence[Leg]) -> Iterator[Prediction]:
        self._begin(run, parts)
        for step in (1, -1):
            if own := [leg for leg in parts if leg.frames.step == step]:
                yield from self._pass(run, own, step)

    def _begin(self, run: Run, parts: Sequence[Leg]) -> None:
        self._check_open()
        for leg in parts:
            self._check_source(leg.object_id, leg.source)
        if self._log.requested is None:
            self._snapshots.clear()
        if self._log.requested != run.request:
            self._record(run.request)

    def _pass(self, run: Run, parts: Sequence[Leg], step: int) -> Iterator[Prediction]:
        """All legs of one direction."""
        if not isinstance(self._carrier, (FollowingModel, PropagatingModel)):
            where = self._pass_of(run, parts, self._by_source(parts), ends=self._walk_ends)
            yield from self._written(where, partial(self._walk, where))
            return
        absent = [leg for leg in parts if not self._drawn(leg.object_id, leg.source).any()]
        if absent:  # said to be absent: nothing to carry, but perhaps something to take away
            where = self._pass_of(run, absent, self._by_source(absent))
            yield from self._written(where, lambda: ())
        rest = [leg for leg in parts if leg not in absent]
        if rest and isinstance(self._carrier, FollowingModel):
            yield from self._followed(run, rest, self._carrier)
        elif rest and isinstance(self._carrier, PropagatingModel):
            yield from self._recalled(run, rest, self._carrier)

    def _walk(self, where: Pass) -> Answers:
        """From mask to mask."""

        def known(leg: Leg, frame: int) -> Answer | None:
            there = where.right(leg, frame)
            if there is None or frame in self.image.damaged:  # what was found there is not written
                return None
            return Answer(self._region(there), there.score)

        walk = Walk(self._carrier, self._carrier_plane, zoom=self._carrier_zooms)
        return walk.carried(where.missing, self._begun, known)

    def _followed(
        self, run: Run, parts: Sequence[Leg], model: FollowingModel
    ) -> Iterator[Prediction]:
        """By a memory of one object at a time."""
        follows_from = self._by_source(parts, ahead=True)
        going = Going(self._carrier_zooms, returns=self.image.kind == "video")
        ends = None if going.returns else MOST_MISSED
        where = self._pass_of(run, parts, follows_from, ends=ends)
        ready: dict[Part, set[int]] = {leg: set(where.prefix(leg)) for leg in parts}
        kept = Kept(self._snapshots, parts[0].frames.step, follows_from, ready)
        marks = {i: frames for i in self.object_ids if (frames := self._log.frames(i))}
        plane, drawn, beside = self._carrier_plane, self._drawn, self._beside(where)

        def rest() -> Answers:
            return followed(
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
        self, run: Run, parts: Sequence[Leg], model: PropagatingModel
    ) -> Iterator[Prediction]:
        """By a memory of all objects together."""
        step = parts[0].frames.step
        marks = {leg.object_id: self._log.frames(leg.object_id) for leg in parts}
        stops = route(parts, marks)
        there, after = chain(stops, self._begun_with, cache(partial(basis.of_mark, self._log)))
        where = self._pass_of(run, parts, lambda _, frame: there[frame])
        ready: dict[Part, set[int]] = {None: set()}
        for stop in stops:
            if not all(where.right(leg, stop.frame) for leg in stop.here.values()):
                break
            ready[None].add(stop.frame)
        kept = Kept(self._snapshots, step, lambda _, frame: after[frame], ready)
        yield from self._written(
            where,
            lambda: recalled(model, parts, marks, self._carrier_plane, self._drawn, kept),
        )
        kept.drop()

    def _between(
        self, run: Run, sources: Mapping[int, Sequence[int]], low: int, high: int
    ) -> Iterator[Prediction]:
        """By boxes between annotated frames."""
        parts = [leg for i, frames in sources.items() for leg in gaps(i, frames, low, high)]
        parts = [leg for leg in parts if leg.frames]
        if not parts:
            return
        self._begin(run, parts)
        marks = {i: self._marks(i, frames) for i, frames in sources.items()}
        asked = basis.of_model(self.model, zoom=self.options.zoom, exact=self.options.exact)
        bases = {}
        for leg in parts:
            boxes = marks[leg.object_id].items()
            before = max(((k, b.low, b.high) for k, b in boxes if k <= leg.source), default=None)
            after = min(((k, b.low, b.high) for k, b in boxes if k > leg.source), default=None)
            bases[leg] = basis.digest("between", asked, before, after)
        where = self._pass_of(run, parts, lambda leg, _: bases[leg])
        walk = Walk(self.model, self._plane_of, zoom=self.options.zoom)

        def known(leg: Leg, frame: int) -> bool:
            return where.right(leg, frame) is not None

        yield from self._written(where, lambda: walk.between(where.missing, marks, known))

    # -- what is there, and what is written ---------------------------------------------------

    @cached_property
    def _snapshots(self) -> Snapshots:
        """Beside the journal."""
        if self.journal is None:
            return Snapshots(None)
        path = self.journal.path
        return Snapshots(path.with_name(f"{path.name}.state"))

    @property
    def _begun_with(self) -> str:
        """What all that is carried follows from, besides the annotated frames."""
        exact = self.options.exact
        asked = basis.of_model(self.model, zoom=self.options.zoom, exact=exact)
        return basis.digest(
            asked, basis.of_model(self._carrier, zoom=self._carrier_zooms, exact=exact)
        )

    def _by_source(self, parts: Sequence[Leg], *, ahead: bool = False) -> Callable[[Any, int], str]:
        """For legs that do not depend on one another: each follows from the annotated frame that it
        begins at, the first frame that it goes to, and perhaps the next annotated one ahead.
        """
        begun = self._begun_with
        found = {}
        for leg in parts:
            frames = [leg.source, *([leg.ahead] if ahead and leg.ahead is not None else [])]
            marks = [basis.of_mark(self._log, leg.object_id, k) for k in frames]
            found[leg] = basis.digest(begun, marks, leg.frames[0], leg.frames.step)
        return lambda leg, _: found[leg]

    def _pass_of(
        self,
        run: Run,
        parts: Sequence[Leg],
        follows_from: Callable[[Leg, int], str],
        *,
        ends: int | None = None,
    ) -> Pass:
        objects = {leg.object_id for leg in parts}
        return Pass(
            run,
            parts,
            follows_from,
            {i: {} if run.again else self._log.known(i) for i in objects},
            {i: self._log.committed(i) for i in objects},
            ends,
            self.image.damaged,
        )

    def _written(self, where: Pass, found: Callable[[], Answers]) -> Iterator[Prediction]:
        """First the frames that are there and still hold, then what is found of the others; last,
        the object is taken off frames of before on which it is not found any more.
        """
        for leg, frame in in_order(where.legs):
            if there := where.right(leg, frame):
                yield self._confirmed(where, leg, frame, there)
        left = {
            (leg, frame): None
            for leg, frame in in_order(where.legs)
            if frame in where.visible[leg.object_id] and not where.right(leg, frame)
        }
        for leg, frame, answer in found() if where.missing else ():
            if not where.right(leg, frame):
                yield self._answered_there(where, leg, frame, answer)
                left.pop((leg, frame), None)
        for leg, frame in left:
            yield self._answered_there(where, leg, frame, self._nothing)

    def _answered_there(self, where: Pass, leg: Leg, frame: int, answer: Answer) -> Prediction:
        self._check_turns(where.run)
        if frame in self.image.damaged:  # another frame stood in, and the object goes on from there
            answer = self._nothing
        counts = tuple(rle.encode(answer.region.mask()))
        self._commit(where, leg, Committed(leg.object_id, frame, counts, answer.score))
        return self._prediction(answer.region, answer.score, leg.object_id, frame)

    @property
    def _nothing(self) -> Answer:
        """That the object is not on a frame."""
        return Answer(Region.empty(self.image.geometry.shape[1:]), 0.0)

    @property
    def _walk_ends(self) -> int | None:
        """After how many empty masks a leg from mask to mask has ended; None: the model knows."""
        return 1 if Walk.follows_masks(self._carrier) else None

    def _confirmed(self, where: Pass, leg: Leg, frame: int, there: Written) -> Prediction:
        """A frame that still holds; written again if something else was written over it."""
        self._check_turns(where.run)
        shown = where.visible[leg.object_id].get(frame)
        if shown is None or shown.basis != there.basis:
            event = Committed(leg.object_id, frame, tuple(there.runs), there.score)
            self._commit(where, leg, event)
        found = self._prediction(self._region(there), there.score, leg.object_id, frame)
        return replace(found, known=True)

    def _commit(self, where: Pass, leg: Leg, event: Committed) -> None:
        """Write a frame, as part of one propagation with the others of this run."""
        run = where.run
        if event.object_id not in run.writing:
            how, joins = run.request.how, bool(run.writing)
            self._record(Propagated((event.object_id,), how, joins))
            run.writing.add(event.object_id)
        self._record(replace(event, basis=where.basis(leg, event.frame)))

    def _region(self, there: Written) -> Region:
        return Region.of_mask(self._decoded(there.runs))

    def _begun(self, leg: Leg) -> Reached:
        """What is on the frame that a leg begins at. Another model than the one that answered there
        sees the mask only.
        """
        self._check_source(leg.object_id, leg.source)
        said = self._log.prompts(leg.object_id, leg.source)
        prompts: list[Prompt] = [a.prompt for a in said if a.prompt is not None]
        answer = self._answer(leg.object_id, leg.source, said)
        if self.propagator is None:
            return Reached(answer, prompts)
        region, understood = answer.region, self.propagator.card.prompts
        if "mask" in understood:
            prompts = [MaskPrompt(region.mask())]
        elif "box" in understood and region.mask_bounds is not None:
            prompts = [box_around(region)]
        return Reached(Answer(region, answer.score), prompts)

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

    def _check_turns(self, run: Run) -> None:
        """Refuse to go on where anything was said of an object that is carried, for it may share a
        memory with the others.
        """
        for i, turns in run.turns.items():
            if self._log.turns[i] != turns:
                raise SessionError(
                    f"The conversation about object {i} went on in between; call propagate() again."
                )
