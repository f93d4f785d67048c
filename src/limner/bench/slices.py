"""Prompting a volume slice by slice, for models that work in 2D.

A prompt is given on one slice and its answer is propagated to the others; every correction is given
on its own slice, and all prompts are propagated again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from limner.datasets.slice_prompts import SlicePrompt
from limner.errors import PromptError
from limner.prompts.regions import bounds
from limner.prompts.simulate import box as tight_box
from limner.prompts.simulate_volume import largest_slice
from limner.prompts.types import Box, MaskPrompt, Prompt
from limner.sessions import Session

Mask: TypeAlias = NDArray[np.bool_]
Between: TypeAlias = Literal["carry", "interpolate"]


@dataclass(frozen=True, eq=False)
class CroppedMask:
    """A mask of a volume as its own box, which is all that is kept of it.

    Attributes:
        window: where the box lies.
        inside: the mask there.
        size: its voxels.
    """

    window: tuple[slice, ...]
    inside: Mask
    size: int

    @classmethod
    def of(cls, mask: Mask) -> CroppedMask:
        """The mask, which may be empty."""
        if not mask.any():
            return cls((slice(0, 0),) * mask.ndim, np.zeros((0,) * mask.ndim, dtype=bool), 0)
        window = tuple(slice(int(a), int(b)) for a, b in zip(*bounds(mask), strict=True))
        inside = mask[window].copy()
        return cls(window, inside, int(np.count_nonzero(inside)))

    def whole(self, shape: Sequence[int]) -> Mask:
        """The mask in a volume of a shape."""
        mask = np.zeros(tuple(shape), dtype=bool)
        mask[self.window] = self.inside
        return mask


Placement: TypeAlias = Callable[[Prompt], SlicePrompt]


def slice_placement(target: Mask) -> Placement:
    """How someone who sees the object says a 3D prompt on one slice.

    A box becomes the tight box on the slice where the object is largest, and the range of slices; a
    box that is not tight is as much larger there. A mask becomes its slice of that index. Lines and
    clicks are on a slice as they are.
    """

    def place(prompt: Prompt) -> SlicePrompt:
        if isinstance(prompt, Box | MaskPrompt) and prompt.to_slice() is None:
            frame = largest_slice(target)
            if isinstance(prompt, MaskPrompt):
                return SlicePrompt(MaskPrompt(prompt.mask[frame]), frame)
            rng = np.random.default_rng(0)  # draws nothing: no jitter
            whole, slice_box = tight_box(target, rng), tight_box(target[frame], rng)
            low = np.add(slice_box.low, np.subtract(prompt.low, whole.low)[1:])
            high = np.add(slice_box.high, np.subtract(prompt.high, whole.high)[1:])
            size = np.asarray(target.shape[1:])
            box = Box(tuple(np.maximum(low, 0)), tuple(np.minimum(high, size)))
            return SlicePrompt(box, frame, _range(prompt))
        return to_slice_prompt(prompt)

    return place


def to_slice_prompt(prompt: Prompt) -> SlicePrompt:
    """A 3D prompt that lies in one slice.

    Raises:
        PromptError: it does not.
    """
    found = prompt.to_slice()
    if found is None:
        raise PromptError(f"A {prompt.kind} over several slices cannot be said on one.")
    return SlicePrompt(*found)


class SliceBySlice:
    """One object of a session on a volume, asked about slice by slice.

    Args:
        session: on the volume.
        place: how a 3D prompt is said on a slice.
        between: between marked slices, where there are two or more, the mask is carried or the
            model is asked with interpolated boxes.
        object_id: of the session.
    """

    def __init__(
        self, session: Session, place: Placement, *, between: Between = "carry", object_id: int = 1
    ) -> None:
        self._session = session
        self._place = place
        self._between = between
        self._id = object_id
        self._within: tuple[int, int] | None = None
        self._marked: set[int] = set()
        self._kept: CroppedMask | None = None

    def say(
        self, prompts: Sequence[Prompt], shape: Sequence[int]
    ) -> tuple[tuple[Prompt, ...], Mask]:
        """Say prompts on their slices, ask there, and carry what was answered to the others.

        Args:
            prompts: 3D.
            shape: of the volume.

        Returns:
            What was said, in 3D, and the mask of the volume, as the session would export it.
        """
        placed = [self._place(prompt) for prompt in prompts]
        frames = sorted({one.frame for one in placed})
        if self._kept is None and len(frames) > 1:  # marks on several slices at once are its ends
            self._within = frames[0], frames[-1] + 1
        for one in placed:
            self._session.add(one.prompt, object_id=self._id, frame=one.frame)
            self._within = one.within or self._within
            self._marked.add(one.frame)
        mask = (self._kept or CroppedMask.of(np.zeros((0, 0, 0), dtype=bool))).whole(shape)
        for frame in frames:
            mask[frame] = self._session.predict(object_id=self._id, frame=frame).mask
        low, high = self._within or (None, None)
        how = self._between if len(self._marked) > 1 else "carry"
        for answer in self._session.propagate(start=low, stop=high, object_id=self._id, how=how):
            assert answer.frame is not None
            mask[answer.frame] = answer.mask
        self._kept = CroppedMask.of(mask)
        return tuple(one.lifted(shape) for one in placed), mask


def _range(box: Box) -> tuple[int, int]:
    return int(np.floor(box.low[0])), int(np.ceil(box.high[0]))
