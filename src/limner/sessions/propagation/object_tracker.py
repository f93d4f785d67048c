"""Object trackers: each object followed by a memory of its own, in a window that moves with it.

The window keeps its size, so that what a model remembers of places stays true; where the object
outgrows it, or becomes small in it, the memory is begun again with another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.adapters.axes import Bounds
from limner.models import PreviousFrame, TrackerModel
from limner.sessions.answers.answer import Answer
from limner.sessions.answers.image_view import ImageView
from limner.sessions.answers.sparse_logits import SparseLogits
from limner.sessions.answers.window import LEAST_MARGIN, LEAST_WINDOW, grown, view_shape
from limner.sessions.answers.zoom import ViewPrediction, to_image_grid
from limner.sessions.propagation.exclusion import (
    find_overlapping,
    keep_off_others,
    separate_objects,
)
from limner.sessions.propagation.schedule import FrameSpan
from limner.sessions.propagation.snapshots import ResumeState

Array = NDArray[Any]

MARGIN = 0.4  # of the object's size, around it on each side
TOO_LARGE = 2.5  # times as wide as it would be now, a window is made anew
WIDER = 1.5  # what a window that the object touches grows to
MOST_WIDENINGS = 3  # on one frame
MOST_MISSED = 2  # slices without the object, after which it has ended
SURE = 0.5  # score from which an object that was lost counts as found again
_REMEMBERED = "memory."  # before the names of what a model remembers


@dataclass(frozen=True)
class TrackingOptions:
    """What the frames are like.

    Attributes:
        zoom: whether to look at windows.
        returns: whether an object that has left may come back, as in a video; a volume's does not.
    """

    zoom: bool
    returns: bool


class ObjectTracker:
    """One object on its way over the frames of a span.

    Args:
        model: that follows.
        span: from where to where.
        marks: the object's annotated frames that count, with its masks: where the span begins, and
            the next one ahead.
        view: a frame as the model sees it.
        options: what the frames are like.
        state: to go on from; None: begin.
    """

    def __init__(
        self,
        model: TrackerModel,
        span: FrameSpan,
        marks: Mapping[int, NDArray[np.bool_]],
        view: Callable[[int], ImageView],
        options: TrackingOptions,
        state: Mapping[str, Array] | None = None,
    ) -> None:
        self.span = span
        self._model, self._view, self._options = model, view, options
        self._given = {k: SparseLogits.of_mask(mask) for k, mask in marks.items()}
        self._last = span.source, self._given[span.source]
        self._missed = 0
        self._side: tuple[int, int] | None = None
        self._centre = (0.0, 0.0)
        self.memory: Mapping[str, Array] | None = None
        self._afar: Mapping[str, Array] | None = None  # of annotated frames, each seen as a whole
        if state is None:
            self._begin_memory(self._window_sides(self._given.values()))
        else:
            self._restore(state)

    @property
    def state(self) -> dict[str, Array]:
        """All that what follows depends on, besides the span and its annotated frames."""
        frame, region = self._last
        assert self.memory is not None
        return {
            **{f"{_REMEMBERED}{name}": array for name, array in self.memory.items()},
            "at": np.array([frame, self._missed, *region.low]),
            "last": region.grid,
            "side": np.array(self._side or (), np.int64),
            "centre": np.array(self._centre),
        }

    def _restore(self, state: Mapping[str, Array]) -> None:
        named = {k: a for k, a in state.items() if k.startswith(_REMEMBERED)}
        self.memory = {k.removeprefix(_REMEMBERED): a for k, a in named.items()}
        frame, self._missed, *low = (int(n) for n in state["at"])
        shape = self._given[self.span.source].shape
        self._last = frame, SparseLogits(shape, tuple(low), state["last"])
        sides = [int(n) for n in state["side"]]
        self._side = (sides[0], sides[1]) if sides else None
        self._centre = float(state["centre"][0]), float(state["centre"][1])

    @property
    def has_ended(self) -> bool:
        """Whether the object is not looked for any more."""
        return not self._options.returns and self._missed >= MOST_MISSED

    def find(self, frame: int) -> ViewPrediction:
        """Look for the object on a frame."""
        view = self._view(frame)
        for _ in range(MOST_WIDENINGS + 1):
            prediction = self._predict_near_last(frame)
            if (
                self._side is None
                or grown(prediction.logits, prediction.bounds, view.shape) == prediction.bounds
            ):
                break
            sides = [min(int(WIDER * n), m) for n, m in zip(self._side, view.shape, strict=True)]
            self._begin_memory((sides[0], sides[1]))
        if (
            prediction.found is None
            and self._missed
            and self._options.returns
            and self._side is not None
        ):
            return self._search_whole_frame(frame) or prediction
        return prediction

    def keep(self, frame: int, prediction: ViewPrediction) -> None:
        """Go on from the answer on a frame."""
        found = prediction.found
        self._missed = 0 if found is not None else self._missed + 1
        view = self._view(frame)
        seen = self._encode(view, prediction.bounds, prediction.logits.shape)
        if found is not None or not self._missed > 1:
            assert self.memory is not None
            self.memory = self._model.remember(
                self.memory, seen, prediction.logits, place=frame, given=False
            )
        region = to_image_grid(view, prediction)
        self._last = frame, region
        if found is None:
            return
        self._centre = _middle(found)
        if self._side is not None:
            wanted = self._window_sides([region, self._given[self.span.source]])
            if wanted is not None and max(self._side) > TOO_LARGE * max(wanted):
                self._begin_memory(wanted)

    # The window, and what is seen in it.

    def _begin_memory(self, side: tuple[int, int] | None) -> None:
        """Remember all that is known, in windows of a size; None: whole frames."""
        self._side = side
        known = {k: (region, True) for k, region in self._given.items()}
        frame, region = self._last
        if frame not in known and region.mask_bounds is not None:
            known[frame] = region, False
        if region.mask_bounds is not None:  # where a frame ahead without the object is looked at
            self._centre = _middle(region.mask_bounds)
        self.memory = self._remember_frames(known, self._window)

    def _remember_frames(
        self,
        known: Mapping[int, tuple[SparseLogits, bool]],
        place: Callable[[ImageView, SparseLogits], tuple[Bounds, tuple[int, ...]]],
    ) -> Mapping[str, Array] | None:
        """A new memory of some frames, where the span begins first; whether they were given."""
        memory: Mapping[str, Array] | None = None
        for frame, (region, given) in sorted(known.items(), key=lambda k: k[0] != self.span.source):
            view = self._view(frame)
            bounds, shape = place(view, region)
            seen, logits = self._encode(view, bounds, shape), region.shrunk(*bounds, shape)
            memory = self._model.remember(memory, seen, logits, place=frame, given=given)
        return memory

    def _search_whole_frame(self, frame: int) -> ViewPrediction | None:
        """An object that was lost, in the whole frame, then again from near; None: it is not there.

        What is looked like by chance is found here as well, so only a sure answer counts.
        """
        if self._afar is None:
            given = {k: (region, True) for k, region in self._given.items()}
            self._afar = self._remember_frames(given, self._whole_view)
        view = self._view(frame)
        far = self._predict_window(self._afar, frame, self._whole_view(view), None)
        if far.found is None or far.score < SURE:
            return None
        there = to_image_grid(view, far)
        near = self._predict_window(self.memory, frame, self._window(view, there), None)
        return near if near.found is not None and near.score >= SURE else None

    def _predict_near_last(self, frame: int) -> ViewPrediction:
        where = self._window(self._view(frame), self._last[1])
        return self._predict_window(self.memory, frame, where, self._last)

    def _predict_window(
        self,
        memory: Mapping[str, Array] | None,
        frame: int,
        where: tuple[Bounds, tuple[int, ...]],
        last: tuple[int, SparseLogits] | None,
    ) -> ViewPrediction:
        """The model's answer on a view; the frame before, if it is shown, and the mask there."""
        bounds, shape = where
        shown = None
        if last is not None and last[1].mask_bounds is not None:
            past = self._view(last[0]).crop(bounds, shape)
            shown = PreviousFrame(past, last[1].shrunk(*bounds, shape))
        assert memory is not None
        seen = self._encode(self._view(frame), bounds, shape)
        found = self._model.track_object(memory, seen, shown, place=frame)
        logits = np.asarray(found.logits, dtype=np.float32)
        if logits.shape != shape:
            raise ValueError(
                f"{self._model.card.name} answered logits of shape {logits.shape} to a view of "
                f"{shape}."
            )
        return ViewPrediction(logits, bounds, float(np.nan_to_num(found.score)), None)

    def _encode(self, view: ImageView, bounds: Bounds, shape: tuple[int, ...]) -> Any:
        """A view, looked at once for all objects that are in it."""
        return view.tracker_embedding(self._model, bounds, shape)

    def _window(self, view: ImageView, region: SparseLogits) -> tuple[Bounds, tuple[int, ...]]:
        """Around a mask, or, without one, where the object was last; inside the frame."""
        limits = self._model.card.limits(2)
        if self._side is None or limits is None:
            return view.whole, view.shape
        centre = self._centre if region.mask_bounds is None else _middle(region.mask_bounds)
        low = []
        for middle, side, size in zip(centre, self._side, view.shape, strict=True):
            low.append(int(np.clip(round(middle - side / 2), 0, size - side)))
        bounds = tuple(low), tuple(a + n for a, n in zip(low, self._side, strict=True))
        return bounds, view_shape(view, bounds, limits)

    def _whole_view(
        self, view: ImageView, _: SparseLogits | None = None
    ) -> tuple[Bounds, tuple[int, ...]]:
        """The whole frame, as coarse as it has to be."""
        limits = self._model.card.limits(2)
        return view.whole, view.shape if limits is None else view_shape(view, view.whole, limits)

    def _window_sides(self, regions: Any) -> tuple[int, int] | None:
        """Sides of a window that holds each of some masks, with a margin; None: no window."""
        limits = self._model.card.limits(2)
        if not self._options.zoom or limits is None:
            return None
        bounds = [r.mask_bounds for r in regions if r.mask_bounds is not None]
        size = np.max([np.subtract(b[1], b[0]) for b in bounds], axis=0).astype(float)
        wide = float(np.max(size + 2 * np.maximum(MARGIN * size.max(), LEAST_MARGIN)))
        wide = max(wide, LEAST_WINDOW * max(limits))
        rows, columns = (int(min(np.ceil(wide), n)) for n in self._last[1].shape)
        return rows, columns


def track_objects(
    model: TrackerModel,
    found: Sequence[FrameSpan],
    marks: Mapping[int, Sequence[int]],
    view: Callable[[int], ImageView],
    drawn: Callable[[int, int], NDArray[np.bool_]],
    options: TrackingOptions,
    *,
    resume: ResumeState | None = None,
    beside: Callable[[int], Iterable[tuple[int, NDArray[np.bool_]]]] = lambda _: (),
    nested: Iterable[frozenset[int]] = (),
) -> Iterator[tuple[FrameSpan, int, Answer]]:
    """One pass over the frames of some spans of one direction, frame by frame.

    A span depends on nothing but the annotated frame that it begins at and the next one ahead, but
    that objects exclude one another which nowhere overlap on annotated frames: what is run together
    by who is surer of a pixel, and what was there before keeps what it has.

    Args:
        model: what sees and remembers.
        found: spans in one direction; where each begins its object is not absent.
        marks: all annotated frames by object.
        view: a frame as the model sees it.
        drawn: an object's mask on an annotated frame.
        options: what the frames are like.
        resume: to go on where an earlier pass stopped.
        beside: what is there of objects on a frame, also of those that are not run.
        nested: pairs of objects that may overlap, besides those that do where they are annotated.

    Yields:
        The span, the frame, and where the object is there; nothing for frames of a span beyond the
        object's end.
    """
    if not found:
        return
    step = found[0].frames.step
    tracks: dict[FrameSpan, ObjectTracker] = {}
    may_overlap = {*nested, *find_overlapping(found, marks, drawn)}
    at, states = (-1, {}) if resume is None else resume.load()

    def begun(span: FrameSpan) -> ObjectTracker:
        near = {span.source, *_ahead(span, marks[span.object_id])}
        given = {k: drawn(span.object_id, k) for k in near}
        return ObjectTracker(model, span, given, view, options, states.get(span))

    for frame in sorted({k for span in found for k in span.frames})[::step]:
        here = [span for span in found if frame in span.frames]
        here = [span for span in here if span not in states or (frame - at) * step > 0]
        tracks |= {span: begun(span) for span in here if span not in tracks}
        predictions = {
            span: tracks[span].find(frame) for span in here if not tracks[span].has_ended
        }
        predictions = separate_objects(view(frame), predictions, may_overlap)
        predictions = keep_off_others(view(frame), predictions, beside(frame), may_overlap)
        for span, prediction in predictions.items():
            tracks[span].keep(frame, prediction)
            yield span, frame, Answer(to_image_grid(view(frame), prediction), prediction.score)
        tracks = {span: track for span, track in tracks.items() if frame != span.frames[-1]}
        if resume is not None and resume.due():
            resume.save(frame, {span: track.state for span, track in tracks.items()})


def _ahead(span: FrameSpan, marks: Sequence[int]) -> list[int]:
    """The next annotated frame in the direction of a span, if there is one."""
    further = [k for k in marks if (k - span.source) * span.frames.step > 0]
    return [min(further, key=lambda k: abs(k - span.source))] if further else []


def _middle(bounds: Bounds) -> tuple[float, float]:
    (top, left), (bottom, right) = bounds
    return (top + bottom) / 2, (left + right) / 2
