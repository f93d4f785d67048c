"""Sessions on one volume: prompts in 3D, and prompts on single slices."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.adapters.axes import Axes, canonical
from limner.adapters.intensity import robust_limits
from limner.errors import PromptError
from limner.prompts.convert import check_inside
from limner.prompts.types import MaskPrompt, Prompt
from limner.sessions.answers.finite import cleaned, is_finite
from limner.sessions.answers.image_view import ImageView
from limner.sessions.propagation.stack_session import StackSession

_AXES = ("slice", "row", "column")


class VolumeSession(StackSession):
    """A conversation about one volume; prompts in ``(slice, row, column)``.

    A prompt with ``frame=K`` is 2D and about slice K. A model that works in 2D answers it there,
    and `propagate` carries the answer on; a model that works in 3D only gets it lifted into the
    volume, and so does every model that works in 3D with a slice across another axis. On a slice,
    the answer to its own prompts stands over what was propagated, and that over the answer to 3D
    prompts.

    Models see the volume turned as `limner.adapters.axes.canonical` says; whoever talks to the
    session does not notice.
    """

    plane_name = "slice"

    def _placed(self, prompt: Prompt, frame: int | None) -> tuple[Prompt, int | None]:
        flat, solid = (n in self.model.card.ndim for n in (2, 3))
        if frame is None and not solid:
            dropped = prompt.to_slice()
            if dropped is None:
                raise PromptError(
                    f"{self.model.card.name} answers slice by slice: say a {prompt.kind} on one "
                    "slice (frame=K, --slice K), then propagate it."
                )
            prompt, frame = dropped
        if frame is not None:
            prompt, frame = self._on_frame(prompt, frame)
            if flat:
                return prompt, frame
            prompt, frame = self._raised(prompt, frame, 0), None
        if prompt.num_axes == 2:
            raise PromptError(
                f"A {prompt.kind} with 2 coordinates on a volume needs its slice: add it with "
                "frame=K (--slice K), or give slice, row and column."
            )
        check_inside(prompt, self.image.geometry.shape, what="volume")
        return prompt, None

    def _lifted(self, prompt: Prompt, frame: int | None, axis: int) -> Prompt:
        if axis not in (1, 2) or isinstance(axis, bool):
            raise PromptError(f"The axis across a slice is 0, 1 or 2, not {axis!r}.")
        if frame is None:
            raise PromptError(f"axis={axis} goes with frame=K (--slice K), the slice across it.")
        if 3 not in self.model.card.ndim:
            raise PromptError(
                f"{self.model.card.name} works on slices across axis 0 only; choose a model that "
                "works in 3D (limner models), or draw across axis 0."
            )
        shape = self.image.geometry.shape
        if not 0 <= frame < shape[axis]:
            raise PromptError(f"There is no {_AXES[axis]} {frame}; they are 0…{shape[axis] - 1}.")
        check_inside(prompt, [n for k, n in enumerate(shape) if k != axis], what="slice")
        return self._raised(prompt, frame, axis)

    def _raised(self, prompt: Prompt, frame: int, axis: int) -> Prompt:
        """A prompt on one slice, in the volume."""
        if isinstance(prompt, MaskPrompt):
            raise PromptError(
                f"{self.model.card.name} takes a mask of the whole volume, not of one slice; draw "
                "a lasso or a scribble there, or choose a model that works in 2D (limner models)."
            )
        return prompt.on_slice(frame, axis)

    def _answered_frame(self, object_id: int, frame: int | None) -> int | None:
        """A slice's prompts that were lifted into the volume are answered there."""
        return frame if 2 in self.model.card.ndim else None

    def _scene(self, frame: int | None) -> ImageView:
        return self._whole if frame is None else super()._scene(frame)

    def _intensity(self) -> tuple[float, float]:
        return self.options.window or self._limits

    def _plane(self, frame: int) -> NDArray[Any]:
        plane = np.asarray(self.image.array[frame])
        return plane if self._is_finite else cleaned(plane, self._limits)

    @cached_property
    def _is_finite(self) -> bool:
        return is_finite(self.image.array, self.image)

    @cached_property
    def _axes(self) -> Axes:
        return canonical(self.image.geometry)

    @cached_property
    def _whole(self) -> ImageView:
        geometry = self.image.geometry
        return ImageView(
            self.image.array,
            geometry.spacing,
            self._intensity(),
            self.image.modality,
            windowed=self.options.window is not None,
            axes=self._axes,
            directions=geometry.direction if geometry.has_spacing else None,
            clean=None if self._is_finite else partial(cleaned, limits=self._limits),
        )

    @cached_property
    def _limits(self) -> tuple[float, float]:
        """Robust limits: of the same voxels however the volume is stored."""
        return robust_limits(self._axes.apply(self.image.array))
