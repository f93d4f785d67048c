"""What volumes and videos share: answers per slice or frame, and carrying masks along."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner import rle
from limner.errors import PromptError, SessionError
from limner.prompts.convert import check_inside
from limner.prompts.types import Box, MaskPrompt, Prompt
from limner.sessions._base import BaseSession, Part, check_frame, check_object_id
from limner.sessions._finite import finite
from limner.sessions._log import Action, Committed, Propagated, Runs
from limner.sessions._prediction import Prediction
from limner.sessions._region import Region
from limner.sessions._zoom import Scene, answer

_CACHED_SCENES = 4
_MOST_GROWTH = 1.05  # of a carried mask's area from one frame to the next
_REACH = 0.05  # of the square root of the area: how far a mask that leaked may go beyond the last
_BOX_MARGIN = 0.1  # of the object's size, around the last mask for models that take no mask


@dataclass(frozen=True)
class Leg:
    """Part of a propagation: carry from an annotated frame over a run of frames, in order."""

    object_id: int
    source: int
    frames: range


class StackSession(BaseSession):
    """A conversation about an image of several planes: slices of a volume, frames of a video."""

    plane_name = "frame"

    @cached_property
    def _scenes(self) -> OrderedDict[int, Scene]:
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
    ) -> Iterator[Prediction]:
        """Carry masks from the frames with prompts to the others, one answer at a time.

        Frames with prompts stay as they are. With several of them, each carries to the frames
        nearest to it. An object that vanishes is not carried further. Every frame is in the journal
        before it is yielded; stop by leaving the loop, and what was yielded stays.

        Args:
            start: first frame to write, default 0.
            stop: first frame not to write, default the number of frames.
            direction: ``"forward"``, ``"backward"`` or ``"both"`` (forward first).
            object_id: one object, default all that have prompts on a frame.

        Yields:
            A `Prediction` per object and frame, with `frame` set.

        Raises:
            SessionError: no frame has prompts, or the conversation went on in between.
            ValueError: an unknown direction, an empty range of frames, or no object id.
        """
        low, high = self._range(start, stop)
        if direction not in ("forward", "backward", "both"):
            raise ValueError(f"Direction is forward, backward or both, not {direction!r}.")
        objects = self.object_ids if object_id is None else (check_object_id(object_id),)
        sources = {i: self._log.frames(i) for i in objects if self._log.frames(i)}
        if not sources:
            raise SessionError(
                f"No {self.plane_name} has prompts to start from; add one with frame=K first."
            )
        legs = [
            leg
            for i, frames in sources.items()
            for leg in _legs(i, frames, low, high, direction)
            if leg.frames
        ]
        return self._carried(legs) if legs else iter(())

    def _carried(self, legs: Sequence[Leg]) -> Iterator[Prediction]:
        for leg in legs:
            self._check_source(leg)
        self._record(Propagated(tuple(sorted({leg.object_id for leg in legs}))))
        for leg in legs:
            self._check_source(leg)
            region = self._frame_answer(leg.object_id, leg.source)
            for frame in leg.frames:
                if region.mask_bounds is None:
                    break
                region, score = self._step(frame, region)
                counts = tuple(rle.encode(region.mask()))
                self._record(Committed(leg.object_id, frame, counts, score))
                yield self._prediction(region, score, leg.object_id, frame)

    def _check_source(self, leg: Leg) -> None:
        """Refuse to carry from a frame whose prompts were taken back in between."""
        if not self._log.prompts(leg.object_id, leg.source):
            raise SessionError(
                f"The prompts of object {leg.object_id} on {self.plane_name} {leg.source} were "
                "taken back; call propagate() again."
            )

    def _step(self, frame: int, before: Region) -> tuple[Region, float]:
        """One frame further: the last mask becomes the prompt."""
        understood = self.model.card.prompts
        if "mask" in understood:
            prompt: Prompt = MaskPrompt(before.mask())
        elif "box" in understood:
            prompt = _box_around(before)
        else:
            raise SessionError(f"{self.model.card.name} takes neither masks nor boxes to carry on.")
        region, score = answer(
            self.model, self._scene(frame), [prompt], None, zoom=self.options.zoom
        )
        return _braked(region, score, before)

    def _frame_answer(self, object_id: int, frame: int) -> Region:
        return self._answer(object_id, frame, self._log.prompts(object_id, frame))[0]

    def _base(self, object_id: int, frame: int | None, first: Action) -> Region | None:
        """What earlier actions left on this frame, so that a first correction starts from it."""
        if frame is None:
            return None
        committed = self._log.committed(object_id, before=first.number).get(frame)
        if committed is not None:
            return Region.of_mask(self._decoded(committed[0]))
        earlier = [a for a in self._log.prompts(object_id, None) if a.number < first.number]
        return self._answer(object_id, None, earlier)[0].plane(frame) if earlier else None

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
        if frame not in self._scenes:
            geometry = self.image.geometry.plane(frame)
            self._scenes[frame] = Scene(
                self._plane(frame),
                geometry.spacing,
                self._intensity(),
                self.image.modality,
                windowed=self.options.window is not None,
            )
            while len(self._scenes) > _CACHED_SCENES:
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


def _legs(
    object_id: int, sources: Sequence[int], low: int, high: int, direction: str
) -> Iterator[Leg]:
    """Which annotated frame is carried where: to the nearest frames if both ways, forward first."""
    both = direction == "both"
    if direction != "backward":
        for k, source in enumerate(sources):
            end = high if k + 1 == len(sources) else sources[k + 1]
            if both and k + 1 < len(sources):
                end = (source + end) // 2 + 1
            yield Leg(object_id, source, range(max(source + 1, low), min(end, high)))
    if direction != "forward":
        for k, source in reversed(list(enumerate(sources))):
            end = low - 1 if k == 0 else sources[k - 1]
            if both and k > 0:
                end = (source + end) // 2
            yield Leg(object_id, source, range(min(source, high) - 1, max(end, low - 1), -1))


def _braked(region: Region, score: float, before: Region) -> tuple[Region, float]:
    """A carried mask that did not leak: one that jumps in size is held near the one before.

    Wherever it moves, an object grows little from one frame to the next; a mask that does not may
    have run into something else, and a leak carried on only gets larger. The score falls with the
    jump, so that the frame is among those to look at.
    """
    old, new = before.mask(), region.mask()
    growth = new.sum() / max(1, old.sum())
    if growth <= _MOST_GROWTH:
        return region, score
    from scipy import ndimage

    reach = max(1.0, _REACH * float(np.sqrt(old.sum())))
    near = ndimage.distance_transform_edt(~old) <= reach
    return Region.of_mask(new & near), score / float(growth)


def _box_around(region: Region) -> Box:
    assert region.mask_bounds is not None
    low, high = (np.asarray(b, dtype=float) for b in region.mask_bounds)
    margin = np.ceil(_BOX_MARGIN * (high - low))
    return Box(tuple(np.maximum(low - margin, 0)), tuple(np.minimum(high + margin, region.shape)))
