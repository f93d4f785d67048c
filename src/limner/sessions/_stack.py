"""What volumes and videos share: answers per slice or frame, and carrying masks along."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner import rle
from limner.errors import PromptError, SessionError
from limner.models import CarryingModel, EncodingModel, PromptableModel, Segmentation
from limner.models._axes import Bounds
from limner.models._family import PropagatingModel
from limner.prompts.convert import check_inside
from limner.prompts.types import Box, MaskPrompt, Prompt, num_axes
from limner.sessions._answer import Answer, Ask
from limner.sessions._base import BaseSession, Part
from limner.sessions._carry import Leg, box_around, box_between, braked, legs
from limner.sessions._finite import finite
from limner.sessions._ids import check_frame, check_object_id
from limner.sessions._log import Action, Committed, Propagated, Runs
from limner.sessions._prediction import Prediction
from limner.sessions._recall import recalled
from limner.sessions._region import Region
from limner.sessions._scene import Scene, Shape
from limner.sessions._zoom import answers

_CACHED_SCENES = 4
_MOST_AHEAD = 4  # frames encoded together; as many scenes more are kept
WAYS = ("carry", "interpolate")


class _Plane(Scene):
    """A frame, perhaps with what was encoded of it before anybody asked."""

    ahead: tuple[Any] | None = None

    def embedding(self, model: PromptableModel, bounds: Bounds, shape: Shape) -> Any:
        if self.ahead is not None and (bounds, shape) == (self.whole, self.shape):
            return self.ahead[0]
        return super().embedding(model, bounds, shape)


@dataclass(frozen=True, eq=False)
class _Carried:
    """Where a leg has got to: the last answer, and what the user said on the frame it began at."""

    answer: Answer
    said: Sequence[Prompt]


class StackSession(BaseSession):
    """A conversation about an image of several planes: slices of a volume, frames of a video."""

    plane_name = "frame"

    @cached_property
    def _scenes(self) -> OrderedDict[int, _Plane]:
        """The frames looked at last."""
        return OrderedDict()

    @property
    def num_frames(self) -> int:
        """Number of frames or slices."""
        return self.image.geometry.shape[0]

    def propagate(
        self,
        *,
        start: int | None = None,
        stop: int | None = None,
        direction: str = "both",
        object_id: int | None = None,
        how: str = "carry",
    ) -> Iterator[Prediction]:
        """Carry masks from the frames with prompts to the others, one answer at a time.

        Frames with prompts stay as they are. Every frame is in the journal before it is yielded;
        stop by leaving the loop, and what was yielded stays. All objects are carried together,
        frame by frame, so that a model sees each frame once.

        ``how="carry"``: the answer on one frame becomes the prompt on the next: its mask, or a box
        around it. With several frames with prompts, each carries to the frames nearest to it. An
        object that vanishes is not carried further, and is taken off frames that an earlier
        propagation had put it on. A model with a method ``carry(view, before,
        prompts)`` says itself what to ask next, from the answer before and the user's prompts; one
        that takes neither masks nor boxes is asked with the same texts and examples everywhere. A
        model with a memory (`limner.models.PropagatingModel`) sees all annotated frames on the way
        and what it found since; forward and backward are two passes, each of which begins anew.

        ``how="interpolate"``: between frames with prompts the model is asked with a box that moves
        evenly from one to the other, as from the long and short axes that a reader draws. The box
        is the one that was given, or the one around the answer. Needs two such frames at least;
        nothing is said beyond the outermost ones.

        Args:
            start: first frame to write, default 0.
            stop: first frame not to write, default the number of frames.
            direction: ``"forward"``, ``"backward"`` or ``"both"`` (forward first).
            object_id: one object, default all that have prompts on a frame.
            how: ``"carry"`` or ``"interpolate"``.

        Yields:
            A `Prediction` per object and frame, with `frame` set.

        Raises:
            SessionError: too few frames have prompts, the model understands neither masks nor boxes
                (to interpolate: no boxes), or the conversation went on in between.
            ValueError: an unknown way or direction, an empty range of frames, or no object id.
        """
        low, high = self._range(start, stop)
        if direction not in ("forward", "backward", "both"):
            raise ValueError(f"Direction is forward, backward or both, not {direction!r}.")
        if how not in WAYS:
            raise ValueError(f"Propagate how: {' or '.join(WAYS)}, not {how!r}.")
        objects = self.object_ids if object_id is None else (check_object_id(object_id),)
        sources = {i: self._log.frames(i) for i in objects if self._log.frames(i)}
        if not sources:
            raise SessionError(
                f"No {self.plane_name} has prompts to start from; add one with frame=K first."
            )
        if how == "interpolate":
            self._check_interpolation(sources, direction)
            spans = [(range(f[0], f[-1]), f) for f in sources.values()]
            wanted = [k for k in range(low, high) if any(k in r and k not in f for r, f in spans)]
            return self._interpolated(sources, wanted) if wanted else iter(())
        found = [
            leg
            for i, frames in sources.items()
            for leg in legs(i, frames, low, high, direction)
            if leg.frames
        ]
        return self._carried(found) if found else iter(())

    def _carried(self, found: Sequence[Leg]) -> Iterator[Prediction]:
        for leg in found:
            self._check_source(leg.object_id, leg.source)
        self._record(Propagated(tuple(sorted({leg.object_id for leg in found}))))
        for step in (1, -1):
            walk = self._recall if isinstance(self.model, PropagatingModel) else self._walk
            yield from walk([leg for leg in found if leg.frames.step == step], step)

    def _recall(self, found: Sequence[Leg], step: int) -> Iterator[Prediction]:
        """Carry in one direction by memory, all objects together; begins without any."""
        assert isinstance(self.model, PropagatingModel)
        carried = []
        for leg in found:
            if self._drawn(leg.object_id, leg.source).any():
                carried.append(leg)
            else:  # said to be absent
                yield from self._cleared(leg)
        marks = {leg.object_id: self._log.frames(leg.object_id) for leg in carried}
        for leg, frame, answer in recalled(self.model, carried, marks, self._scene, self._drawn):
            self._check_source(leg.object_id, leg.source)
            yield self._committed(leg.object_id, frame, answer)

    def _cleared(self, leg: Leg) -> Iterator[Prediction]:
        """Takes an object off the frames of a leg that an earlier propagation had put it on."""
        written = self._log.committed(leg.object_id)
        for frame in (k for k in leg.frames if k in written):
            self._check_source(leg.object_id, leg.source)
            yield self._committed(leg.object_id, frame, self._nothing)

    def _drawn(self, object_id: int, frame: int) -> NDArray[np.bool_]:
        """The mask on a frame with prompts."""
        self._check_source(object_id, frame)
        return self._frame_answer(object_id, frame).mask()

    def _walk(self, found: Sequence[Leg], step: int) -> Iterator[Prediction]:
        """Carry in one direction, all objects together."""
        state: dict[Leg, _Carried] = {}
        vanished: set[Leg] = set()
        written = {leg.object_id: set(self._log.committed(leg.object_id)) for leg in found}
        frames = sorted({k for leg in found for k in leg.frames})[::step]
        for place, frame in enumerate(frames):
            asks: dict[Leg, Ask] = {}
            for leg in (leg for leg in found if frame in leg.frames and leg not in vanished):
                self._check_source(leg.object_id, leg.source)
                if leg not in state:
                    state[leg] = self._begun(leg)
                prompts = self._next_prompts(frame, state[leg])
                if prompts:
                    asks[leg] = Ask(prompts)
                else:
                    vanished.add(leg)
            for leg, found_here in zip(asks, self._asked(frames[place:], asks), strict=True):
                before = state[leg]
                if self._follows_masks:
                    found_here = braked(found_here, before.answer.region)
                state[leg] = _Carried(found_here, before.said)
                self._check_source(leg.object_id, leg.source)
                yield self._committed(leg.object_id, frame, found_here)
            for leg in (leg for leg in vanished if frame in leg.frames):
                if frame in written[leg.object_id]:  # by an earlier propagation: out of date
                    yield self._committed(leg.object_id, frame, self._nothing)

    @property
    def _nothing(self) -> Answer:
        """That the object is not on a frame."""
        return Answer(Region.empty(self.image.geometry.shape[1:]), 0.0)

    def _interpolated(
        self, sources: Mapping[int, Sequence[int]], frames: Sequence[int]
    ) -> Iterator[Prediction]:
        for object_id, marked in sources.items():
            for source in marked:
                self._check_source(object_id, source)
        self._record(Propagated(tuple(sorted(sources)), "interpolate"))
        marks = {i: self._marks(i, marked) for i, marked in sources.items()}
        for place, frame in enumerate(frames):
            boxes = {i: box_between(marks[i], frame) for i in marks}
            asks = {i: Ask([box]) for i, box in boxes.items() if box is not None}
            for object_id, found in zip(asks, self._asked(frames[place:], asks), strict=True):
                for source in marks[object_id]:
                    self._check_source(object_id, source)
                yield self._committed(object_id, frame, found)

    def _asked(self, frames: Sequence[int], asks: Mapping[Any, Ask]) -> Iterator[Answer]:
        """The answers on the first of some frames; the others will be asked about next."""
        if not asks:
            return iter(())
        self._encode_ahead(frames)
        scene = self._scene(frames[0])
        return answers(self.model, scene, list(asks.values()), zoom=self.options.zoom)

    def _encode_ahead(self, frames: Sequence[int]) -> None:
        """Encode frames together if the first has not been, where the model says it is faster."""
        model, size = self.model, self._num_ahead
        if size < 2 or not isinstance(model, EncodingModel) or self._plane_of(frames[0]).ahead:
            return
        planes = [self._plane_of(k) for k in frames[:size]]
        views = [plane.view(plane.whole, plane.shape) for plane in planes]
        for plane, embedding in zip(planes, model.embed_batch(views), strict=True):
            plane.ahead = (embedding,)

    @property
    def _num_ahead(self) -> int:
        """Frames to encode together; 1 where nothing is gained, or every object has its window."""
        model = self.model
        if not isinstance(model, EncodingModel) or (self.options.zoom and 2 in model.card.window):
            return 1
        return min(_MOST_AHEAD, model.views_at_once)

    def _committed(self, object_id: int, frame: int, answer: Answer) -> Prediction:
        counts = tuple(rle.encode(answer.region.mask()))
        self._record(Committed(object_id, frame, counts, answer.score))
        return self._prediction(answer.region, answer.score, object_id, frame)

    def _begun(self, leg: Leg) -> _Carried:
        said = self._log.prompts(leg.object_id, leg.source)
        prompts = [a.prompt for a in said if a.prompt is not None]
        return _Carried(self._answer(leg.object_id, leg.source, said), prompts)

    def _next_prompts(self, frame: int, before: _Carried) -> Sequence[Prompt]:
        """What is asked on the next frame; nothing where the object has vanished."""
        region, understood = before.answer.region, self.model.card.prompts
        if isinstance(self.model, CarryingModel):  # it also decides when an object has vanished
            scene, memory = self._scene(frame), before.answer.memory
            kept = None if memory is None else memory.on(scene.whole, scene.shape)
            shown = Segmentation(region.full(), before.answer.score, kept)
            view = scene.view(scene.whole, scene.shape)
            return tuple(self.model.carry(view, shown, before.said))
        if not self._follows_masks:
            repeated = tuple(p for p in before.said if num_axes(p) is None)
            if not repeated:
                raise SessionError(
                    f"{self.model.card.name} takes neither masks nor boxes to carry on."
                )
            return repeated
        if region.mask_bounds is None:
            return ()
        return (MaskPrompt(region.mask()),) if "mask" in understood else (box_around(region),)

    @property
    def _follows_masks(self) -> bool:
        """Whether a mask is carried from frame to frame by us, as a mask or as a box."""
        return not isinstance(self.model, CarryingModel) and bool(
            self.model.card.prompts & {"mask", "box"}
        )

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

    def _check_interpolation(self, sources: Mapping[int, Sequence[int]], direction: str) -> None:
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

    def _check_source(self, object_id: int, source: int) -> None:
        """Refuse to go on from a frame whose prompts were taken back in between."""
        if not self._log.prompts(object_id, source):
            raise SessionError(
                f"The prompts of object {object_id} on {self.plane_name} {source} were "
                "taken back; call propagate() again."
            )

    def _frame_answer(self, object_id: int, frame: int) -> Region:
        return self._answer(object_id, frame, self._log.prompts(object_id, frame)).region

    def _base(self, object_id: int, frame: int | None, first: Action) -> Region | None:
        """What earlier actions left on this frame, so that a first correction starts from it."""
        if frame is None:
            return None
        committed = self._log.committed(object_id, before=first.number).get(frame)
        if committed is not None:
            return Region.of_mask(self._decoded(committed[0]))
        earlier = [a for a in self._log.prompts(object_id, None) if a.number < first.number]
        return self._answer(object_id, None, earlier).region.plane(frame) if earlier else None

    def _composed(self, object_id: int) -> Part:
        """Answers on frames, over propagated frames, over the answer on the whole."""
        frames, committed = self._log.frames(object_id), self._log.committed(object_id)
        whole = self._log.prompts(object_id, None)
        if whole and not frames and not committed:
            return super()._composed(object_id)
        mask = np.zeros(self.image.geometry.shape, dtype=np.bool_)
        if whole:
            place, inside = super()._composed(object_id)
            mask[place] = inside
        for frame, (runs, _) in committed.items():
            mask[frame] = self._decoded(runs)
        for frame in frames:
            region = self._frame_answer(object_id, frame)
            mask[frame] = False
            mask[frame][region.slices] = region.inside
        return (slice(None),) * mask.ndim, mask

    def _scene(self, frame: int | None) -> Scene:
        assert frame is not None
        return self._plane_of(frame)

    def _plane_of(self, frame: int) -> _Plane:
        if frame not in self._scenes:
            geometry = self.image.geometry.plane(frame)
            self._scenes[frame] = _Plane(
                self._plane(frame),
                geometry.spacing,
                self._intensity(),
                self.image.modality,
                windowed=self.options.window is not None,
            )
            while len(self._scenes) > _CACHED_SCENES + self._num_ahead:
                self._scenes.popitem(last=False)
        return self._scenes[frame]

    def _plane(self, frame: int) -> NDArray[Any]:
        """Pixels of one frame, finite."""
        return finite(self.image.plane(frame), self.image)

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
