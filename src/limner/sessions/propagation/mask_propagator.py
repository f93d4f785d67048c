"""Propagation from mask to mask, without a memory: the answer on one frame is the prompt on the
next. And by boxes that move from one annotated frame to another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from limner.errors import SessionError
from limner.models import MaskCarrier, PromptableModel, Segmentation
from limner.prompts.types import Box, MaskPrompt, Prompt
from limner.sessions.answers.answer import Answer, Query
from limner.sessions.answers.zoom import answer_queries
from limner.sessions.propagation.prefetch import FrameView, prefetch_embeddings
from limner.sessions.propagation.schedule import (
    FrameSpan,
    box_around,
    interpolate_box,
    limit_growth,
)

_LOOKAHEAD = 16  # frames to come among which those to encode together are looked for


@dataclass(frozen=True, eq=False)
class SpanState:
    """Where a span has got to: the last answer, and the prompts on the frame that it began at."""

    answer: Answer
    prompts: Sequence[Prompt]


class MaskPropagator:
    """Carries in one direction, all objects together.

    Args:
        model: what is asked.
        view: a frame as the model sees it.
        zoom: whether the model looks twice.
    """

    def __init__(
        self, model: PromptableModel, view: Callable[[int], FrameView], *, zoom: bool
    ) -> None:
        self._model, self._view, self._zoom = model, view, zoom
        self._by_masks = self.follows_masks(model)

    def propagate(
        self,
        spans: Sequence[FrameSpan],
        start: Callable[[FrameSpan], SpanState],
        known: Callable[[FrameSpan, int], Answer | None],
    ) -> Iterator[tuple[FrameSpan, int, Answer]]:
        """From mask to mask; nothing for frames beyond the one from which an object has vanished.

        Args:
            spans: all in one direction.
            start: the answer on the annotated frame of a span.
            known: a mask that the span left on a frame before, None where there is none. It is gone
                on from; a model that carries in its own way has to find it again, since it may look
                at more than the mask.
        """
        step = spans[0].frames.step
        frames = sorted({k for span in spans for k in span.frames})[::step]
        skips = not isinstance(self._model, MaskCarrier)
        to_ask = {k for span in spans for k in span.frames if not (skips and known(span, k))}
        state: dict[FrameSpan, SpanState] = {}
        vanished: set[FrameSpan] = set()
        for place, frame in enumerate(frames):
            queries: dict[FrameSpan, Query] = {}
            for span in (span for span in spans if frame in span.frames and span not in vanished):
                if span not in state:
                    state[span] = start(span)
                there = known(span, frame) if skips else None
                if there is not None:
                    state[span] = replace(state[span], answer=there)
                elif prompts := self._next_prompts(frame, state[span]):
                    queries[span] = Query(prompts)
                else:
                    vanished.add(span)
            ahead = [k for k in frames[place : place + _LOOKAHEAD] if k in to_ask]
            for span, found in zip(queries, self._answer_next(ahead, queries), strict=True):
                before = state[span]
                if self._by_masks:
                    found = limit_growth(found, before.answer.region)
                state[span] = replace(before, answer=found)
                yield span, frame, found

    def interpolate(
        self,
        spans: Sequence[FrameSpan],
        marks: Mapping[int, Mapping[int, Box]],
        known: Callable[[FrameSpan, int], bool],
    ) -> Iterator[tuple[FrameSpan, int, Answer]]:
        """By boxes that move evenly.

        Args:
            spans: the gaps between annotated frames.
            marks: boxes by object and annotated frame.
            known: whether a frame of a span need not be asked about.
        """
        frames = sorted({k for span in spans for k in span.frames if not known(span, k)})
        for place, frame in enumerate(frames):
            here = [span for span in spans if frame in span.frames and not known(span, frame)]
            boxes = {span: interpolate_box(marks[span.object_id], frame) for span in here}
            queries = {span: Query([box]) for span, box in boxes.items() if box is not None}
            for span, found in zip(
                queries, self._answer_next(frames[place:], queries), strict=True
            ):
                yield span, frame, found

    def _answer_next(self, frames: Sequence[int], queries: Mapping[Any, Query]) -> Iterator[Answer]:
        """The answers on the first of some frames; the others come next."""
        if not queries:
            return iter(())
        prefetch_embeddings(self._model, self._view, frames, zoom=self._zoom)
        view = self._view(frames[0])
        return answer_queries(self._model, view, list(queries.values()), zoom=self._zoom)

    def _next_prompts(self, frame: int, before: SpanState) -> Sequence[Prompt]:
        """The prompts for the next frame; none where the object has vanished."""
        region, understood = before.answer.region, self._model.card.prompts
        if isinstance(self._model, MaskCarrier):  # it also decides when an object has vanished
            here, memory = self._view(frame), before.answer.memory
            kept = None if memory is None else memory.on(here.whole, here.shape)
            shown = Segmentation(region.full(), before.answer.score, kept)
            view = here.crop(here.whole, here.shape)
            return tuple(self._model.next_prompts(view, shown, before.prompts))
        if not self._by_masks:
            repeated = tuple(p for p in before.prompts if p.num_axes is None)
            if not repeated:
                raise SessionError(
                    f"{self._model.card.name} takes neither masks nor boxes to carry on."
                )
            return repeated
        if region.mask_bounds is None:
            return ()
        return (MaskPrompt(region.mask()),) if "mask" in understood else (box_around(region),)

    @staticmethod
    def follows_masks(model: PromptableModel) -> bool:
        """Whether a mask is carried from frame to frame by us, as a mask or as a box."""
        takes = bool(model.card.prompts & {"mask", "box"})
        return takes and not isinstance(model, MaskCarrier)
