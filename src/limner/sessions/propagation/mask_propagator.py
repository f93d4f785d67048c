"""Carrying objects from frame to frame without a memory: the answer on one is asked about on the
next. And asking about boxes that move from one annotated frame to another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from limner.errors import SessionError
from limner.models import CarryingModel, PromptableModel, Segmentation
from limner.prompts.types import Box, MaskPrompt, Prompt, num_axes
from limner.sessions.answers.answer import Answer, Ask
from limner.sessions.answers.zoom import answers
from limner.sessions.propagation.prefetch import Plane, encode_ahead
from limner.sessions.propagation.schedule import Leg, box_around, box_between, braked

_LOOK = 16  # frames to come among which those to encode together are looked for


@dataclass(frozen=True, eq=False)
class Reached:
    """Where a leg has got to: the last answer, and what was said on the frame it began at."""

    answer: Answer
    said: Sequence[Prompt]


class Walk:
    """Carries in one direction, all objects together.

    Args:
        model: what is asked.
        plane: a frame.
        zoom: whether the model looks twice.
    """

    def __init__(
        self, model: PromptableModel, plane: Callable[[int], Plane], *, zoom: bool
    ) -> None:
        self._model, self._plane, self._zoom = model, plane, zoom
        self._by_masks = self.follows_masks(model)

    def carried(
        self,
        legs: Sequence[Leg],
        begun: Callable[[Leg], Reached],
        known: Callable[[Leg, int], Answer | None],
    ) -> Iterator[tuple[Leg, int, Answer]]:
        """From mask to mask; nothing for frames beyond the one from which an object has vanished.

        Args:
            legs: all in one direction.
            begun: the answer on the annotated frame of a leg.
            known: a mask that the leg left on a frame before, None where there is none. It is gone
                on from; a model that carries in its own way has to find it again, since it may look
                at more than the mask.
        """
        step = legs[0].frames.step
        frames = sorted({k for leg in legs for k in leg.frames})[::step]
        skips = not isinstance(self._model, CarryingModel)
        asked = {k for leg in legs for k in leg.frames if not (skips and known(leg, k))}
        state: dict[Leg, Reached] = {}
        vanished: set[Leg] = set()
        for place, frame in enumerate(frames):
            asks: dict[Leg, Ask] = {}
            for leg in (leg for leg in legs if frame in leg.frames and leg not in vanished):
                if leg not in state:
                    state[leg] = begun(leg)
                there = known(leg, frame) if skips else None
                if there is not None:
                    state[leg] = replace(state[leg], answer=there)
                elif prompts := self._next_prompts(frame, state[leg]):
                    asks[leg] = Ask(prompts)
                else:
                    vanished.add(leg)
            ahead = [k for k in frames[place : place + _LOOK] if k in asked]
            for leg, found in zip(asks, self._asked(ahead, asks), strict=True):
                before = state[leg]
                if self._by_masks:
                    found = braked(found, before.answer.region)
                state[leg] = replace(before, answer=found)
                yield leg, frame, found

    def between(
        self,
        legs: Sequence[Leg],
        marks: Mapping[int, Mapping[int, Box]],
        known: Callable[[Leg, int], bool],
    ) -> Iterator[tuple[Leg, int, Answer]]:
        """By boxes that move evenly.

        Args:
            legs: the gaps between annotated frames.
            marks: boxes by object and annotated frame.
            known: whether a frame of a leg need not be asked about.
        """
        frames = sorted({k for leg in legs for k in leg.frames if not known(leg, k)})
        for place, frame in enumerate(frames):
            here = [leg for leg in legs if frame in leg.frames and not known(leg, frame)]
            boxes = {leg: box_between(marks[leg.object_id], frame) for leg in here}
            asks = {leg: Ask([box]) for leg, box in boxes.items() if box is not None}
            for leg, found in zip(asks, self._asked(frames[place:], asks), strict=True):
                yield leg, frame, found

    def _asked(self, frames: Sequence[int], asks: Mapping[Any, Ask]) -> Iterator[Answer]:
        """The answers on the first of some frames; the others will be asked about next."""
        if not asks:
            return iter(())
        encode_ahead(self._model, self._plane, frames, zoom=self._zoom)
        scene = self._plane(frames[0])
        return answers(self._model, scene, list(asks.values()), zoom=self._zoom)

    def _next_prompts(self, frame: int, before: Reached) -> Sequence[Prompt]:
        """What is asked on the next frame; nothing where the object has vanished."""
        region, understood = before.answer.region, self._model.card.prompts
        if isinstance(self._model, CarryingModel):  # it also decides when an object has vanished
            scene, memory = self._plane(frame), before.answer.memory
            kept = None if memory is None else memory.on(scene.whole, scene.shape)
            shown = Segmentation(region.full(), before.answer.score, kept)
            view = scene.view(scene.whole, scene.shape)
            return tuple(self._model.carry(view, shown, before.said))
        if not self._by_masks:
            repeated = tuple(p for p in before.said if num_axes(p) is None)
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
        return takes and not isinstance(model, CarryingModel)
