"""Sessions on one 2D image: prompts in ``(row, column)``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

from limner.adapters.intensity import robust_limits
from limner.errors import PromptError
from limner.io.image import Image
from limner.io.inversion import invert_for_display, invert_window
from limner.prompts.convert import check_inside
from limner.prompts.types import Prompt
from limner.sessions.answers.finite import finite
from limner.sessions.answers.image_view import ImageView
from limner.sessions.views import check_first_axis


class StillViews:
    """One 2D image; see `limner.sessions.views.ImageViews`.

    Args:
        image: the image.
        window: intensities for black and white, or None for robust limits of the image.
        requested: whether the user named it.
    """

    def __init__(
        self, image: Image, window: tuple[float, float] | None, *, requested: bool = True
    ) -> None:
        self.image, self._requested = image, requested and window is not None
        self._shown, self._window = invert_for_display(image), invert_window(image, window)

    def place_prompt(
        self, prompt: Prompt, frame: int | None, axis: int
    ) -> tuple[Prompt, int | None]:
        """The prompt as it is."""
        check_first_axis(axis, self.image)
        if frame is not None:
            raise PromptError(f"A 2D image has no frames, so frame={frame} means nothing here.")
        check_inside(prompt, self.image.geometry.shape)
        return prompt, None

    def resolve_frame(
        self, frame: int | None, object_id: int, frames_of: Callable[[int], Sequence[int]]
    ) -> int | None:
        """The frame as it is; none has prompts."""
        return frame

    def view(self, frame: int | None) -> ImageView:
        """The image."""
        return self._view

    @cached_property
    def _view(self) -> ImageView:
        array = finite(self._shown.array, self.image)
        return ImageView(
            array,
            self.image.spacing,
            self._window or robust_limits(array),
            self.image.modality,
            windowed=self._requested,
        )
