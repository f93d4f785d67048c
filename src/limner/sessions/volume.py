"""Sessions on one volume: prompts in ``(slice, row, column)``, and 2D prompts on single slices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.adapters.axes import Axes, canonical
from limner.adapters.intensity import robust_limits
from limner.errors import PromptError
from limner.io.image import Image
from limner.io.inversion import invert_for_display, invert_window
from limner.models import ModelCard
from limner.prompts.convert import check_inside
from limner.prompts.types import MaskPrompt, Prompt
from limner.sessions.answers.finite import cleaned, is_finite
from limner.sessions.answers.image_view import ImageView
from limner.sessions.propagation.prefetch import FrameView
from limner.sessions.views import FrameCache, check_on_frame

_AXES = ("slice", "row", "column")


class VolumeViews:
    """One volume; see `limner.sessions.views.FrameViews`.

    A prompt with ``frame=K`` is 2D and about slice K. A model that works in 2D answers it there,
    and a propagation carries the answer on; a model that works in 3D only gets it lifted into the
    volume, and so does every model that works in 3D with a slice across another axis.

    Models see the volume turned as `limner.adapters.axes.canonical` says; whoever uses the session
    does not notice.

    Args:
        image: the volume.
        window: intensities for black and white, or None for robust limits of the volume.
        prefetched: slices that are encoded ahead.
        card: of the model that answers prompts.
        requested: whether the user named the window.
    """

    frame_name = "slice"

    def __init__(
        self,
        image: Image,
        window: tuple[float, float] | None,
        prefetched: int,
        card: ModelCard,
        *,
        requested: bool = True,
    ) -> None:
        self.image, self._requested = image, requested and window is not None
        self.frames = FrameCache(self._make_view, prefetched)
        self._shown, self._window = invert_for_display(image), invert_window(image, window)
        self._card = card

    def place_prompt(
        self, prompt: Prompt, frame: int | None, axis: int
    ) -> tuple[Prompt, int | None]:
        """The 2D prompt and its slice, or the prompt in 3D."""
        if axis != 0:
            prompt, frame = self._lift_across(prompt, frame, axis), None
        flat, solid = (n in self._card.ndim for n in (2, 3))
        if frame is None and not solid:
            dropped = prompt.to_slice()
            if dropped is None:
                raise PromptError(
                    f"{self._card.name} answers slice by slice: say a {prompt.kind} on one "
                    "slice (frame=K, --slice K), then propagate it."
                )
            prompt, frame = dropped
        if frame is not None:
            check_on_frame(prompt, frame, self.image, self.frame_name)
            if flat:
                return prompt, frame
            prompt = self._lift(prompt, frame, 0)
        if prompt.num_axes == 2:
            raise PromptError(
                f"A {prompt.kind} with 2 coordinates on a volume needs its slice: add it with "
                "frame=K (--slice K), or give slice, row and column."
            )
        check_inside(prompt, self.image.geometry.shape, what="volume")
        return prompt, None

    def resolve_frame(
        self, frame: int | None, object_id: int, frames_of: Callable[[int], Sequence[int]]
    ) -> int | None:
        """A slice's prompts that were lifted into the volume are answered there."""
        return frame if 2 in self._card.ndim else None

    def view(self, frame: int | None) -> ImageView:
        """A slice, or the whole volume."""
        return self._whole if frame is None else self.frames.view(frame)

    def _lift_across(self, prompt: Prompt, frame: int | None, axis: int) -> Prompt:
        """A 2D prompt on a slice across another axis than the first, in 3D."""
        if axis not in (1, 2) or isinstance(axis, bool):
            raise PromptError(f"The axis across a slice is 0, 1 or 2, not {axis!r}.")
        if frame is None:
            raise PromptError(f"axis={axis} goes with frame=K (--slice K), the slice across it.")
        if 3 not in self._card.ndim:
            raise PromptError(
                f"{self._card.name} works on slices across axis 0 only; choose a model that "
                "works in 3D (limner models), or draw across axis 0."
            )
        shape = self.image.geometry.shape
        if not 0 <= frame < shape[axis]:
            raise PromptError(f"There is no {_AXES[axis]} {frame}; they are 0…{shape[axis] - 1}.")
        check_inside(prompt, [n for k, n in enumerate(shape) if k != axis], what="slice")
        return self._lift(prompt, frame, axis)

    def _lift(self, prompt: Prompt, frame: int, axis: int) -> Prompt:
        """A 2D prompt on a slice, in 3D."""
        if isinstance(prompt, MaskPrompt):
            raise PromptError(
                f"{self._card.name} takes a mask of the whole volume, not of one slice; draw "
                "a lasso or a scribble there, or choose a model that works in 2D (limner models)."
            )
        return prompt.on_slice(frame, axis)

    def _make_view(self, frame: int) -> FrameView:
        return FrameView(
            self._slice_pixels(frame),
            self.image.geometry.slice_at(frame).spacing,
            self._window or self._limits,
            self.image.modality,
            windowed=self._requested,
        )

    def _slice_pixels(self, frame: int) -> NDArray[Any]:
        """Pixels of one slice, finite."""
        pixels = np.asarray(self._shown.array[frame])
        return pixels if self._is_finite else cleaned(pixels, self._limits)

    @cached_property
    def _is_finite(self) -> bool:
        return is_finite(self._shown.array, self.image)

    @cached_property
    def _axes(self) -> Axes:
        return canonical(self.image.geometry)

    @cached_property
    def _whole(self) -> ImageView:
        geometry = self.image.geometry
        return ImageView(
            self._shown.array,
            geometry.spacing,
            self._window or self._limits,
            self.image.modality,
            windowed=self._requested,
            axes=self._axes,
            directions=geometry.direction if geometry.has_spacing else None,
            clean=None if self._is_finite else partial(cleaned, limits=self._limits),
        )

    @cached_property
    def _limits(self) -> tuple[float, float]:
        """Robust limits: of the same voxels however the volume is stored."""
        return robust_limits(self._axes.apply(self._shown.array))
