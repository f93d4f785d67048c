"""Sessions on one volume: prompts in 3D, and prompts on single slices."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.errors import PromptError
from limner.models._intensity import robust_limits
from limner.prompts.convert import check_inside, on_slice
from limner.prompts.types import Prompt, num_axes
from limner.sessions._finite import finite
from limner.sessions._planar import onto_plane
from limner.sessions._stack import StackSession
from limner.sessions._zoom import Scene


class VolumeSession(StackSession):
    """A conversation about one volume; prompts in ``(slice, row, column)``.

    A prompt with ``frame=K`` is 2D and about slice K. A model that works in 2D answers it there,
    and `propagate` carries the answer on; a model that works in 3D only gets it lifted into the
    volume. On a slice, the answer to its own prompts stands over what was propagated, and that over
    the answer to 3D prompts.
    """

    plane_name = "slice"

    def _placed(self, prompt: Prompt, frame: int | None) -> tuple[Prompt, int | None]:
        flat, solid = (n in self.model.card.ndim for n in (2, 3))
        if frame is None and not solid:
            dropped = onto_plane(prompt)
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
            prompt, frame = on_slice(prompt, frame), None
        if num_axes(prompt) == 2:
            raise PromptError(
                f"A {prompt.kind} with 2 coordinates on a volume needs its slice: add it with "
                "frame=K (--slice K), or give slice, row and column."
            )
        check_inside(prompt, self.image.geometry.shape, what="volume")
        return prompt, None

    def _answered_frame(self, object_id: int, frame: int | None) -> int | None:
        """A slice's prompts that were lifted into the volume are answered there."""
        return frame if 2 in self.model.card.ndim else None

    def _scene(self, frame: int | None) -> Scene:
        return self._whole if frame is None else super()._scene(frame)

    def _intensity(self) -> tuple[float, float]:
        return self._limits

    def _plane(self, frame: int) -> NDArray[Any]:
        return np.asarray(self._array[frame])

    @cached_property
    def _array(self) -> NDArray[Any]:
        return finite(self.image.array, self.image)

    @cached_property
    def _whole(self) -> Scene:
        spacing = self.image.spacing
        return Scene(
            self._array,
            spacing,
            self._limits,
            self.image.modality,
            windowed=self.options.window is not None,
        )

    @cached_property
    def _limits(self) -> tuple[float, float]:
        return self.options.window or robust_limits(self._array)
